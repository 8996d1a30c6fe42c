//! One start of a runtime: which release, which program, and what it is given.

use std::time::{Duration, Instant};

use nix::unistd::Pid;
use refit_base::Chain;
use refit_updater::attempt::{Ending, Step};
use semver::Version;

use super::{EXAMINE_AGAIN, Guard, Image, Phase};
use crate::guard::child::{self, Program, Start};
use crate::guard::damage::{self, Found};
use crate::guard::deadlines::Deadlines;
use crate::guard::decisions::Decision;
use crate::guard::say::say;
use crate::guard::{GuardError, system};
use crate::handover::{Named, names};
use crate::process::resources::Resources;

/// How often it is looked whether a command that works with the releases has ended.
const TURN_LOOK: Duration = Duration::from_millis(100);

impl Guard {
    pub(super) fn start_or_pause(&mut self, ending: &Ending) -> Phase {
        if !self.turn.take() {
            self.complaints.say("turn", "a command works with the releases; a runtime is started when it has ended");
            return Phase::Pausing { until: Instant::now() + TURN_LOOK };
        }
        self.complaints.forget("turn");
        self.start(ending).unwrap_or_else(|error| self.pause(&error))
    }

    /// Waits before the next try, because of an error that may pass.
    pub(super) fn pause(&mut self, error: &GuardError) -> Phase {
        self.note_trouble(Chain(error).to_string());
        self.turn.give();
        let pause = self.backoff.after_failure();
        Resources::improve(); // somebody may have lowered a limit that can be raised again
        self.complaints.say("start", &format!("{}; trying again until it works", Chain(error)));
        Phase::Pausing { until: Instant::now() + pause }
    }

    /// Selects the release, journals the start, and starts its runtime.
    pub(super) fn start(&mut self, ending: &Ending) -> Result<Phase, GuardError> {
        let mut decision = self.decide(ending);
        let mut program = self.program(&decision.version)?;
        // While nothing serves, a release that is whole is better than the installed refit in place of the one that was tried. Else that
        // one takes over what runs, and nothing is stopped.
        if program.unusable.is_some() && !self.serves() && self.leave_damaged() {
            decision = self.decide(ending);
            program = self.program(&decision.version)?;
        }
        let version = &decision.version;
        match program.unusable {
            Some((path, why)) => {
                let text = format!(
                    "cannot execute {}, the runtime of release {version}: {why}; the installed refit runs it instead",
                    path.display()
                );
                self.complaints.say("program", &text);
            }
            None => self.complaints.forget("program"),
        }
        match self.installed.trouble(&program.path) {
            Some(trouble) => self.complaints.say("installed", &trouble),
            None => self.complaints.forget("installed"),
        }
        self.inbox.restore(&self.home).map_err(system("bind the guard socket again"))?;
        // Again: the directory of the file may have been made only now. The first start of a guard does not ask.
        let _mine = self.turn.take();
        let mut descriptors = self.store.duplicate().map_err(system("duplicate the stored descriptors"))?;
        let processes = self.store.processes().map_err(system("keep what was told of the processes"))?;
        descriptors.extend(processes);
        let channel = self.channel.1.try_clone().map_err(system("duplicate the channel"))?;
        descriptors.push(Named { name: names::GUARD.to_owned(), descriptor: channel });
        self.ends_as_asked = false;
        self.errno = None;
        self.image = Image::Silent;
        let pid = child::start(Start {
            program: &program.path,
            home: &self.home,
            installed: self.installed.path(),
            found: self.found,
            descriptors,
            output: &self.pipe,
            journal: self.journal.as_deref(),
            decided: decision.unwritten,
            deaths: self.deaths.as_ref().filter(|deaths| deaths.count > 1),
        })
        .map_err(system("start the runtime"))?;
        self.installed.has_started(&program.path);
        self.starts = self.starts.saturating_add(1);
        self.complaints.forget("start");
        let pid = Pid::from_raw(i32::try_from(pid).unwrap_or(0));
        let now = Instant::now();
        Ok(Phase::Up { pid, since: now, deadlines: Deadlines::new(now) })
    }

    /// Decides which release runs, and says why it is not the one that was to run.
    fn decide(&mut self, ending: &Ending) -> Decision {
        let decision = self.decisions.decide(ending);
        let version = &decision.version;
        if let Some(failed) = &decision.failed {
            say(&format!("release {failed} failed its trial: {}; going back to {version}", ending.reason));
        }
        match &decision.trouble {
            Some(trouble) => self.complaints.say("journal", &format!("{trouble}; release {version} is started")),
            None => self.complaints.forget("journal"),
        }
        decision
    }

    /// Returns the program that is the runtime of `version`. One that lacks its permissions is given them.
    fn program(&self, version: &Version) -> Result<Program, GuardError> {
        let installed = self.installed.program();
        let look = || child::program(&self.home, version, &installed);
        let mut program = look();
        if program.as_ref().is_ok_and(|program| program.unusable.is_some())
            && damage::repair_modes(&self.home, version, say)
        {
            program = look();
        }
        program.map_err(system("look for the runtime's program"))
    }

    /// Has the next start be of the last good release that is whole, if the current one does not start and its own files are damaged.
    /// Returns whether it is.
    pub(super) fn leave_damaged(&mut self) -> bool {
        let Some(journal) = self.decisions.settled().cloned() else { return false };
        let current = journal.state.wanted();
        if self.examined.as_ref().is_some_and(|(examined, at)| examined == current && at.elapsed() < EXAMINE_AGAIN) {
            return false;
        }
        let home = self.home.clone();
        let found = damage::find(&home, &journal, &mut || {
            self.relieve_outputs();
            self.tell_alive();
        });
        self.examined = Some((current.clone(), Instant::now()));
        match found {
            Found::Whole => false,
            Found::Back { to, why } => {
                say(&format!(
                    "{why}; going back to release {to}, which is whole; to have {current} again, install it from its package"
                ));
                self.decisions.go_back(&to, &Ending::now(Step::Committed, why).with_code("release_damaged"));
                true
            }
            Found::Stuck { why } => {
                say(&format!(
                    "{why}; no other good release is whole; `refit install PACKAGE` with the very package repairs it"
                ));
                false
            }
        }
    }
}
