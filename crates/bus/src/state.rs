//! The states of the site and the ways between them, as data.
//!
//! [`State::steps`] is the table of transitions; [`State::next_step`] is the next step on the way to a [`Goal`]. Nothing here has
//! a clock, a task or a listener.

use serde::{Deserialize, Serialize};

/// Where the site stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// Nothing was done yet.
    Initial,
    /// What has to be done once per process image is under way.
    Entering,
    /// Prepared; nothing serves.
    Idle,
    /// The components are coming up.
    Starting,
    /// Serving.
    Running,
    /// The components are going down.
    Stopping,
    /// The last clean-up.
    Exiting,
    /// All is done.
    Exited,
}

/// Where the site is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Prepared, serving nothing.
    Idle,
    /// Serving.
    Running,
    /// Ended, for good or to be replaced.
    Exited,
}

impl State {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 8] = [
        Self::Initial,
        Self::Entering,
        Self::Idle,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Exiting,
        Self::Exited,
    ];

    /// Returns the states that may follow.
    pub const fn steps(self) -> &'static [Self] {
        match self {
            Self::Initial => &[Self::Entering],
            Self::Entering | Self::Stopping => &[Self::Idle],
            Self::Idle => &[Self::Starting, Self::Exiting],
            Self::Starting => &[Self::Running, Self::Stopping],
            Self::Running => &[Self::Stopping],
            Self::Exiting => &[Self::Exited],
            Self::Exited => &[],
        }
    }

    /// Returns the next state on the way to `goal`; `None` when it is reached, or cannot be reached any more.
    pub const fn next_step(self, goal: Goal) -> Option<Self> {
        match self {
            Self::Initial => Some(Self::Entering),
            Self::Entering | Self::Stopping => Some(Self::Idle),
            Self::Idle => match goal {
                Goal::Idle => None,
                Goal::Running => Some(Self::Starting),
                Goal::Exited => Some(Self::Exiting),
            },
            Self::Starting => match goal {
                Goal::Running => Some(Self::Running),
                Goal::Idle | Goal::Exited => Some(Self::Stopping),
            },
            Self::Running => match goal {
                Goal::Running => None,
                Goal::Idle | Goal::Exited => Some(Self::Stopping),
            },
            Self::Exiting => Some(Self::Exited),
            Self::Exited => None,
        }
    }

    /// Returns whether the site gets to `state` on its way from here to the end.
    pub(crate) fn leads_to(self, state: Self) -> bool {
        std::iter::successors(self.next_step(Goal::Exited), |next| next.next_step(Goal::Exited))
            .any(|next| next == state)
    }

    /// Returns the name that logs, API and pages show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Initial => "Initial",
            Self::Entering => "Entering",
            Self::Idle => "Idle",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Stopping => "Stopping",
            Self::Exiting => "Exiting",
            Self::Exited => "Exited",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_toward_a_goal_is_in_the_table_and_every_goal_is_reached() {
        for from in State::ALL {
            for (goal, end) in
                [(Goal::Idle, State::Idle), (Goal::Running, State::Running), (Goal::Exited, State::Exited)]
            {
                let mut state = from;
                let mut steps = 0;
                while let Some(next) = state.next_step(goal) {
                    assert!(state.steps().contains(&next), "{state:?} -> {next:?}");
                    state = next;
                    steps += 1;
                    assert!(steps <= State::ALL.len(), "{from:?} never reaches {goal:?}");
                }
                let over = matches!(from, State::Exiting | State::Exited);
                assert_eq!(state, if over { State::Exited } else { end }, "{from:?} toward {goal:?}");
            }
        }
    }
}
