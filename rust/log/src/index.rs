//! Where each entry is: 8 bytes an entry in memory, and the terms as runs.

use std::collections::VecDeque;

/// Place of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Number of the segment.
    pub segment: u32,
    /// Byte offset in it.
    pub offset: u32,
}

/// Entries from `first` on without gaps.
#[derive(Debug)]
pub(crate) struct Index {
    first: u64,
    places: VecDeque<Place>,
    /// (index of the first entry of the run, its term)
    terms: VecDeque<(u64, u64)>,
}

impl Index {
    /// No entries; the next one is `next`.
    pub(crate) fn starting_at(next: u64) -> Self {
        Self {
            first: next,
            places: VecDeque::new(),
            terms: VecDeque::new(),
        }
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Index of the entry that comes next.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.places.len() as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Add the entry [`Index::next`].
    pub(crate) fn push(&mut self, term: u64, place: Place) {
        if self.terms.back().is_none_or(|run| run.1 != term) {
            self.terms.push_back((self.next(), term));
        }
        self.places.push_back(place);
    }

    pub(crate) fn place(&self, index: u64) -> Option<Place> {
        self.places
            .get(usize::try_from(index.checked_sub(self.first)?).ok()?)
            .copied()
    }

    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        self.place(index)?;
        let run = self.terms.partition_point(|run| run.0 <= index);
        self.terms.get(run.checked_sub(1)?).map(|run| run.1)
    }

    /// Forget the entries from an index on. One before the first that is known here empties the index: the entries
    /// between are in segments that a later truncation of the prefix removed.
    pub(crate) fn truncate_suffix(&mut self, from: u64) {
        if from <= self.first {
            *self = Self::starting_at(from);
            return;
        }
        self.places
            .truncate(usize::try_from(from - self.first).unwrap_or(usize::MAX));
        while self.terms.back().is_some_and(|run| run.0 >= from) {
            self.terms.pop_back();
        }
    }

    /// Forget the entries before an index, at most [`Index::next`]; they may be gone already.
    pub(crate) fn truncate_prefix(&mut self, before: u64) {
        if before <= self.first {
            return;
        }
        let Some(term) = self.term(before) else {
            *self = Self::starting_at(before);
            return;
        };
        self.places
            .drain(..usize::try_from(before - self.first).unwrap_or(usize::MAX));
        self.first = before;
        while self.terms.front().is_some_and(|run| run.0 <= before) {
            self.terms.pop_front();
        }
        self.terms.push_front((before, term));
    }
}

#[cfg(test)]
mod tests {
    use super::{Index, Place};
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push { term: u64 },
        Suffix { part: f64 },
        Prefix { part: f64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0_u64..3).prop_map(|term| Step::Push { term }),
            1 => (0.0..=1.0).prop_map(|part| Step::Suffix { part }),
            1 => (0.0..=1.0).prop_map(|part| Step::Prefix { part }),
        ]
    }

    proptest! {
        #[test]
        fn answers_like_a_plain_list(steps in proptest::collection::vec(step(), 0..80)) {
            let (mut index, mut first, mut model) = (Index::starting_at(5), 5_u64, Vec::new());
            for (number, step) in (0_u32..).zip(steps) {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
                let at = |part: f64| first + (part * model.len() as f64) as u64;
                match step {
                    Step::Push { term } => {
                        let place = Place { segment: 1, offset: number };
                        index.push(term, place);
                        model.push((term, place));
                    }
                    Step::Suffix { part } => {
                        let from = at(part);
                        index.truncate_suffix(from);
                        model.truncate(usize::try_from(from - first).unwrap());
                    }
                    Step::Prefix { part } => {
                        let before = at(part);
                        index.truncate_prefix(before);
                        model.drain(..usize::try_from(before - first).unwrap());
                        first = before;
                    }
                }
                prop_assert_eq!(index.first(), first);
                prop_assert_eq!(index.next(), first + model.len() as u64);
                for (index_of, (term, place)) in (first..).zip(&model) {
                    prop_assert_eq!(index.term(index_of), Some(*term));
                    prop_assert_eq!(index.place(index_of), Some(*place));
                }
                prop_assert_eq!(index.term(first + model.len() as u64), None);
                prop_assert_eq!(first.checked_sub(1).and_then(|before| index.place(before)), None);
            }
        }
    }
}
