//! `refit keys`: the vendor's signing keys and the chain of roots that names them.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use refit_author::keys::{self, KeyRole, KeyStatus, Keys as SigningKeys, KeysError, Rotated, Rotation, Setup};
use refit_base::{Exit, Report, Reported};
use serde::Serialize;
use zeroize::Zeroizing;

use super::arguments::{DAYS_MAX, in_days, number_in};
use super::context::Context;
use super::said::in_json;
use super::table::print_table;
use super::{passphrase, signing_keys};

/// How long a root is good when nobody says: rotating it is work.
const ROOT_EXPIRES_DAYS_DEFAULT: i64 = 10 * 365;
/// Keys of a role: more people than that do not meet.
const KEYS_MAX: u64 = 16;
/// What follows a key outside when it is to be made after all.
const MADE: &str = "none";
#[derive(Debug, clap::Subcommand)]
pub(super) enum Keys {
    /// Make keys and the root of trust that names them.
    Init(Init),
    /// Make the next root, with new keys, signed by the old ones.
    Rotate(Rotate),
    /// Make the next root with the same keys and a later date.
    Renew(Renew),
    /// Show the roles and their keys.
    Show {
        /// The directory of the keys.
        dir: PathBuf,
        /// Further directories with keys.
        #[arg(long, value_name = "DIR")]
        with: Vec<PathBuf>,
    },
}

/// How keys are made.
#[derive(Debug, clap::Args)]
pub(super) struct KeyOptions {
    /// Where the keys of the root role go, if not beside the others (or, in a rotation, to those they replace): a medium
    /// that is put away.
    #[arg(long, value_name = "DIR")]
    offline_root: Option<PathBuf>,
    /// Protect new keys with a passphrase, from REFIT_KEY_PASSPHRASE_FILE or the terminal; a rotation does so without
    /// being told if the old ones have one.
    #[arg(long)]
    encrypt: bool,
    /// Use the key that FILE (.key.toml) describes, behind a command, for this role and for no other; may be repeated, for
    /// further roles and for further keys of one. A rotation makes no key for a role that had one outside, unless it is
    /// told to by ROLE=none.
    #[arg(long, value_name = "ROLE=FILE", value_parser = parse_external)]
    external: Vec<(KeyRole, Option<PathBuf>)>,
    /// How many days the root is good.
    #[arg(long, default_value_t = ROOT_EXPIRES_DAYS_DEFAULT, value_parser = number_in(1..=DAYS_MAX))]
    expires_days: i64,
}

#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// Where to; it must not hold keys yet.
    dir: PathBuf,
    /// How many keys of the root role must sign a newer root.
    #[arg(long, default_value_t = 1, value_parser = number_in(1..=KEYS_MAX))]
    threshold: u64,
    /// How many keys are made for the root role; one more than the threshold if that is above 1, so that one may be lost.
    #[arg(long, value_parser = number_in(1..=KEYS_MAX))]
    root_keys: Option<u64>,
    /// Give timestamp, snapshot and targets keys of their own.
    #[arg(long)]
    separate_roles: bool,
    #[command(flatten)]
    options: KeyOptions,
}

#[derive(Debug, clap::Args)]
pub(super) struct Rotate {
    /// The directory of the keys.
    dir: PathBuf,
    /// The role that gets new keys; may be repeated. All of them if none is named.
    #[arg(long, value_name = "ROLE", value_parser = clap::builder::PossibleValuesParser::new(keys::role_names()))]
    role: Vec<String>,
    /// How many keys of the root role must sign a newer root from now on.
    #[arg(long, value_parser = number_in(1..=KEYS_MAX))]
    threshold: Option<u64>,
    /// How many keys are made for the root role, if not as many as it had.
    #[arg(long, value_parser = number_in(1..=KEYS_MAX))]
    root_keys: Option<u64>,
    /// A further directory with keys; may be repeated.
    #[arg(long, value_name = "DIR")]
    with: Vec<PathBuf>,
    #[command(flatten)]
    options: KeyOptions,
}

#[derive(Debug, clap::Args)]
pub(super) struct Renew {
    /// The directory of the keys.
    dir: PathBuf,
    /// A further directory with keys, such as that of an offline root; may be repeated.
    #[arg(long, value_name = "DIR")]
    with: Vec<PathBuf>,
    /// How many days the root is good.
    #[arg(long, default_value_t = ROOT_EXPIRES_DAYS_DEFAULT, value_parser = number_in(1..=DAYS_MAX))]
    expires_days: i64,
}

/// Why no keys were made.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyCommandError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("cannot read the new passphrase")]
    Passphrase(#[source] io::Error),
    #[error("there is no passphrase for the new keys")]
    NoPassphrase,
    #[error("--external {role}={MADE} says that a key is made")]
    Made { role: KeyRole, why: &'static str },
}

impl Reported for KeyCommandError {
    fn report(&self) -> Report<'_> {
        match self {
            Self::Keys(error) => error.report(),
            Self::Made { why, .. } => Report::new("keys_unusable", Exit::Usage, why),
            Self::Passphrase(_) | Self::NoPassphrase => Report::new(
                "keys_unusable",
                Exit::Config,
                "put it into a file and name that in REFIT_KEY_PASSPHRASE_FILE, or use a terminal",
            ),
        }
    }
}

fn parse_external(text: &str) -> Result<(KeyRole, Option<PathBuf>), String> {
    let (role, file) = text.split_once('=').ok_or("ROLE=FILE is wanted")?;
    let names = || keys::role_names().collect::<Vec<_>>().join(", ");
    let role = keys::role_named(role).ok_or_else(|| format!("{role:?} is no role; there are {}", names()))?;
    Ok((role, (file != MADE).then(|| PathBuf::from(file))))
}

pub(super) fn run(context: &Context, keys: &Keys) -> Exit {
    let done = match keys {
        Keys::Init(arguments) => init(context, arguments),
        Keys::Rotate(arguments) => rotate(context, arguments),
        Keys::Renew(arguments) => renew(context, arguments),
        Keys::Show { dir, with } => show(context, dir, with),
    };
    match done {
        Ok(()) => Exit::Done,
        Err(error) => context.fail(&error),
    }
}

impl KeyOptions {
    /// Returns the passphrase for new keys, if they are to have one. `locked`: the old ones do.
    fn passphrase(&self, context: &Context, locked: bool) -> Result<Option<Zeroizing<String>>, KeyCommandError> {
        if !self.encrypt && !locked {
            return Ok(None);
        }
        let found = passphrase::choose(context).map_err(KeyCommandError::Passphrase)?;
        found.map(Some).ok_or(KeyCommandError::NoPassphrase)
    }

    /// Returns the keys outside by role, and the roles that are to have none.
    fn external_keys(&self, context: &Context) -> Result<Vec<(KeyRole, Option<PathBuf>)>, KeyCommandError> {
        let has_file = |role| self.external.iter().any(|(named, file)| *named == role && file.is_some());
        if let Some((role, _)) = self.external.iter().find(|(role, file)| file.is_none() && has_file(*role)) {
            return Err(KeyCommandError::Made { role: *role, why: "name no file for that role, or leave it out" });
        }
        Ok(self.external.iter().map(|(role, file)| (*role, file.as_ref().map(|file| context.path(file)))).collect())
    }
}

fn init(context: &Context, init: &Init) -> Result<(), KeyCommandError> {
    let dir = context.path(&init.dir);
    let spare = u64::from(init.threshold > 1);
    let mut outside = Vec::new();
    for (role, file) in init.options.external_keys(context)? {
        let why = "leave it out: the first keys are made unless a file is named";
        outside.push((role, file.ok_or(KeyCommandError::Made { role, why })?));
    }
    let setup = Setup {
        root_expires: in_days(init.options.expires_days),
        root_keys: init.root_keys.unwrap_or(init.threshold + spare),
        root_threshold: init.threshold,
        separate_roles: init.separate_roles,
        root_dir: init.options.offline_root.as_ref().map(|dir| context.path(dir)),
        outside,
        passphrase: init.options.passphrase(context, false)?,
    };
    let made = SigningKeys::create(&dir, &setup)?;
    let root = dir.join("1.root.json");
    if context.json {
        context.print(&in_json(&Made { keys: &dir, root: &root, roles: &made.status() }));
    }
    print_roles(context, &made.status());
    context.print_text("keep the keys secret and keep copies: without the root's, nobody can replace a lost one");
    if let Some(offline) = setup.root_dir.as_ref().filter(|dir| holds_root(dir, &made.status())) {
        context.print_text(&format!("put {} away; it is needed again to rotate keys", offline.display()));
    }
    context.print_text(&format!("appliances trust {}; ship it with them", root.display()));
    Ok(())
}

/// Keys that were made.
#[derive(Serialize)]
struct Made<'a> {
    keys: &'a Path,
    root: &'a Path,
    roles: &'a [KeyStatus],
}

/// Keys that were rotated.
#[derive(Serialize)]
struct Renewed<'a> {
    root: &'a Path,
    version: u64,
    made: &'a [PathBuf],
    retired: &'a [PathBuf],
    roles: &'a [KeyStatus],
}

/// Keys as they are.
#[derive(Serialize)]
struct Shown<'a> {
    root: RootShown,
    roles: &'a [KeyStatus],
}

#[derive(Serialize)]
struct RootShown {
    version: u64,
    expires: jiff::Timestamp,
}

/// Returns whether a key of the root role lies in `dir`: none does if all of them are outside.
fn holds_root(dir: &Path, roles: &[KeyStatus]) -> bool {
    let root = roles.iter().filter(|status| status.role == "root");
    root.flat_map(|status| &status.keys).any(|(_, file)| file.as_ref().is_some_and(|file| file.starts_with(dir)))
}

fn print_roles(context: &Context, roles: &[KeyStatus]) {
    for role in roles {
        for (id, file) in &role.keys {
            let file = file.as_ref().map_or_else(|| "elsewhere".to_owned(), |file| file.display().to_string());
            context.print_text(&format!(
                "{:<10} {} of {}  {id:.12}  {file}",
                role.role,
                role.threshold,
                role.keys.len()
            ));
        }
    }
}

fn rotate(context: &Context, rotate: &Rotate) -> Result<(), KeyCommandError> {
    let mut with = rotate.with.clone();
    with.extend(rotate.options.offline_root.clone().filter(|dir| context.path(dir).is_dir()));
    let keys = signing_keys::open(context, &rotate.dir, &with)?;
    let roles: BTreeSet<&'static str> = keys::role_names()
        .filter(|name| rotate.role.is_empty() || rotate.role.iter().any(|role| role == name))
        .collect();
    let rotation = Rotation {
        roles,
        root_expires: in_days(rotate.options.expires_days),
        root_keys: rotate.root_keys,
        root_threshold: rotate.threshold,
        root_dir: rotate.options.offline_root.as_ref().map(|dir| context.path(dir)),
        outside: rotate.options.external_keys(context)?,
        passphrase: rotate.options.passphrase(context, keys.are_locked())?,
    };
    let (keys, rotated) = keys.rotate(&rotation)?;
    print_rotated(context, &keys, &rotated);
    Ok(())
}

fn renew(context: &Context, renew: &Renew) -> Result<(), KeyCommandError> {
    let keys = signing_keys::open(context, &renew.dir, &renew.with)?;
    let rotation = Rotation {
        roles: BTreeSet::new(),
        root_expires: in_days(renew.expires_days),
        root_keys: None,
        root_threshold: None,
        root_dir: None,
        outside: Vec::new(),
        passphrase: None,
    };
    let (keys, rotated) = keys.rotate(&rotation)?;
    print_rotated(context, &keys, &rotated);
    Ok(())
}

fn print_rotated(context: &Context, keys: &SigningKeys, rotated: &Rotated) {
    let roles = keys.status();
    if context.json {
        let Rotated { root, version, made, retired } = rotated;
        context.print(&in_json(&Renewed { root, version: *version, made, retired, roles: &roles }));
    }
    for file in &rotated.made {
        context.print_text(&format!("made     {}", file.display()));
    }
    for file in &rotated.retired {
        context.print_text(&format!("retired  {}", file.display()));
    }
    print_roles(context, &roles);
    context.print_text(&format!(
        "root {} is {}; appliances get it with the next package or from the repository after `refit repo refresh`",
        rotated.version,
        rotated.root.display()
    ));
}

fn show(context: &Context, dir: &Path, with: &[PathBuf]) -> Result<(), KeyCommandError> {
    let keys = signing_keys::open(context, dir, with)?;
    let (version, expires) = keys.root_version();
    let roles = keys.status();
    if context.json {
        context.print(&in_json(&Shown { root: RootShown { version, expires }, roles: &roles }));
        return Ok(());
    }
    context.print(&format!("root {version}, good until {expires}"));
    let rows: Vec<Vec<String>> = roles
        .iter()
        .flat_map(|role| {
            role.keys.iter().map(|(id, file)| {
                let needed = format!("{} of {}", role.threshold, role.keys.len());
                let file = file.as_ref().map_or_else(|| "not here".to_owned(), |file| file.display().to_string());
                vec![role.role.to_owned(), needed, id.chars().take(12).collect(), file]
            })
        })
        .collect();
    print_table(context, &["ROLE", "NEEDS", "KEY", "FILE"], &rows);
    Ok(())
}
