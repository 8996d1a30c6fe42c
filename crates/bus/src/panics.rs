//! Where a panic came from: what is caught has only its message, and people need the line.
//!
//! A hook beside the one that is there already notes the place: for the thread that panics, and for the task, whose end is read by
//! another thread. Whoever sets a hook of his own afterwards loses the places and nothing else.

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{self, PanicHookInfo};
use std::sync::{Mutex, Once};

use refit_base::lock;
use tokio::task::{self, Id, JoinError};

use crate::failure::Failure;

/// So many places of tasks are kept: each is taken when the end of its task is read, which follows at once.
const PLACES_MAX: usize = 64;

thread_local! {
    /// Where this thread panicked last.
    static HERE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Where tasks panicked whose end nobody has read yet, oldest first.
static TASKS: Mutex<VecDeque<(Id, String)>> = Mutex::new(VecDeque::new());

/// Has the places of panics noted from now on, in this process. Once is enough.
pub(crate) fn note_places() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            note(info);
            before(info);
        }));
    });
}

fn note(info: &PanicHookInfo<'_>) {
    let Some(place) = info.location().map(|at| format!("{}:{}", at.file(), at.line())) else { return };
    if let Some(id) = task::try_id() {
        let mut tasks = lock(&TASKS);
        if tasks.len() >= PLACES_MAX {
            tasks.pop_front();
        }
        tasks.push_back((id, place.clone()));
    }
    // A thread that is ending has no place for it any more.
    drop(HERE.try_with(|here| here.replace(Some(place))));
}

/// Returns the failure that a panic is, which this thread has just caught.
pub(crate) fn panic_failure(panic: &(dyn Any + Send)) -> Failure {
    let place = HERE.try_with(RefCell::take).ok().flatten();
    if let Some(id) = task::try_id() {
        drop(take_of(id)); // caught inside of its task, which goes on
    }
    failure(panic, place)
}

/// Returns the failure of a task that did not return.
pub(crate) fn task_failure(error: JoinError) -> Failure {
    let place = take_of(error.id());
    match error.try_into_panic() {
        Ok(panic) => failure(&*panic, place),
        Err(_) => Failure::new("was cancelled"),
    }
}

fn take_of(id: Id) -> Option<String> {
    let mut tasks = lock(&TASKS);
    let place = tasks.iter().rposition(|(other, _)| *other == id)?;
    let found = tasks.remove(place).map(|(_, place)| place);
    tasks.retain(|(other, _)| *other != id);
    found
}

fn failure(panic: &(dyn Any + Send), place: Option<String>) -> Failure {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let place = place.map_or_else(String::new, |place| format!(", at {place}"));
    Failure::new(format!("panicked: {}{place}", text.unwrap_or("no message")))
}
