//! The order of a publication: waves of listeners, each wave after what its listeners depend on.
//!
//! Dependencies come first, then priority (lower is earlier), then registration. What is equal is one wave: it is called at the
//! same time. A row may belong to a group (the listeners of one component): who depends on the group waits for all of it.

use std::collections::{BTreeMap, HashMap};

/// The priority of a listener that says nothing: lower is earlier.
pub const PRIORITY_DEFAULT: i32 = 50;

/// Where a component or a listener stands in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// It comes after these; if one of them fails to start, it does not start.
    pub needs: Vec<String>,
    /// It comes after these, whether they failed or not.
    pub after: Vec<String>,
    /// Lower is earlier among those that may be called.
    pub priority: i32,
}

impl Default for Order {
    fn default() -> Self {
        Self { needs: Vec::new(), after: Vec::new(), priority: PRIORITY_DEFAULT }
    }
}

impl Order {
    /// Returns whether it depends on nothing.
    pub fn is_free(&self) -> bool {
        self.needs.is_empty() && self.after.is_empty()
    }
}

/// One row of what is to be put in order.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// Its name, unique among the rows.
    pub name: &'a str,
    /// The component that it belongs to, if that is not its name.
    pub group: Option<&'a str>,
    /// What it depends on.
    pub order: &'a Order,
}

/// A circle of dependencies: none of these can start before the others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the components {} wait for each other", names.join(", "))]
pub struct Cycle {
    /// The members of the circle, or of what is behind it.
    pub names: Vec<String>,
}

/// Returns the indices of `rows` in waves. A dependency on an unknown name counts as met.
///
/// # Errors
/// Some of them wait for each other.
pub fn waves(rows: &[Row<'_>]) -> Result<Vec<Vec<usize>>, Cycle> {
    let (waves, stuck) = sort(rows);
    if stuck.is_empty() {
        return Ok(waves);
    }
    Err(Cycle { names: stuck.into_iter().map(|index| rows[index].name.to_owned()).collect() })
}

/// Returns the indices of `rows` in waves; those that wait for each other come last, by priority.
pub(crate) fn waves_of_any(rows: &[Row<'_>]) -> Vec<Vec<usize>> {
    let (mut waves, stuck) = sort(rows);
    waves.extend(by_priority(rows, stuck));
    waves
}

fn by_priority(rows: &[Row<'_>], mut indices: Vec<usize>) -> Vec<Vec<usize>> {
    indices.sort_by_key(|index| rows[*index].order.priority); // stable: registration decides among equals
    indices.chunk_by(|one, other| rows[*one].order.priority == rows[*other].order.priority).map(<[_]>::to_vec).collect()
}

/// Returns the waves, and who is left because of a circle.
fn sort(rows: &[Row<'_>]) -> (Vec<Vec<usize>>, Vec<usize>) {
    if rows.iter().all(|row| row.order.is_free()) {
        return (by_priority(rows, (0..rows.len()).collect()), Vec::new());
    }
    let (mut waits, followers) = dependencies(rows);
    let mut ready: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate().filter(|(index, _)| waits[*index] == 0) {
        ready.entry(row.order.priority).or_default().push(index);
    }
    let mut waves = Vec::new();
    while let Some((_, mut wave)) = ready.pop_first() {
        wave.sort_unstable(); // registration decides among equals
        for follower in wave.iter().flat_map(|index| &followers[*index]) {
            waits[*follower] -= 1;
            if waits[*follower] == 0 {
                ready.entry(rows[*follower].order.priority).or_default().push(*follower);
            }
        }
        waves.push(wave);
    }
    (waves, (0..rows.len()).filter(|index| waits[*index] > 0).collect())
}

/// Returns how many rows each row waits for, and which rows wait for each.
fn dependencies(rows: &[Row<'_>]) -> (Vec<usize>, Vec<Vec<usize>>) {
    let mut names: HashMap<&str, Vec<usize>> = HashMap::new();
    let mut groups: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        names.entry(row.name).or_default().push(index);
        if let Some(group) = row.group {
            groups.entry(group).or_default().push(index);
        }
    }
    let mut waits = vec![0; rows.len()];
    let mut followers = vec![Vec::new(); rows.len()];
    for (index, row) in rows.iter().enumerate() {
        for on in row.order.needs.iter().chain(&row.order.after).map(String::as_str) {
            let own_group = row.group == Some(on);
            let named = names.get(on).into_iter().flatten();
            // What belongs to a component does not wait for the rest of it.
            let grouped = groups.get(on).into_iter().flatten().filter(|_| !own_group);
            for before in named.chain(grouped) {
                waits[index] += 1;
                followers[*before].push(index);
            }
        }
    }
    (waits, followers)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Given = (&'static str, Option<&'static str>, &'static [&'static str], i32);

    fn check(given: &[Given], expected: Result<Vec<Vec<usize>>, &[&str]>) {
        let orders: Vec<Order> = given
            .iter()
            .map(|(_, _, needs, priority)| Order {
                needs: needs.iter().map(|name| (*name).to_owned()).collect(),
                after: Vec::new(),
                priority: *priority,
            })
            .collect();
        let rows: Vec<Row<'_>> =
            given.iter().zip(&orders).map(|((name, group, _, _), order)| Row { name, group: *group, order }).collect();
        let expected = expected.map_err(|names| Cycle { names: names.iter().map(|name| (*name).to_owned()).collect() });
        assert_eq!(waves(&rows), expected, "{given:?}");
    }

    #[test]
    fn dependencies_come_before_priorities_and_priorities_before_registration() {
        check(
            &[("d", None, &["b", "c"], 1), ("b", None, &["a"], 10), ("c", None, &["a"], 10), ("a", None, &[], 90)],
            Ok(vec![vec![3], vec![1, 2], vec![0]]),
        );
        check(
            &[("x", None, &[], 50), ("y", None, &[], 10), ("z", None, &["nobody"], 50)],
            Ok(vec![vec![1], vec![0, 2]]),
        );
        check(&[("x", None, &[], 50), ("y", None, &[], 10), ("z", None, &[], 50)], Ok(vec![vec![1], vec![0, 2]]));
    }

    #[test]
    fn who_depends_on_a_component_waits_for_all_its_listeners() {
        check(
            &[
                ("web/1", Some("web"), &["web"], 10),
                ("api", None, &["web"], 10),
                ("web", None, &[], 50),
                ("web/2", Some("web"), &["web"], 20),
            ],
            Ok(vec![vec![2], vec![0], vec![3], vec![1]]),
        );
    }

    #[test]
    fn a_circle_is_named() {
        check(&[("a", None, &["b"], 50), ("b", None, &["a"], 50), ("c", None, &[], 50)], Err(&["a", "b"]));
    }
}
