//! Circles of components that wait for each other.

use std::collections::BTreeSet;

/// Who waits for whom: a component by its index, and why, as the caller knows it.
pub(super) type Edges<T> = Vec<Vec<(usize, T)>>;

/// Returns circles that together have every step that is in one: each as the way around it, and the reason of its first step.
pub(super) fn circles<T: Clone>(edges: &Edges<T>) -> Vec<(Vec<usize>, T)> {
    let mut circles = Vec::new();
    let mut steps: BTreeSet<(usize, usize)> = BTreeSet::new();
    for (start, targets) in edges.iter().enumerate() {
        for (next, reason) in targets {
            if steps.contains(&(start, *next)) {
                continue;
            }
            if let Some(way) = way_back(edges, *next, start) {
                steps.extend(way.iter().copied().zip(way.iter().copied().cycle().skip(1)));
                circles.push((way, reason.clone()));
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
    fn every_step_of_a_circle_is_found() {
        type Lists = &'static [&'static [usize]];
        let rows: [(Lists, Lists); 8] = [
            (&[&[1], &[2], &[]], &[]),
            (&[&[0]], &[&[0]]),
            (&[&[1], &[0]], &[&[0, 1]]),
            (&[&[1], &[2], &[0], &[4], &[3], &[0]], &[&[0, 1, 2], &[3, 4]]),
            (&[&[1], &[2, 1]], &[&[1]]),
            (&[&[3], &[0], &[], &[2, 1]], &[&[0, 3, 1]]),
            (&[&[1], &[0, 1]], &[&[0, 1], &[1]]),
            (&[&[1, 2], &[0], &[0]], &[&[0, 1], &[0, 2]]),
        ];
        for (edges, expected) in rows {
            let mut all: Edges<()> = edges.iter().map(|to| to.iter().map(|to| (*to, ())).collect()).collect();
            all.resize(all.len().max(6), Vec::new());
            let found: Vec<Vec<usize>> = circles(&all).into_iter().map(|(way, ())| way).collect();
            assert_eq!(found, expected, "{edges:?}");
        }
    }
}
