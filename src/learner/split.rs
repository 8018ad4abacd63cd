//! Which examples are held out. Pure and deterministic: the digest of an image decides, not the order of arrival.

use std::collections::BTreeMap;

use crate::domain::{Digest, Split};

/// One example as the split sees it.
pub(super) struct Candidate {
    /// Its class's place in the task.
    pub(super) class: usize,
    /// The split its caller chose.
    pub(super) chosen: Option<Split>,
    /// Of its bytes.
    pub(super) digest: Digest,
}

/// The split of every candidate, in order.
///
/// When the caller brought held-out examples, their choice stands and everything else is fitted on. Otherwise
/// `share` of each class, rounded, is held out: the examples with the smallest digests. A class always keeps one
/// example to learn from.
pub(super) fn assign(candidates: &[Candidate], share: f64) -> Vec<Split> {
    if candidates
        .iter()
        .any(|candidate| candidate.chosen == Some(Split::HeldOut))
    {
        return candidates
            .iter()
            .map(|candidate| candidate.chosen.unwrap_or(Split::Train))
            .collect();
    }
    let mut by_class: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, candidate) in candidates.iter().enumerate() {
        by_class.entry(candidate.class).or_default().push(place);
    }
    let mut splits = vec![Split::Train; candidates.len()];
    for mut places in by_class.into_values() {
        places.sort_by_key(|&place| candidates[place].digest);
        let held_out = (places.len() as f64 * share).round() as usize;
        for place in places.iter().take(held_out.min(places.len() - 1)) {
            splits[*place] = Split::HeldOut;
        }
    }
    splits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(sizes: &[usize]) -> Vec<Candidate> {
        let of_class = |(class, &size): (usize, &usize)| {
            (0..size).map(move |n| Candidate {
                class,
                chosen: None,
                digest: Digest::of(format!("{class}/{n}").as_bytes()),
            })
        };
        sizes.iter().enumerate().flat_map(of_class).collect()
    }

    proptest! {
        #[test]
        fn every_class_keeps_its_share(sizes in prop::collection::vec(1_usize..40, 1..6), share in 0.0..0.5_f64) {
            let candidates = candidates(&sizes);
            let splits = assign(&candidates, share);
            for (class, &size) in sizes.iter().enumerate() {
                let held_out = candidates.iter().zip(&splits)
                    .filter(|(c, split)| c.class == class && **split == Split::HeldOut).count();
                prop_assert!(held_out < size);
                prop_assert!((held_out as f64 - size as f64 * share).abs() <= 1.0);
            }
        }

        #[test]
        fn the_order_of_arrival_does_not_matter(size in 2_usize..40) {
            let mut shuffled = candidates(&[size]);
            let before = assign(&shuffled, 0.2);
            shuffled.reverse();
            let mut after = assign(&shuffled, 0.2);
            after.reverse();
            prop_assert_eq!(before, after);
        }
    }

    #[test]
    fn the_callers_own_split_stands() {
        let mut candidates = candidates(&[4]);
        candidates[2].chosen = Some(Split::HeldOut);
        let splits = assign(&candidates, 0.5);
        assert_eq!(splits, [Split::Train, Split::Train, Split::HeldOut, Split::Train]);
    }
}
