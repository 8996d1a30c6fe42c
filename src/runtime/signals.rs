//! Signals end here: each becomes a request, and no component ever learns a number.

use std::io;
use std::sync::Arc;

use refit_bus::{Bus, Origin, Request};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::logs::Logs;
use crate::update::Manager;

/// Listens until it is dropped. `now` is cancelled by the third request to end.
///
/// # Errors
/// The handlers cannot be installed.
pub(super) fn listen(
    bus: Bus,
    manager: Arc<Manager>,
    logs: Arc<Logs>,
    now: CancellationToken,
) -> io::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut user1 = signal(SignalKind::user_defined1())?;
    let mut user2 = signal(SignalKind::user_defined2())?;
    // A file that may not become larger is an error of its writer, which says so; without a handler it would be the end.
    let mut too_large = signal(SignalKind::from_raw(nix::libc::SIGXFSZ))?;
    Ok(async move {
        let mut asked = 0;
        let origin = |name: &str| Origin(format!("signal {name}"));
        loop {
            // Cancel-safe: each only waits for its signal.
            tokio::select! {
                _ = terminate.recv() => end(&bus, &now, &mut asked, origin("TERM")),
                _ = interrupt.recv() => end(&bus, &now, &mut asked, origin("INT")),
                _ = hang_up.recv() => drop(bus.request(Request::Reload, origin("HUP"))),
                _ = user1.recv() => logs.reopen(),
                _ = too_large.recv() => {}
                _ = user2.recv() => {
                    // A task of its own: what examines a program must not hold up a signal that ends.
                    let (asked, bus, origin) = (Arc::clone(&manager), bus.clone(), origin("USR2"));
                    manager.spawn(async move { asked.restart_or_log(&bus, origin).await });
                }
            }
        }
    })
}

/// The first asks, the second shortens the deadlines, the third ends now.
fn end(bus: &Bus, now: &CancellationToken, asked: &mut u32, origin: Origin) {
    *asked += 1;
    match *asked {
        1 => drop(bus.request(Request::Exit, origin)),
        2 => bus.hurry(),
        _ => now.cancel(),
    }
}
