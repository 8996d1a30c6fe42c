//! What a request means, as a pure function of where the site stands: no clock, no task, no listener.
//!
//! [`decide`] is asked for every request, under one lock, in the order in which they are made; [`State::toward`] then says the
//! next step. Together they are the whole machine.

use crate::state::{Goal, State};

/// What is asked, without parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// Be running.
    Start,
    /// Be idle.
    Stop,
    /// Take new settings.
    Reload,
    /// Be replaced by the same release.
    Restart,
    /// End.
    Exit,
    /// Be replaced by the next release.
    Update,
    /// Be replaced by the previous release.
    Rollback,
}

impl Ask {
    /// Everything that can be asked.
    pub const ALL: [Self; 7] =
        [Self::Start, Self::Stop, Self::Reload, Self::Restart, Self::Exit, Self::Update, Self::Rollback];

    /// Returns the name that logs and the API use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Reload => "reload",
            Self::Restart => "restart",
            Self::Exit => "exit",
            Self::Update => "update",
            Self::Rollback => "rollback",
        }
    }

    /// Returns what is asked by the request of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ask| ask.name() == name)
    }

    /// Returns where the site has to go; `None` for what does not move it.
    pub const fn goal(self) -> Option<Goal> {
        match self {
            Self::Start => Some(Goal::Running),
            Self::Stop => Some(Goal::Idle),
            Self::Reload => None,
            Self::Restart | Self::Exit | Self::Update | Self::Rollback => Some(Goal::Exited),
        }
    }
}

/// Where the site stands when something is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The state.
    pub state: State,
    /// Where it is going.
    pub goal: Goal,
    /// What it is going to end for: an exit, or a replacement of the process image.
    pub leaving: Option<Ask>,
    /// Whether a reload waits that has not begun.
    pub reload_waits: bool,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The site has ended.
    #[error("the bus has ended")]
    Ended,
    /// The site is ending.
    #[error("the site is ending")]
    Ending,
    /// The site is about to be replaced.
    #[error("the site is about to be replaced: {} is under way", .0.name())]
    Replacing(Ask),
    /// Nothing runs that could take new settings.
    #[error("nothing to reload: the site is {}", .0.name())]
    NotRunning(State),
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
    Refuse(Refusal),
}

/// Decides what becomes of a request. The order of strength is exit, replacement, stop and start, reload: the stronger absorbs
/// what is weaker, the weaker is refused while the stronger is under way.
pub const fn decide(standing: Standing, ask: Ask) -> Decision {
    let Standing { state, goal, leaving, reload_waits } = standing;
    if matches!(state, State::Exited) {
        return match ask {
            Ask::Exit => Decision::Already,
            Ask::Start | Ask::Stop | Ask::Reload | Ask::Restart | Ask::Update | Ask::Rollback => {
                Decision::Refuse(Refusal::Ended)
            }
        };
    }
    match leaving {
        Some(Ask::Exit) => match ask {
            Ask::Exit => Decision::Merge,
            Ask::Start | Ask::Stop | Ask::Reload | Ask::Restart | Ask::Update | Ask::Rollback => {
                Decision::Refuse(Refusal::Ending)
            }
        },
        Some(kind @ (Ask::Restart | Ask::Update | Ask::Rollback | Ask::Start | Ask::Stop | Ask::Reload)) => match ask {
            Ask::Exit => Decision::Accept,
            Ask::Restart if matches!(kind, Ask::Restart) => Decision::Merge,
            Ask::Start | Ask::Stop | Ask::Reload | Ask::Restart | Ask::Update | Ask::Rollback => {
                Decision::Refuse(Refusal::Replacing(kind))
            }
        },
        None => match ask {
            Ask::Start => toward(matches!(goal, Goal::Running), matches!(state, State::Running)),
            Ask::Stop => {
                toward(matches!(goal, Goal::Idle), matches!(state, State::Initial | State::Entering | State::Idle))
            }
            Ask::Reload => match goal {
                Goal::Running if reload_waits => Decision::Merge,
                // Also on the way up: it is done as soon as the site runs.
                Goal::Running => Decision::Accept,
                Goal::Idle | Goal::Exited => Decision::Refuse(Refusal::NotRunning(state)),
            },
            Ask::Restart | Ask::Update | Ask::Rollback | Ask::Exit => Decision::Accept,
        },
    }
}

/// Returns what becomes of a request for a state that is the goal, or not, and is reached, or not.
const fn toward(is_goal: bool, is_reached: bool) -> Decision {
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
    fn standings() -> Vec<Standing> {
        let mut all = Vec::new();
        for state in State::ALL {
            for reload_waits in [false, true] {
                for goal in [Goal::Idle, Goal::Running] {
                    all.push(Standing { state, goal, leaving: None, reload_waits });
                }
                for leaving in [Ask::Exit, Ask::Restart, Ask::Update, Ask::Rollback] {
                    all.push(Standing { state, goal: Goal::Exited, leaving: Some(leaving), reload_waits });
                }
            }
        }
        all
    }

    #[test]
    fn every_state_has_an_answer_to_every_request() {
        for standing in standings() {
            for ask in Ask::ALL {
                let decision = decide(standing, ask);
                let said = format!("{standing:?} + {ask:?} = {decision:?}");
                let ended = standing.state == State::Exited;
                match ask {
                    Ask::Exit => {
                        let expected = match standing.leaving {
                            _ if ended => Decision::Already,
                            Some(Ask::Exit) => Decision::Merge,
                            Some(_) | None => Decision::Accept,
                        };
                        assert_eq!(decision, expected, "{said}");
                    }
                    _ if ended => assert_eq!(decision, Decision::Refuse(Refusal::Ended), "{said}"),
                    Ask::Restart if standing.leaving == Some(Ask::Restart) => {
                        assert_eq!(decision, Decision::Merge, "{said}");
                    }
                    _ if standing.leaving == Some(Ask::Exit) => {
                        assert_eq!(decision, Decision::Refuse(Refusal::Ending), "{said}");
                    }
                    _ if standing.leaving.is_some() => {
                        let kind = standing.leaving.expect("looked at");
                        assert_eq!(decision, Decision::Refuse(Refusal::Replacing(kind)), "{said}");
                    }
                    Ask::Restart | Ask::Update | Ask::Rollback => assert_eq!(decision, Decision::Accept, "{said}"),
                    Ask::Start | Ask::Stop => {
                        let goal = ask.goal().expect("both have one");
                        let reached = if ask == Ask::Start {
                            standing.state == State::Running
                        } else {
                            matches!(standing.state, State::Initial | State::Entering | State::Idle)
                        };
                        let expected = match (standing.goal == goal, reached) {
                            (true, true) => Decision::Already,
                            (true, false) => Decision::Merge,
                            (false, _) => Decision::Accept,
                        };
                        assert_eq!(decision, expected, "{said}");
                    }
                    Ask::Reload => {
                        let expected = match (standing.goal, standing.reload_waits) {
                            (Goal::Running, true) => Decision::Merge,
                            (Goal::Running, false) => Decision::Accept,
                            _ => Decision::Refuse(Refusal::NotRunning(standing.state)),
                        };
                        assert_eq!(decision, expected, "{said}");
                    }
                }
            }
        }
    }

    #[test]
    fn names_come_back() {
        for ask in Ask::ALL {
            assert_eq!(Ask::from_name(ask.name()), Some(ask));
        }
        assert_eq!(Ask::from_name("graceful"), None);
    }
}
