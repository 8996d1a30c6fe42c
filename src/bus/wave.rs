//! The order of a start: waves of participants, each after what it depends on.
//!
//! Within what the dependencies allow, a lower priority number is earlier; what is equal starts at the same time.

use std::collections::{BTreeMap, BTreeSet};

use super::participant::Order;

/// A circle of dependencies: none of these can start before the others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the components {} wait for each other", names.join(", "))]
pub struct Cycle {
    /// The participants in the circle, or behind it.
    pub names: Vec<String>,
}

/// Returns the indices of `participants` in waves. A dependency on an unknown name counts as met.
///
/// # Errors
/// Some of them wait for each other.
pub fn waves(participants: &[(String, Order)]) -> Result<Vec<Vec<usize>>, Cycle> {
    let known: BTreeSet<&str> = participants.iter().map(|(name, _)| name.as_str()).collect();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut left: BTreeMap<usize, &(String, Order)> = participants.iter().enumerate().collect();
    let mut waves = Vec::new();
    while !left.is_empty() {
        let ready: Vec<(usize, i32)> = left
            .iter()
            .filter(|(_, (_, order))| {
                order
                    .needs
                    .iter()
                    .chain(&order.after)
                    .all(|name| done.contains(name.as_str()) || !known.contains(name.as_str()))
            })
            .map(|(index, (_, order))| (*index, order.priority))
            .collect();
        let Some(first) = ready.iter().map(|(_, priority)| *priority).min() else {
            return Err(Cycle { names: left.values().map(|(name, _)| name.clone()).collect() });
        };
        let wave: Vec<usize> =
            ready.into_iter().filter(|(_, priority)| *priority == first).map(|(index, _)| index).collect();
        for index in &wave {
            if let Some((name, _)) = left.remove(index) {
                done.insert(name);
            }
        }
        waves.push(wave);
    }
    Ok(waves)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, needs: &[&str], priority: i32) -> (String, Order) {
        let needs = needs.iter().map(|name| (*name).to_owned()).collect();
        (name.to_owned(), Order { needs, after: Vec::new(), priority })
    }

    #[test]
    fn dependencies_come_before_priorities() {
        // B104: d needs b and c, both need a; the priorities say the contrary.
        let rows = [row("d", &["b", "c"], 1), row("b", &["a"], 10), row("c", &["a"], 10), row("a", &[], 90)];
        assert_eq!(waves(&rows), Ok(vec![vec![3], vec![1, 2], vec![0]]));
        let rows = [row("x", &[], 50), row("y", &[], 10), row("z", &["nobody"], 50)];
        assert_eq!(waves(&rows), Ok(vec![vec![1], vec![0, 2]]));
    }

    #[test]
    fn a_circle_is_named() {
        let rows = [row("a", &["b"], 50), row("b", &["a"], 50), row("c", &[], 50)];
        assert_eq!(waves(&rows), Err(Cycle { names: vec!["a".to_owned(), "b".to_owned()] }));
    }
}
