//! The one language in which a component's texts name what only the machine knows.
//!
//! `${REFIT_DATA}` and the other variables that Refit gives a component, `${listener.NAME}` for the number of a listener's
//! descriptor, and `$$` for a dollar. Any other dollar stays as it is, so that a shell's own `$1` and `${HOME}` mean what they
//! always did. What a configuration says is kept as it was written; it is filled in when a process starts.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};

/// A variable with which every component begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variable {
    /// The home.
    Home,
    /// The API's socket.
    Socket,
    /// The socket of the bus.
    Bus,
    /// The proof that a process is the component.
    Token,
    /// The component's name.
    Component,
    /// The release's version.
    Version,
    /// The release's directory.
    Release,
    /// The live configuration.
    Config,
    /// The components' data.
    Data,
}

/// All of them.
pub const VARIABLES: [Variable; 9] = [
    Variable::Home,
    Variable::Socket,
    Variable::Bus,
    Variable::Token,
    Variable::Component,
    Variable::Version,
    Variable::Release,
    Variable::Config,
    Variable::Data,
];

impl Variable {
    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Home => "REFIT_HOME",
            Self::Socket => "REFIT_SOCKET",
            Self::Bus => "REFIT_BUS",
            Self::Token => "REFIT_TOKEN",
            Self::Component => "REFIT_COMPONENT",
            Self::Version => "REFIT_VERSION",
            Self::Release => "REFIT_RELEASE",
            Self::Config => "REFIT_CONFIG",
            Self::Data => "REFIT_DATA",
        }
    }

    /// Returns whether one of them has this name.
    pub fn is_one(name: &str) -> bool {
        VARIABLES.iter().any(|variable| variable.name() == name)
    }
}

/// Something that a text refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference<'a> {
    /// A variable whose name begins with `REFIT_`.
    Variable(&'a str),
    /// A listener, by name.
    Listener(&'a str),
}

impl std::fmt::Display for Reference<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "${{{name}}}"),
            Self::Listener(name) => write!(f, "${{listener.{name}}}"),
        }
    }
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    Reference(Reference<'a>),
    /// A reference that has no end.
    Open(&'a str),
}

/// Returns the parts of `text`, in order.
fn parts(text: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (part, length) = match rest.find('$') {
            Some(0) => dollar(rest),
            Some(at) => (Part::Text(&rest[..at]), at),
            None => (Part::Text(rest), rest.len()),
        };
        rest = &rest[length..];
        Some(part)
    })
}

/// Returns what the dollar at the beginning of `text` means, and how many bytes belong to it.
fn dollar(text: &str) -> (Part<'_>, usize) {
    let plain = (Part::Text("$"), 1);
    if text.starts_with("$$") {
        return (Part::Text("$"), 2);
    }
    let Some(inner) = text.strip_prefix("${") else { return plain };
    let is_ours = inner.starts_with("REFIT_") || inner.starts_with("listener.");
    let Some(end) = inner.find('}') else {
        return if is_ours { (Part::Open(text), text.len()) } else { plain };
    };
    let name = &inner[..end];
    let length = end + "${}".len();
    if let Some(listener) = name.strip_prefix("listener.") {
        return (Part::Reference(Reference::Listener(listener)), length);
    }
    // `${REFIT_DATA:-x}` and the like are a shell's.
    if name.starts_with("REFIT_") && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return (Part::Reference(Reference::Variable(name)), length);
    }
    plain
}

/// Returns `text` with what `value` says in place of each reference; one of which it says nothing stays as it is.
pub fn expand(text: &str, value: impl Fn(Reference<'_>) -> Option<OsString>) -> OsString {
    let mut expanded = OsString::with_capacity(text.len());
    for part in parts(text) {
        match part {
            Part::Text(text) | Part::Open(text) => expanded.push(text),
            Part::Reference(reference) => {
                expanded.push(value(reference).unwrap_or_else(|| reference.to_string().into()));
            }
        }
    }
    expanded
}

/// Returns `text` as far as it is known before anything runs, with `release` as the release's directory; `None` if it refers to
/// anything else.
pub fn expand_release(text: &str, release: &OsStr) -> Option<OsString> {
    let is_known = |part: Part<'_>| match part {
        Part::Text(_) => true,
        Part::Reference(reference) => reference == Reference::Variable(Variable::Release.name()),
        Part::Open(_) => false,
    };
    parts(text).all(is_known).then(|| expand(text, |_| Some(release.to_owned())))
}

/// Returns the path below the release of a program that is packed with it; a name that is looked for on `PATH` as it is.
pub fn packed_program(word: &str) -> Cow<'_, str> {
    match expand_release(word, OsStr::new(".")).map(OsString::into_string) {
        Some(Ok(path)) => Cow::Owned(path.strip_prefix("./").unwrap_or(&path).to_owned()),
        Some(Err(_)) | None => Cow::Borrowed(word),
    }
}

/// Where a text stands, which decides what it may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The command of a process that gets the listeners.
    Command,
    /// A command beside the process, which gets none.
    HealthCommand,
    /// A value of the environment, or a directory.
    Value,
}

/// What the texts of one component may refer to.
#[derive(Debug)]
pub(super) struct Names<'a> {
    /// The component's name.
    pub(super) component: &'a str,
    /// Its listeners.
    pub(super) listeners: &'a [String],
    /// The variables of its own `env`, of which those that look like Refit's count in a command.
    pub(super) own: Vec<&'a str>,
}

impl Names<'_> {
    /// Checks that everything is there that `text` refers to.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn check(&self, text: &str, place: Place) -> Result<(), String> {
        for part in parts(text) {
            match part {
                Part::Text(_) => {}
                Part::Open(text) => return Err(format!("{text:?} has no closing brace; write $$ for a dollar")),
                Part::Reference(Reference::Variable(name)) => self.check_variable(name, place)?,
                Part::Reference(Reference::Listener(name)) => self.check_listener(name, place)?,
            }
        }
        Ok(())
    }

    fn check_variable(&self, name: &str, place: Place) -> Result<(), String> {
        // Every account of the machine sees a command line.
        let token = Variable::Token.name();
        if name == token && place != Place::Value {
            return Err(format!(
                "every account of the machine could read ${{{name}}} in a command line: the program finds it in its environment"
            ));
        }
        let own = self.own.iter().copied().filter(|own| own.starts_with("REFIT_") && place != Place::Value);
        let mut known: Vec<&str> = VARIABLES.map(Variable::name).into_iter().chain(own).collect();
        known.retain(|known| *known != token || place == Place::Value);
        if known.contains(&name) {
            return Ok(());
        }
        known.sort_unstable();
        let known: Vec<String> = known.into_iter().map(|name| format!("${{{name}}}")).collect();
        Err(format!("there is no ${{{name}}}: use one of {}; write $$ for a dollar", known.join(", ")))
    }

    fn check_listener(&self, name: &str, place: Place) -> Result<(), String> {
        let Self { component, listeners, .. } = self;
        if place == Place::HealthCommand {
            return Err(format!("a health command gets no listeners: ${{listener.{name}}} is not there"));
        }
        if listeners.iter().any(|listener| listener == name) {
            return Ok(());
        }
        if listeners.is_empty() {
            let what = format!("there is no ${{listener.{name}}}: the component {component:?} has no listeners");
            return Err(what);
        }
        let known: Vec<String> = listeners.iter().map(|name| format!("${{listener.{name}}}")).collect();
        Err(format!("there is no ${{listener.{name}}}: the component {component:?} has {}", known.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> String {
        let value = |reference: Reference<'_>| match reference {
            Reference::Variable("REFIT_DATA") => Some("/d$$ata".into()),
            Reference::Variable(_) => None,
            Reference::Listener(name) => Some(format!("{}", 3 + name.len()).into()),
        };
        expand(text, value).into_string().expect("text")
    }

    #[test]
    fn every_reference_is_filled_in_once_and_every_other_dollar_stays() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("${REFIT_DATA}", "/d$$ata"),
            ("a${REFIT_DATA}/b${REFIT_DATA}", "a/d$$ata/b/d$$ata"),
            ("fd://${listener.http}", "fd://7"),
            ("$$", "$"),
            ("$$$$", "$$"),
            ("$${REFIT_DATA}", "${REFIT_DATA}"),
            ("$$${REFIT_DATA}", "$/d$$ata"),
            ("$", "$"),
            ("5$", "5$"),
            ("$HOME ${HOME} $1 $(id) ${1:-x} ${}", "$HOME ${HOME} $1 $(id) ${1:-x} ${}"),
            ("${REFIT_DATA:-x} ${REFIT_DATA%/}", "${REFIT_DATA:-x} ${REFIT_DATA%/}"),
            ("$REFIT_DATA", "$REFIT_DATA"),
            ("${ REFIT_DATA }", "${ REFIT_DATA }"),
            ("${refit_data} ${Listener.x}", "${refit_data} ${Listener.x}"),
            ("${HOME", "${HOME"),
            ("größe ${REFIT_DATA} ü$ü", "größe /d$$ata ü$ü"),
            ("${REFIT_OTHER}", "${REFIT_OTHER}"),
        ] {
            assert_eq!(expanded(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_with_what_is() {
        let listeners = ["http".to_owned(), "https".to_owned()];
        let web = Names { component: "web", listeners: &listeners, own: vec!["REFIT_MINE", "OTHER"] };
        let bare = Names { component: "db", listeners: &[], own: Vec::new() };
        use Place::{Command, HealthCommand, Value};
        for (names, text, place, expected) in [
            (&web, "${REFIT_DATA} ${listener.http}${listener.https} $x ${x}", Command, None),
            (&web, "${REFIT_DATA} ${listener.http} ${REFIT_TOKEN}", Value, None),
            (&web, "${REFIT_DATA}", HealthCommand, None),
            (&web, "${REFIT_MINE}", Command, None),
            (
                &web,
                "${REFIT_DTA}",
                Command,
                Some("there is no ${REFIT_DTA}: use one of ${REFIT_BUS}, ${REFIT_COMPONENT}, "),
            ),
            (
                &web,
                "${REFIT_DTA}",
                Command,
                Some("${REFIT_MINE}, ${REFIT_RELEASE}, ${REFIT_SOCKET}, ${REFIT_VERSION}; write $$ "),
            ),
            (&web, "${REFIT_MINE}", Value, Some("there is no ${REFIT_MINE}: use one of ")),
            (&web, "${REFIT_}", Value, Some("there is no ${REFIT_}: use one of ")),
            (&web, "${REFIT_TOKEN}", Command, Some("every account of the machine could read ${REFIT_TOKEN}")),
            (&web, "${listener.htp}", Value, Some("the component \"web\" has ${listener.http}, ${listener.https}")),
            (&web, "${listener.}", Command, Some("there is no ${listener.}: ")),
            (&web, "${listener.http}", HealthCommand, Some("a health command gets no listeners")),
            (&bare, "${listener.http}", Command, Some("the component \"db\" has no listeners")),
            (&web, "x${REFIT_DATA", Command, Some("\"${REFIT_DATA\" has no closing brace")),
            (&web, "${listener.http", Value, Some("has no closing brace")),
        ] {
            let found = names.check(text, place);
            match (expected, found) {
                (None, Ok(())) => {}
                (Some(expected), Err(found)) => assert!(found.contains(expected), "{text}: {found}"),
                (None | Some(_), found) => assert_eq!(found.err().as_deref(), expected, "{text}"),
            }
        }
    }

    #[test]
    fn what_is_known_before_anything_runs_is_below_the_release() {
        let below = |text| expand_release(text, OsStr::new("/r")).map(|text| text.into_string().expect("text"));
        assert_eq!(below("${REFIT_RELEASE}/bin/x").as_deref(), Some("/r/bin/x"));
        assert_eq!(below("bin/$$x").as_deref(), Some("bin/$x"));
        assert_eq!(below("${REFIT_DATA}/bin/x"), None);
        for (word, path) in [
            ("${REFIT_RELEASE}/bin/x", "bin/x"),
            ("bin/x", "bin/x"),
            ("./bin/x", "bin/x"),
            ("python3", "python3"),
            ("${REFIT_DATA}/x", "${REFIT_DATA}/x"),
        ] {
            assert_eq!(packed_program(word), path, "{word}");
        }
    }
}
