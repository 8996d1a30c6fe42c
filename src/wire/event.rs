//! What happens on the appliance, as a stream of events.

use refit_base::names;
use semver::Version;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, OneOfBuilder, SchemaType, Type};
use utoipa::openapi::{KnownFormat, Ref, RefOr, Schema, SchemaFormat};
use utoipa::{PartialSchema, ToSchema};

use super::bus::{BusState, Fault, Report};
use super::component::{ComponentState, Health};
use super::config::MergedFile;
use super::confirm::Unconfirmed;
use super::names::describe_names;
use super::package::ReceptionStep;
use super::release::ReleaseState;
use super::request::RequestName;
use super::step::{self, Step};
use super::ticket::Reply;
use super::update::AttemptKind;

/// Declares [`Event`]: each variant with its name in JSON, and what its data is.
macro_rules! events {
    (
        $(#[doc = $about:literal])+
        pub enum $event:ident { $($(#[doc = $doc:literal])+ $variant:ident($data:ty) = $name:literal,)+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq)]
        pub enum $event {
            $($(#[doc = $doc])+ $variant($data),)+
            /// What only another version of this program knows, or knows in another shape.
            Other {
                /// Its name.
                name: String,
                /// What it says.
                data: Value,
            },
        }

        impl $event {
            /// Every name that this version knows.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// Returns its name.
            pub fn name(&self) -> &str {
                match self {
                    $(Self::$variant(_) => $name,)+
                    Self::Other { name, .. } => name,
                }
            }

            /// Returns the event of this `name` that says `data`.
            pub fn of(name: &str, data: Value) -> Self {
                match name {
                    $($name => read(name, data, Self::$variant),)+
                    _ => Self::Other { name: name.to_owned(), data },
                }
            }

            /// Returns what it says, as JSON.
            ///
            /// # Errors
            /// None: there is nothing in it that JSON cannot say.
            pub fn data(&self) -> serde_json::Result<Value> {
                match self {
                    $(Self::$variant(data) => serde_json::to_value(data),)+
                    Self::Other { data, .. } => Ok(data.clone()),
                }
            }
        }

        /// Returns the schemas of the events' data, by name of the event.
        fn data_schemas() -> Vec<(&'static str, &'static str, RefOr<Schema>)> {
            vec![$(($name, concat!($($doc),+), Ref::from_schema_name(<$data as ToSchema>::name()).into())),+]
        }

        fn collect_schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
            $(
                schemas.push((<$data as ToSchema>::name().into_owned(), <$data as PartialSchema>::schema()));
                <$data as ToSchema>::schemas(schemas);
            )+
        }
    };
}

events! {
    /// What happens on the appliance.
    pub enum Event {
        /// The site has gone to another state.
        BusState(SiteChanged) = "bus.state",
        /// The site was asked for something.
        BusRequest(Requested) = "bus.request",
        /// A reload is over.
        BusReload(Reloaded) = "bus.reload",
        /// A reload is in force, and waits to be confirmed.
        ReloadWaiting(Unconfirmed) = "bus.reload.waiting",
        /// A reload was confirmed, and stays in force.
        ReloadConfirmed(ReloadConfirmed) = "bus.reload.confirmed",
        /// A reload is about to be reverted: who restores something by itself does so now.
        ReloadReverting(ReloadEnded) = "bus.reload.reverting",
        /// A reload was reverted.
        ReloadReverted(ReloadReverted) = "bus.reload.reverted",
        /// The runtime before ended while a reload waited: what is on the disk is in force.
        ReloadLost(ReloadEnded) = "bus.reload.lost",
        /// Something was published on a channel.
        BusPublication(Report) = "bus.publication",
        /// Something has failed.
        Fault(Fault) = "fault",
        /// A component does something else, or does it differently.
        Component(ComponentChanged) = "component",
        /// A process has connected to the bus.
        PeerUp(PeerChanged) = "component.up",
        /// A process has left the bus.
        PeerDown(PeerChanged) = "component.down",
        /// One process image of the runtime has taken over from another.
        Handover(TookOver) = "handover",
        /// An update has come to a step.
        UpdateStep(UpdateStep) = "update.step",
        /// A step of an update goes on.
        UpdateProgress(UpdateProgress) = "update.progress",
        /// An update has merged the configuration.
        UpdateConfig(ConfigMerged) = "update.config",
        /// A package is arriving.
        PackageProgress(PackageProgress) = "package.progress",
        /// A release is good.
        Release(ReleaseChanged) = "release",
    }
}

impl Event {
    /// Returns the ticket of the update that it is about, if it is about one.
    pub fn update(&self) -> Option<&str> {
        match self {
            Self::UpdateStep(step) => Some(&step.id),
            Self::UpdateProgress(progress) => Some(&progress.id),
            Self::UpdateConfig(merged) => Some(&merged.id),
            Self::Other { data, .. } => data.get("id")?.as_str(),
            Self::BusState(_)
            | Self::BusRequest(_)
            | Self::BusReload(_)
            | Self::ReloadWaiting(_)
            | Self::ReloadConfirmed(_)
            | Self::ReloadReverting(_)
            | Self::ReloadReverted(_)
            | Self::ReloadLost(_)
            | Self::BusPublication(_)
            | Self::Fault(_)
            | Self::Component(_)
            | Self::PeerUp(_)
            | Self::PeerDown(_)
            | Self::Handover(_)
            | Self::PackageProgress(_)
            | Self::Release(_) => None,
        }
    }
}

/// Returns the event whose data is `data`; one whose shape is another stays as it is.
fn read<T: DeserializeOwned>(name: &str, data: Value, make: impl FnOnce(T) -> Event) -> Event {
    match T::deserialize(&data) {
        Ok(known) => make(known),
        Err(_) => Event::Other { name: name.to_owned(), data },
    }
}

/// An event, as it was published.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRecord {
    /// Its number: it grows from event to event.
    pub id: u64,
    /// When, RFC 3339.
    pub at: String,
    /// The same in milliseconds of the monotonic clock, for the time between two; `None` where an older release has published it.
    pub monotonic_ms: Option<u64>,
    /// What.
    pub event: Event,
}

/// An event, as it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    id: u64,
    event: String,
    at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    monotonic_ms: Option<u64>,
    #[serde(default)]
    data: Value,
}

impl Serialize for EventRecord {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = Written {
            id: self.id,
            event: self.event.name().to_owned(),
            at: self.at.clone(),
            monotonic_ms: self.monotonic_ms,
            data: self.event.data().map_err(serde::ser::Error::custom)?,
        };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for EventRecord {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written { id, event, at, monotonic_ms, data } = Written::deserialize(deserializer)?;
        Ok(Self { id, at, monotonic_ms, event: Event::of(&event, data) })
    }
}

impl PartialSchema for EventRecord {
    fn schema() -> RefOr<Schema> {
        let text =
            |text: &str| ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).description(Some(text));
        let number =
            |text: &str| ObjectBuilder::new().schema_type(SchemaType::Type(Type::Integer)).description(Some(text));
        let when = || {
            text("When, RFC 3339.")
                .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
                .examples(["2026-01-01T12:00:00.000Z"])
        };
        let milliseconds = "When, in milliseconds of the monotonic clock: for the time between two events.";
        let one = |(name, about, data): (&str, &str, RefOr<Schema>)| {
            ObjectBuilder::new()
                .description(Some(about.trim()))
                .property("id", number("Its number: it grows from event to event.").examples([17]))
                .required("id")
                .property("event", text("Its type.").enum_values(Some([name])).examples([name]))
                .required("event")
                .property("at", when())
                .required("at")
                .property("monotonic_ms", number(milliseconds).examples([86_400_000]))
                .property("data", AllOfBuilder::new().item(data).description(Some("What it says.")))
                .required("data")
        };
        let about = "What happens on the appliance. Types that a reader does not know may come: it passes over them.";
        let events = data_schemas().into_iter().map(one);
        events.fold(OneOfBuilder::new().description(Some(about)), OneOfBuilder::item).into()
    }
}

impl ToSchema for EventRecord {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        collect_schemas(schemas);
    }
}

/// The site has gone to another state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteChanged {
    /// Where it stands now.
    pub state: BusState,
}

names! {
    /// What was decided about a request.
    pub enum RequestOutcome {
        /// It is taken.
        Accepted = "accepted",
        /// The same is under way: it shares its outcome.
        Merged = "merged",
        /// It is so already.
        Already = "already",
        /// It is not taken.
        Refused = "refused",
    }
}

describe_names!(RequestOutcome);

/// The site was asked for something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Requested {
    /// The number of the request in this process image; `null` for one that the bus never heard of.
    #[schema(example = 4)]
    pub number: Option<u64>,
    /// What was asked.
    pub request: RequestName,
    /// Who asked.
    #[schema(example = "root (local)")]
    pub origin: String,
    /// What was decided about it.
    pub outcome: RequestOutcome,
    /// Why it was refused, if it was.
    #[schema(example = "the site is ending")]
    pub reason: Option<String>,
}

/// A reload is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reloaded {
    /// Which generation of the settings it was about.
    #[schema(example = 2)]
    pub generation: u64,
    /// Why that is not in force everywhere; `null` if it is.
    #[schema(example = "till refused: prices.json: expected value at line 3")]
    pub reason: Option<String>,
    /// Who was asked, and how each answered.
    #[serde(default)]
    pub asked: Vec<ReloadAnswer>,
}

/// How one answered who was asked to reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadAnswer {
    /// The listener.
    #[schema(example = "till")]
    pub name: String,
    /// How it answered.
    pub answer: Reply,
}

/// A reload was confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadConfirmed {
    /// Which.
    #[serde(flatten)]
    pub reload: Unconfirmed,
    /// Who has confirmed it.
    #[schema(example = "root (local)")]
    pub by: String,
}

/// A reload is about to be reverted, or was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadEnded {
    /// Which.
    #[serde(flatten)]
    pub reload: Unconfirmed,
    /// Why.
    #[schema(example = "it was not confirmed within 120 s")]
    pub reason: String,
}

/// A reload was reverted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadReverted {
    /// Which.
    #[serde(flatten)]
    pub reload: Unconfirmed,
    /// Why.
    #[schema(example = "it was not confirmed within 120 s")]
    pub reason: String,
    /// Who did not revert, and why; `null` if all did.
    #[schema(example = "till/main: no answer within 5 s")]
    pub failed: Option<String>,
    /// Who was told, and how each answered.
    #[serde(default)]
    pub asked: Vec<ReloadAnswer>,
}

/// A component does something else, or does it differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ComponentChanged {
    /// Its name.
    #[schema(example = "web")]
    pub name: String,
    /// What it is doing.
    pub state: ComponentState,
    /// Its process, if one runs.
    #[schema(example = 4711)]
    pub pid: Option<i32>,
    /// What is known of its health.
    pub health: Health,
    /// Why it does not run.
    #[schema(example = "ended with status 3")]
    pub reason: Option<String>,
    /// What it says of itself.
    #[schema(example = "serving 12 customers")]
    pub status: Option<String>,
}

/// A process has connected to the bus, or left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PeerChanged {
    /// The component that it belongs to; `null` for the operator's.
    #[schema(example = "till")]
    pub component: Option<String>,
    /// Which of the component's processes it is, counted from 1; `null` for the operator's.
    #[schema(example = 2)]
    pub generation: Option<u32>,
    /// Its whole name.
    #[schema(example = "till/main")]
    pub peer: String,
    /// Why it left, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "its process ended with status 3")]
    pub reason: Option<String>,
}

/// One process image of the runtime has taken over from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TookOver {
    /// The listener that was measured.
    #[schema(example = "admin")]
    pub listener: String,
    /// For how long no connection to it was accepted, in microseconds.
    #[schema(example = 3200)]
    pub gap_us: Option<u64>,
    /// From the exec to the first accept, in microseconds.
    #[schema(example = 2700)]
    pub exec_to_accept_us: Option<u64>,
}

/// An update has come to a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdateStep {
    /// The name of its ticket.
    #[schema(example = "18c2f1-3")]
    pub id: String,
    /// To a new release, or back.
    pub kind: AttemptKind,
    /// The step.
    #[schema(schema_with = step::schema)]
    pub step: Step,
    /// The release it starts from.
    #[schema(value_type = String, example = "1.0.0")]
    pub from: Version,
    /// The release it goes to.
    #[schema(value_type = String, example = "1.1.0")]
    pub to: Version,
    /// What is being done, for people.
    #[serde(default)]
    #[schema(example = "examining release 1.1.0")]
    pub text: String,
    /// How it ends, if it does.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub end: Option<UpdateEnd>,
}

/// How an update ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdateEnd {
    /// Why it did not succeed.
    #[schema(example = "component web did not start: ended with status 3")]
    pub reason: Option<String>,
    /// The component at fault.
    #[schema(example = "web")]
    pub component: Option<String>,
    /// The last lines printed by what failed.
    #[schema(example = json!(["cannot open prices.json"]))]
    pub output: Vec<String>,
}

/// A step of an update goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UpdateProgress {
    /// The name of its ticket.
    #[schema(example = "18c2f1-3")]
    pub id: String,
    /// The share of the step that is done, 0 to 1.
    #[schema(example = 0.4)]
    pub progress: f64,
    /// What is being done, for people.
    #[serde(default)]
    #[schema(example = "3 s left")]
    pub text: String,
}

/// An update has merged the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigMerged {
    /// The name of its ticket.
    #[schema(example = "18c2f1-3")]
    pub id: String,
    /// The release whose configuration was merged.
    #[schema(value_type = String, example = "1.0.0")]
    pub from: Version,
    /// The release that it was merged into.
    #[schema(value_type = String, example = "1.1.0")]
    pub version: Version,
    /// The files that were not left unchanged.
    #[serde(default)]
    pub files: Vec<MergedFile>,
}

/// A package is arriving.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PackageProgress {
    /// Where it is.
    pub step: ReceptionStep,
    /// The digest of its manifest, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        value_type = Option<String>,
        example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    )]
    pub digest: Option<refit_updater::Digest>,
    /// The release in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "1.1.0")]
    pub version: Option<Version>,
    /// How many compressed bytes there will be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 1_048_576)]
    pub total_bytes: Option<u64>,
    /// How many have arrived and are verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 524_288)]
    pub received_bytes: Option<u64>,
    /// The size of the release on disk, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 4_194_304)]
    pub installed_bytes: Option<u64>,
}

/// A release is good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReleaseChanged {
    /// Its version.
    #[schema(value_type = String, example = "1.1.0")]
    pub version: Version,
    /// What it is now.
    pub state: ReleaseState,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_event_is_read_as_it_was_written() {
        let lines = [
            r#"{"id":1,"event":"bus.state","at":"T","monotonic_ms":5,"data":{"state":"Running"}}"#,
            r#"{"id":2,"event":"update.step","at":"T","data":{"id":"a-1","kind":"update","step":"trial","from":"1.0.0","to":"1.1.0","text":"x"}}"#,
            r#"{"id":3,"event":"update.step","at":"T","data":{"id":"a-1","kind":"update","step":"failed","from":"1.0.0","to":"1.1.0","text":"x","reason":null,"component":null,"output":[]}}"#,
            r#"{"id":4,"event":"package.progress","at":"T","data":{"step":"syncing"}}"#,
        ];
        for line in lines {
            let record: EventRecord = serde_json::from_str(line).expect("an event");
            assert!(!matches!(record.event, Event::Other { .. }), "{line}");
            let written: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(serde_json::to_value(&record).expect("JSON"), written);
        }
    }

    #[test]
    fn an_event_of_another_version_stays_as_it_is() {
        let lines = [
            r#"{"id":1,"event":"moon.phase","at":"T","data":{"phase":"full"}}"#,
            r#"{"id":2,"event":"bus.state","at":"T","data":{"status":"Running"}}"#,
            r#"{"id":3,"event":"moon.rise","at":"T","data":null}"#,
        ];
        for line in lines {
            let record: EventRecord = serde_json::from_str(line).expect("an event");
            assert!(matches!(record.event, Event::Other { .. }), "{line}");
            assert_eq!(serde_json::to_string(&record).expect("JSON"), line);
        }
        // What a newer version says beyond what is known here is passed over.
        let newer = r#"{"id":4,"event":"bus.state","at":"T","new":1,"data":{"state":"Dozing","since":"T"}}"#;
        let record: EventRecord = serde_json::from_str(newer).expect("an event");
        assert_eq!(record.event, Event::BusState(SiteChanged { state: BusState::Other("Dozing".to_owned()) }));
    }
}
