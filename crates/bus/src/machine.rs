//! What a request means, as a pure function of where the site stands: no clock, no task, no listener.
//!
//! [`decide`] is asked for every request, under one lock, in the order in which they are made; [`State::next_step`] then says the
//! next step. Together they are the whole machine.

use crate::state::{Goal, State};

/// What is asked, without parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestKind {
    /// Be running.
    Start,
    /// Be idle.
    Stop,
    /// Take new settings.
    Reload,
    /// Keep new settings that wait to be confirmed.
    Confirm,
    /// Be replaced by the same release.
    Restart,
    /// End.
    Exit,
    /// Be replaced by the next release.
    Update,
    /// Be replaced by the previous release.
    Rollback,
}

impl RequestKind {
    /// Everything that can be asked.
    pub const ALL: [Self; 8] =
        [Self::Start, Self::Stop, Self::Reload, Self::Confirm, Self::Restart, Self::Exit, Self::Update, Self::Rollback];

    /// Returns the name that logs and the API use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Reload => "reload",
            Self::Confirm => "confirm",
            Self::Restart => "restart",
            Self::Exit => "exit",
            Self::Update => "update",
            Self::Rollback => "rollback",
        }
    }

    /// Returns what is asked by the request of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns where the site has to go; `None` for what does not move it.
    pub const fn goal(self) -> Option<Goal> {
        match self {
            Self::Start => Some(Goal::Running),
            Self::Stop => Some(Goal::Idle),
            Self::Reload | Self::Confirm => None,
            Self::Restart | Self::Exit | Self::Update | Self::Rollback => Some(Goal::Exited),
        }
    }
}

/// How far a reload is that has to be confirmed; there is never more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfirmState {
    /// There is none.
    None,
    /// One is asked for, and has not begun.
    Asked,
    /// It is being prepared and committed.
    UnderWay,
    /// It is in force, and waits.
    Waits,
    /// It is confirmed, and not everybody has heard of it.
    Confirmed,
    /// It is being reverted.
    Reverting,
}

/// Where the site stands when something is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiteStatus {
    /// The state.
    pub state: State,
    /// Where it is going.
    pub goal: Goal,
    /// What it is going to end for: an exit, or a replacement of the process image.
    pub leaving: Option<RequestKind>,
    /// Whether a reload waits that has not begun and need not be confirmed.
    pub reload_waits: bool,
    /// The reload that has to be confirmed.
    pub confirm: ConfirmState,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefused {
    /// The site has ended.
    #[error("the bus has ended")]
    Ended,
    /// The site is ending.
    #[error("the site is ending")]
    Ending,
    /// The site is about to be replaced.
    #[error("the site is about to be replaced: {} is under way", .0.name())]
    Replacing(RequestKind),
    /// Nothing runs that could take new settings.
    #[error("nothing to reload: the site is {}", .0.name())]
    NotRunning(State),
    /// Settings cannot change while it is not known whether those in force stay.
    #[error("a reload has to be confirmed first: request confirm, or ask again when it is reverted")]
    Unconfirmed,
    /// A reload has to be in force before it can be confirmed.
    #[error("the reload that has to be confirmed is not in force yet: wait for its outcome, then confirm it")]
    NotInForce,
    /// There is nothing that could be confirmed.
    #[error("no reload waits to be confirmed: it was confirmed or reverted before, or there was none")]
    NothingToConfirm,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is taken: the site goes where it says.
    Accept,
    /// The same is under way: it shares its outcome.
    Merge,
    /// It is so already.
    Already,
    /// It is not taken, and nothing changes.
    Refuse(RequestRefused),
}

/// Decides what becomes of a request. The order of strength is exit, replacement, stop and start, reload: the stronger absorbs
/// what is weaker, the weaker is refused while the stronger is under way.
pub const fn decide(status: SiteStatus, kind: RequestKind) -> Decision {
    use RequestKind::{Confirm, Exit, Reload, Restart, Rollback, Start, Stop, Update};
    let SiteStatus { state, goal, leaving, reload_waits, confirm } = status;
    if matches!(state, State::Exited) {
        return match kind {
            Exit => Decision::Already,
            Start | Stop | Reload | Confirm | Restart | Update | Rollback => Decision::Refuse(RequestRefused::Ended),
        };
    }
    match leaving {
        Some(Exit) => match kind {
            Exit => Decision::Merge,
            Start | Stop | Reload | Confirm | Restart | Update | Rollback => Decision::Refuse(RequestRefused::Ending),
        },
        Some(under_way @ (Restart | Update | Rollback | Start | Stop | Reload | Confirm)) => match kind {
            Exit => Decision::Accept,
            Restart if matches!(under_way, Restart) => Decision::Merge,
            Start | Stop | Reload | Confirm | Restart | Update | Rollback => {
                Decision::Refuse(RequestRefused::Replacing(under_way))
            }
        },
        None => match kind {
            Start => decide_goal(matches!(goal, Goal::Running), matches!(state, State::Running)),
            Stop => {
                decide_goal(matches!(goal, Goal::Idle), matches!(state, State::Initial | State::Entering | State::Idle))
            }
            Reload => match goal {
                Goal::Running if reload_waits => Decision::Merge,
                // Also on the way up: it is done as soon as the site runs.
                Goal::Running if matches!(confirm, ConfirmState::None) => Decision::Accept,
                Goal::Running => Decision::Refuse(RequestRefused::Unconfirmed),
                Goal::Idle | Goal::Exited => Decision::Refuse(RequestRefused::NotRunning(state)),
            },
            Confirm => decide_confirm(confirm, goal),
            Restart | Update | Rollback | Exit => Decision::Accept,
        },
    }
}

/// Decides what becomes of a request for a reload that has to be confirmed: it begins after one that waits and need not be, and there
/// is never a second.
pub const fn decide_provisional(status: SiteStatus) -> Decision {
    decide(SiteStatus { reload_waits: false, ..status }, RequestKind::Reload)
}

/// Returns what becomes of a confirmation. What takes the site elsewhere has begun to take the reload back.
const fn decide_confirm(confirm: ConfirmState, goal: Goal) -> Decision {
    match confirm {
        ConfirmState::Waits => match goal {
            Goal::Running => Decision::Accept,
            Goal::Idle | Goal::Exited => Decision::Refuse(RequestRefused::NothingToConfirm),
        },
        ConfirmState::Confirmed => Decision::Merge,
        ConfirmState::Asked | ConfirmState::UnderWay => Decision::Refuse(RequestRefused::NotInForce),
        ConfirmState::None | ConfirmState::Reverting => Decision::Refuse(RequestRefused::NothingToConfirm),
    }
}

/// Returns what becomes of a request for a state that is the goal, or not, and is reached, or not.
const fn decide_goal(is_goal: bool, is_reached: bool) -> Decision {
    match (is_goal, is_reached) {
        (true, true) => Decision::Already,
        (true, false) => Decision::Merge,
        (false, _) => Decision::Accept,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every place where a site can stand: a goal that leaves has a reason, and the others have none.
    fn statuses() -> Vec<SiteStatus> {
        let mut all = Vec::new();
        let confirms = [
            ConfirmState::None,
            ConfirmState::Asked,
            ConfirmState::UnderWay,
            ConfirmState::Waits,
            ConfirmState::Confirmed,
            ConfirmState::Reverting,
        ];
        let waits = confirms.into_iter().flat_map(|confirm| [(false, confirm), (true, confirm)]);
        for (state, (reload_waits, confirm)) in waits.flat_map(|waits| State::ALL.map(|state| (state, waits))) {
            for goal in [Goal::Idle, Goal::Running] {
                all.push(SiteStatus { state, goal, leaving: None, reload_waits, confirm });
            }
            for leaving in [RequestKind::Exit, RequestKind::Restart, RequestKind::Update, RequestKind::Rollback] {
                all.push(SiteStatus { state, goal: Goal::Exited, leaving: Some(leaving), reload_waits, confirm });
            }
        }
        all
    }

    fn provisional(status: SiteStatus) -> Decision {
        match status.confirm {
            ConfirmState::None => Decision::Accept,
            ConfirmState::Asked
            | ConfirmState::UnderWay
            | ConfirmState::Waits
            | ConfirmState::Confirmed
            | ConfirmState::Reverting => Decision::Refuse(RequestRefused::Unconfirmed),
        }
    }

    #[test]
    fn every_state_has_an_answer_to_every_request() {
        use RequestKind::{Confirm, Exit, Reload, Restart, Rollback, Start, Stop, Update};
        for status in statuses() {
            for kind in RequestKind::ALL {
                let decision = decide(status, kind);
                let case = format!("{status:?} + {kind:?} = {decision:?}");
                let ended = status.state == State::Exited;
                match kind {
                    Exit => {
                        let expected = match status.leaving {
                            _ if ended => Decision::Already,
                            Some(Exit) => Decision::Merge,
                            Some(_) | None => Decision::Accept,
                        };
                        assert_eq!(decision, expected, "{case}");
                    }
                    _ if ended => assert_eq!(decision, Decision::Refuse(RequestRefused::Ended), "{case}"),
                    Restart if status.leaving == Some(Restart) => {
                        assert_eq!(decision, Decision::Merge, "{case}");
                    }
                    _ if status.leaving == Some(Exit) => {
                        assert_eq!(decision, Decision::Refuse(RequestRefused::Ending), "{case}");
                    }
                    _ if status.leaving.is_some() => {
                        let under_way = status.leaving.expect("looked at");
                        assert_eq!(decision, Decision::Refuse(RequestRefused::Replacing(under_way)), "{case}");
                    }
                    Restart | Update | Rollback => {
                        assert_eq!(decision, Decision::Accept, "{case}")
                    }
                    Start | Stop => {
                        let goal = kind.goal().expect("both have one");
                        let reached = if kind == Start {
                            status.state == State::Running
                        } else {
                            matches!(status.state, State::Initial | State::Entering | State::Idle)
                        };
                        let expected = match (status.goal == goal, reached) {
                            (true, true) => Decision::Already,
                            (true, false) => Decision::Merge,
                            (false, _) => Decision::Accept,
                        };
                        assert_eq!(decision, expected, "{case}");
                    }
                    Reload => {
                        let expected = match (status.goal, status.reload_waits) {
                            (Goal::Running, true) => Decision::Merge,
                            (Goal::Running, false) => provisional(status),
                            _ => Decision::Refuse(RequestRefused::NotRunning(status.state)),
                        };
                        assert_eq!(decision, expected, "{case}");
                        let second = decide_provisional(status);
                        match status.goal {
                            Goal::Running => assert_eq!(second, provisional(status), "{case}"),
                            Goal::Idle | Goal::Exited => assert_eq!(second, expected, "{case}"),
                        }
                    }
                    Confirm => {
                        let expected = match status.confirm {
                            ConfirmState::Waits if status.goal == Goal::Running => Decision::Accept,
                            ConfirmState::Confirmed => Decision::Merge,
                            ConfirmState::Asked | ConfirmState::UnderWay => {
                                Decision::Refuse(RequestRefused::NotInForce)
                            }
                            ConfirmState::None | ConfirmState::Waits | ConfirmState::Reverting => {
                                Decision::Refuse(RequestRefused::NothingToConfirm)
                            }
                        };
                        assert_eq!(decision, expected, "{case}");
                    }
                }
            }
        }
    }

    #[test]
    fn names_come_back() {
        for kind in RequestKind::ALL {
            assert_eq!(RequestKind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(RequestKind::from_name("graceful"), None);
    }
}
