//! Circles of components that wait for each other.

use std::collections::BTreeSet;

/// Who waits for whom: a component by its index, and why, as the caller knows it.
pub(super) type Edges<T> = Vec<Vec<(usize, T)>>;

/// Returns each circle as the way around it, from the member that comes first: the members, and the reason of the first step.
/// Two circles may share members; of those that begin with the same step the first found is given.
pub(super) fn circles<T: Clone>(edges: &Edges<T>) -> Vec<(Vec<usize>, T)> {
    let mut circles = Vec::new();
    let mut members: BTreeSet<usize> = BTreeSet::new();
    for start in 0..edges.len() {
        if members.contains(&start) {
            continue;
        }
        for (next, reason) in &edges[start] {
            if let Some(way) = way_back(edges, *next, start) {
                members.extend(way.iter().copied());
                circles.push((way, reason.clone()));
                break;
            }
        }
    }
    circles
}

/// Returns the shortest way from `start` over `first` back to `start`.
fn way_back<T>(edges: &Edges<T>, first: usize, start: usize) -> Option<Vec<usize>> {
    let mut before: Vec<Option<usize>> = vec![None; edges.len()];
    let mut seen = BTreeSet::from([first]);
    let mut queue = std::collections::VecDeque::from([first]);
    while let Some(at) = queue.pop_front() {
        if at == start {
            let mut way = Vec::new();
            let mut step = before[at];
            while let Some(index) = step {
                way.push(index);
                step = before[index];
            }
            way.push(start);
            way.reverse();
            return Some(way);
        }
        for (next, _) in &edges[at] {
            if seen.insert(*next) {
                before[*next] = Some(at);
                queue.push_back(*next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_circle_is_found_once() {
        let rows: [(&[&[usize]], &[&[usize]]); 6] = [
            (&[&[1], &[2], &[]], &[]),
            (&[&[0]], &[&[0]]),
            (&[&[1], &[0]], &[&[0, 1]]),
            (&[&[1], &[2], &[0], &[4], &[3], &[0]], &[&[0, 1, 2], &[3, 4]]),
            (&[&[1], &[2, 1]], &[&[1]]),
            (&[&[3], &[0], &[], &[2, 1]], &[&[0, 3, 1]]),
        ];
        for (edges, expected) in rows {
            let mut all: Edges<()> = edges.iter().map(|to| to.iter().map(|to| (*to, ())).collect()).collect();
            all.resize(all.len().max(6), Vec::new());
            let found: Vec<Vec<usize>> = circles(&all).into_iter().map(|(way, ())| way).collect();
            assert_eq!(found, expected, "{edges:?}");
        }
    }
}
