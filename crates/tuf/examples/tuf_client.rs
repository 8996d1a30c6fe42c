//! The client that the public TUF conformance suite drives: `init`, `refresh` and `download`, as its CLIENT-CLI document
//! describes them. It is the client that verifies packages and repositories, with files and HTTP around it.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use refit_tuf::{Client, Dates, Fetch, MetadataStore, SameVersion, Target, TufError};
use reqwest::{StatusCode, Url};
use tempfile::NamedTempFile;
use tokio::runtime::Runtime;

/// Bytes of an artifact that nobody gave a length.
const ARTIFACT_BYTES_MAX: u64 = 64 << 20;

/// The command line.
#[derive(Default)]
struct Arguments {
    metadata_dir: PathBuf,
    metadata_url: Option<String>,
    target_names: Vec<String>,
    target_base_url: Option<String>,
    target_dir: PathBuf,
    command: Vec<String>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut parsed = Self::default();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--metadata-dir" => parsed.metadata_dir = value()?.into(),
                "--metadata-url" => parsed.metadata_url = Some(value()?),
                "--target-name" => parsed.target_names.push(value()?),
                "--target-base-url" => parsed.target_base_url = Some(value()?),
                "--target-dir" => parsed.target_dir = value()?.into(),
                _command => parsed.command.push(word),
            }
        }
        Ok(parsed)
    }
}

/// Files on a web server.
struct Web {
    runtime: Runtime,
    client: reqwest::Client,
    metadata: Url,
}

impl Web {
    fn new(metadata: &str) -> Result<Self, Box<dyn Error>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // The suite serves plain HTTP on the loopback interface: no certificates are read.
        let client = reqwest::Client::builder().tls_certs_only([]).build()?;
        Ok(Self { runtime, client, metadata: base(metadata)? })
    }

    fn get(&self, url: Url, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        self.runtime.block_on(async {
            let mut answer = self.client.get(url).send().await.map_err(io::Error::other)?;
            if answer.status() == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            answer = answer.error_for_status().map_err(io::Error::other)?;
            let mut bytes = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(io::Error::other)? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 > bytes_max {
                    return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {bytes_max} bytes")));
                }
            }
            Ok(Some(bytes))
        })
    }
}

impl Fetch for Web {
    fn metadata(&mut self, name: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        // The name may begin with what looks like a scheme; it is a file's name in any case.
        let url = self.metadata.join(&format!("./{name}")).map_err(io::Error::other)?;
        self.get(url, bytes_max)
    }
}

/// Accepted metadata in a directory.
struct Files(PathBuf);

impl MetadataStore for Files {
    fn get(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.0.join(format!("{name}.json"))) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        replace(&self.0, &format!("{name}.json"), bytes)
    }
}

/// Replaces `dir/name` by one rename. Nothing is synced: the suite does not cut the power.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.persist(dir.join(name)).map(drop).map_err(|failed| failed.error)
}

/// Returns `url` as a directory.
fn base(url: &str) -> Result<Url, Box<dyn Error>> {
    Ok(Url::parse(&format!("{}/", url.trim_end_matches('/')))?)
}

/// Returns the name in the directory of artifacts of `target`: one file for one target, whatever its name.
fn artifact_name(target: &str) -> String {
    target.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Downloads a target, unless the right one is there already.
fn download(
    web: &Web,
    dir: &Path,
    base_url: &Url,
    consistent: bool,
    name: &str,
    target: &Target,
) -> Result<(), Box<dyn Error>> {
    let file = artifact_name(name);
    if fs::read(dir.join(&file)).is_ok_and(|bytes| target.check(name, &bytes).is_ok()) {
        return Ok(());
    }
    let path = if consistent {
        target.consistent_path(name).ok_or_else(|| TufError::NoDigest { name: name.to_owned() })?
    } else {
        name.to_owned()
    };
    let url = base_url.join(&format!("./{path}"))?;
    let bytes = web.get(url, target.length.min(ARTIFACT_BYTES_MAX))?;
    let bytes = bytes.ok_or_else(|| TufError::Missing { name: name.to_owned() })?;
    target.check(name, &bytes)?;
    replace(dir, &file, &bytes)?;
    Ok(())
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let command: Vec<&str> = arguments.command.iter().map(String::as_str).collect();
    if let ["init", root] = command.as_slice() {
        replace(&arguments.metadata_dir, "root.json", &fs::read(root)?)?;
        return Ok(());
    }
    let url = arguments.metadata_url.as_deref().ok_or("--metadata-url is missing")?;
    let web = Web::new(url)?;
    let dates = Dates::Enforced(jiff::Timestamp::now());
    let store = Files(arguments.metadata_dir.clone());
    let mut client = Client::new(web, store, dates, SameVersion::Keep)?;
    client.refresh()?;
    match command.as_slice() {
        ["refresh"] => Ok(()),
        ["download"] => {
            let targets = base(arguments.target_base_url.as_deref().ok_or("--target-base-url is missing")?)?;
            for name in &arguments.target_names {
                let target = client.target(name)?;
                let consistent = client.consistent_snapshot();
                download(client.fetch_mut(), &arguments.target_dir, &targets, consistent, name, &target)?;
            }
            Ok(())
        }
        other => Err(format!("unknown command {other:?}").into()),
    }
}

fn main() -> ExitCode {
    let outcome = Arguments::parse(std::env::args().skip(1)).and_then(|arguments| run(&arguments));
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    eprintln!("tuf_client: {text}");
    ExitCode::FAILURE
}
