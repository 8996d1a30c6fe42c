//! Servers that keep data, on sockets of their own: one process at a time, so clients meet a restart, and nothing that was
//! acknowledged is lost.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use super::{fails, idle, lacks, late, record};
use crate::appliance::{Appliance, free_port};
use crate::process;
use crate::release::Release;
use crate::wait::{LIMIT, eventually};

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// The pause after a connection that could not be made, or broke.
const PAUSE: Duration = Duration::from_millis(20);

/// A connection of a client.
trait Connection {
    /// Adds a number to what is stored; returns when that was acknowledged.
    fn add(&mut self, number: u64) -> io::Result<()>;
    /// Returns how many of the numbers from 1 to `highest` are stored.
    fn count(&mut self, highest: u64) -> io::Result<u64>;
}

/// Connects a client.
type Connect = fn(SocketAddr) -> io::Result<Box<dyn Connection>>;

fn lost() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

/// Redis: one set of numbers.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn connect(at: SocketAddr) -> io::Result<Box<dyn Connection>> {
        let stream = TcpStream::connect_timeout(&at, ANSWER_MAX)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        Ok(Box::new(Self(BufReader::new(stream))))
    }

    fn ask(&mut self, command: &str) -> io::Result<u64> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        line.trim_end().strip_prefix(':').and_then(|number| number.parse().ok()).ok_or_else(lost)
    }
}

impl Connection for Redis {
    fn add(&mut self, number: u64) -> io::Result<()> {
        self.ask(&format!("SADD numbers {number}")).map(drop)
    }

    fn count(&mut self, _highest: u64) -> io::Result<u64> {
        self.ask("SCARD numbers")
    }
}

/// PostgreSQL: one table of numbers, through the client that comes with it.
struct Postgres {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Postgres {
    fn connect(at: SocketAddr) -> io::Result<Box<dyn Connection>> {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-q", "-A", "-t", "-U", "postgres", "-h", &at.ip().to_string(), "-p", &at.port().to_string()]);
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = psql.spawn()?;
        let answers = BufReader::new(child.stdout.take().ok_or_else(lost)?);
        let mut connection = Self { child, answers };
        connection.ask("CREATE TABLE IF NOT EXISTS numbers (number bigint PRIMARY KEY); SELECT 0;")?;
        Ok(Box::new(connection))
    }

    fn ask(&mut self, command: &str) -> io::Result<u64> {
        let input = self.child.stdin.as_mut().ok_or_else(lost)?;
        input.write_all(format!("{command}\n").as_bytes())?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim_end().parse().map_err(|_no_number| lost())
    }
}

impl Connection for Postgres {
    fn add(&mut self, number: u64) -> io::Result<()> {
        self.ask(&format!("INSERT INTO numbers VALUES ({number}) RETURNING number;")).map(drop)
    }

    fn count(&mut self, highest: u64) -> io::Result<u64> {
        self.ask(&format!("SELECT count(*) FROM numbers WHERE number <= {highest};"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.child.kill().ok(); // ended already is as good
        self.child.wait().ok();
    }
}

/// What a client met.
#[derive(Debug, Default)]
struct Met {
    acknowledged: u64,
    /// Attempts without an answer: connections that were refused or broke.
    failed: u64,
    longest_gap: Duration,
}

/// A client that stores the numbers from 1 on, and connects again when its connection breaks.
struct Client {
    ended: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<Met>,
}

impl Client {
    fn start(connect: Connect, at: SocketAddr) -> Self {
        let (ended, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop, count) = (Arc::clone(&ended), Arc::clone(&acknowledged));
        let thread = thread::spawn(move || {
            let (mut met, mut next, mut last) = (Met::default(), 1, Instant::now());
            let mut connection = None;
            while !stop.load(Ordering::Relaxed) {
                let added = connection.take().map_or_else(|| connect(at), Ok).and_then(|mut open| {
                    open.add(next)?;
                    Ok(open)
                });
                match added {
                    Ok(open) => {
                        connection = Some(open);
                        met.acknowledged += 1;
                        count.store(met.acknowledged, Ordering::Relaxed);
                        met.longest_gap = met.longest_gap.max(last.elapsed());
                        last = Instant::now();
                    }
                    Err(_) => {
                        met.failed += 1;
                        thread::sleep(PAUSE);
                    }
                }
                // What was stored without an answer is not asked for again: it may be there, or not.
                next += 1;
            }
            met
        });
        Self { ended, acknowledged, thread }
    }

    /// Waits for answers from now on.
    fn goes_on(&self) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        eventually(LIMIT, "the client is answered", || self.acknowledged.load(Ordering::Relaxed) > before + 10);
    }

    fn finish(self) -> Met {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client ends")
    }
}

/// A server, and what the journey has to know of it.
struct Server {
    dir: &'static str,
    component: &'static str,
    program: &'static str,
    /// Its configuration, and what it has for its port.
    configuration: (&'static str, &'static str),
    connect: Connect,
}

/// Takes a server through an update, a rollback, and three releases of which one is good, while a client stores numbers.
fn journey(name: &str, server: &Server) {
    let [admin, own] = [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
    let addresses = [("admin", "127.0.0.1:8443", admin)];
    let (path, port) = server.configuration;
    let release = |version: &str| {
        let digits = port.trim_start_matches(|other: char| !other.is_ascii_digit());
        let release = Release::fixture(server.dir, version, &addresses)
            .file("share/release.txt", version)
            .rewritten(|text| text.replace(digits, &own.port().to_string()))
            .changed(path, |text| text.replace(port, &port.replace(digits, &own.port().to_string())));
        // Only root can be another account.
        if geteuid().is_root() {
            release
        } else {
            release.rewritten(|text| text.replace("user = \"postgres\"\n", "\n"))
        }
    };
    let appliance = Appliance::new(&release("1.0.0")).start();
    let client = Client::start(server.connect, own);
    client.goes_on();
    let first = appliance.component_pid(server.component);

    appliance.install(&release("1.1.0"), &[]).ends_with(0);
    client.goes_on();
    assert!(!process::is_alive(first), "one process at a time has the data");
    appliance.refit(&["rollback"]).ends_with(0);
    client.goes_on();

    fails(&appliance, &release("1.2.0").changed(path, |text| format!("{text}\nno_such_setting no\n")), "1.0.0");
    client.goes_on();
    fails(&appliance, &idle(release("1.3.0"), server.program), "1.0.0");
    client.goes_on();
    appliance.install(&late(release("1.4.0"), server.program, 1.5), &[]).ends_with(0);
    client.goes_on();

    let met = client.finish();
    let mut connection = (server.connect)(own).expect("it serves");
    let stored = connection.count(u64::MAX >> 1).expect("it counts");
    assert!(stored >= met.acknowledged, "{stored} are stored: {met:?}");
    record(
        name,
        &format!(
            "| {name} | {} | {} | | {} | {:.2} s |",
            met.acknowledged,
            met.failed,
            stored - met.acknowledged,
            met.longest_gap.as_secs_f64()
        ),
    );
}

#[test]
fn redis_loses_nothing_that_it_acknowledged() {
    let server = Server {
        dir: "redis",
        component: "redis",
        program: "/usr/bin/redis-server",
        configuration: ("config/redis.conf", "port 6379"),
        connect: Redis::connect,
    };
    if !lacks(&["/usr/bin/redis-server"], &[]) {
        journey("Redis", &server);
    }
}

#[test]
fn postgresql_loses_nothing_that_it_acknowledged() {
    let server = Server {
        dir: "postgresql",
        component: "postgresql",
        program: "/usr/lib/postgresql/15/bin/postgres",
        configuration: ("config/postgresql.conf", "port = 5432"),
        connect: Postgres::connect,
    };
    if !lacks(&["/usr/lib/postgresql/15/bin/postgres", "psql"], &[]) {
        journey("PostgreSQL", &server);
    }
}
