//! Every bound on what a peer can do to the runtime. Together they keep the memory of all peers below 160 MiB, if
//! 256 of them were hostile at once: each has a line that it writes, three that wait for it, and one that is being written.

use std::time::Duration;

use refit_base::Rate;

/// The longest line, either way: an argument or an answer is a message, not a file.
pub const LINE_BYTES_MAX: usize = 128 * 1024;
/// How many connections there are at once: each may hold [`QUEUE_BYTES_MAX`] and a line.
pub const PEERS_MAX: usize = 256;
/// How many of them belong to one component, so that one cannot keep out the others.
pub const PEERS_PER_COMPONENT_MAX: usize = 128;
/// How many connections may be without a hello: the oldest gives way to a new one.
pub const NAMELESS_MAX: usize = 64;
/// How long a connection may take to say hello: it is the first thing that a peer does.
pub const HELLO_MAX: Duration = Duration::from_secs(5);
/// How many bytes of calls may wait for a peer to read them: two of the longest lines. One more of them fits for all else.
pub const QUEUE_BYTES_MAX: usize = 2 * LINE_BYTES_MAX;
/// How long a full queue may stand still before the peer is cut off; until then calls of it fail.
pub const SLOW_MAX: Duration = Duration::from_secs(1);
/// How much may wait for a peer to read it, in messages.
pub const QUEUE_MESSAGES_MAX: usize = 1024;
/// How many calls a peer may have that it did not answer.
pub const CALLS_MAX: usize = 64;
/// How many publications and waits of one peer may be under way.
pub const WORK_MAX: usize = 64;
/// How many publications of all peers may be under way.
pub const PUBLICATIONS_MAX: usize = 1024;
/// How many channels a peer may listen to: all that an appliance has.
pub const SUBSCRIPTIONS_MAX: usize = 64;
/// The longest name of a peer.
pub const NAME_BYTES_MAX: usize = 64;
/// The longest name of a channel.
pub const CHANNEL_BYTES_MAX: usize = 64;
/// The longest text of a log entry; a longer one is cut.
pub const LOG_CHARS_MAX: usize = 2048;
/// The furthest priority in either direction: before and after it are the runtime's own.
pub const PRIORITY_MAX: i32 = 1_000_000;
/// The longest time limit that a peer may set for calls of itself: an exit would wait for it.
pub const CALL_LIMIT_MAX: Duration = Duration::from_secs(300);
/// The longest wait for a state or a ticket; who wants to wait longer asks again.
pub const WAIT_MAX: Duration = Duration::from_secs(600);
/// How long a connection that ends may take to read what was sent before: a line or two.
pub const FLUSH_MAX: Duration = Duration::from_millis(500);
/// How long a process that is ending may take until it is known how.
pub const END_KNOWN_MAX: Duration = Duration::from_secs(2);
/// How long a hello waits for its name when the same process still has it: a connection that broke is noticed soon.
pub const NAME_WAIT_MAX: Duration = Duration::from_secs(1);

/// Messages of a peer; who sends more is read more slowly.
pub const MESSAGES: Rate = Rate { per_second: 20_000, burst: 20_000 };
/// Requests; who makes more is refused.
pub const REQUESTS: Rate = Rate { per_second: 10, burst: 50 };
/// Log entries; what is more is dropped and counted.
pub const LOGS: Rate = Rate { per_second: 100, burst: 200 };
/// Hellos of one component, or of the operator: a hundred may come at once when the runtime was replaced.
pub const HELLOS: Rate = Rate { per_second: 20, burst: 256 };
/// Lines on the log about connections that were refused; what is more is counted.
pub const WARNINGS: Rate = Rate { per_second: 5, burst: 50 };
/// What was refused or dropped; who goes on is cut off.
pub const MISTAKES: Rate = Rate { per_second: 50, burst: 1000 };
