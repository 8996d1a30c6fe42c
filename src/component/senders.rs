//! Whom the notify socket of a process believes.
//!
//! The kernel says of each datagram which process sent it, and that process's account. It counts if the account is the
//! component's (or Refit's own), and the process is the component's or was started by it, as far as `notify_access` lets it. A
//! sender that has ended before it is looked at is judged by its account alone, which is also the only one that can reach the
//! socket.

use crate::config::NotifyAccess;
use crate::handover::notify::Sender;
use crate::process::descendants::Descendants;
use crate::process::stat::account_of;

/// Whom one process's socket believes.
#[derive(Debug)]
pub(super) struct Senders {
    access: NotifyAccess,
    accounts: [u32; 3],
    main: i32,
    all: Descendants,
}

impl Senders {
    /// Returns those that `access` lets report for the process `main` of `account`; `all` is what it and all that it starts are
    /// known by.
    pub(super) fn new(access: NotifyAccess, account: u32, main: i32, all: Descendants) -> Self {
        let own = nix::unistd::geteuid().as_raw();
        Self { access, accounts: [account, own, 0], main, all }
    }

    /// Judges a sender.
    ///
    /// # Errors
    /// Why it is not believed, for people.
    pub(super) fn judge(&self, sender: Option<Sender>) -> Result<(), &'static str> {
        let Some(Sender { pid, uid, .. }) = sender else { return Err("the kernel does not say who sent it") };
        // A program that was started as root may have become somebody else by itself.
        let is_its_account = self.accounts.contains(&uid) || account_of(self.main).is_ok_and(|account| account == uid);
        if !is_its_account {
            return Err("its sender has another account");
        }
        if self.access == NotifyAccess::None {
            return Err("notify_access is \"none\"");
        }
        if pid == self.main {
            return Ok(());
        }
        if self.access == NotifyAccess::Main {
            return Err("notify_access is \"main\", and its sender is not the process that was started");
        }
        match self.all.contains(pid) {
            Some(true) | None => Ok(()),
            Some(false) => Err("its sender is not a process of the component"),
        }
    }
}
