//! Where each entry is: 8 bytes an entry in memory, and the terms as runs.

use std::collections::VecDeque;

/// Place of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Segment, counted from the first one that this log ever had, modulo 2³².
    pub segment: u32,
    /// Byte offset in it.
    pub offset: u32,
}

/// Entries from `first` on without gaps.
#[derive(Debug, Default)]
pub(crate) struct Index {
    first: u64,
    places: VecDeque<Place>,
    terms: VecDeque<(u64, u64)>,
}

impl Index {
    pub(crate) fn starting_at(first: u64) -> Self {
        Self { first, ..Self::default() }
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

    pub(crate) fn push(&mut self, index: u64, term: u64, place: Place) {
        if self.places.is_empty() {
            self.first = index;
        }
        debug_assert_eq!(index, self.next());
        if self.terms.back().is_none_or(|run| run.1 != term) {
            self.terms.push_back((index, term));
        }
        self.places.push_back(place);
    }

    pub(crate) fn place(&self, index: u64) -> Option<Place> {
        self.places.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        self.place(index)?;
        let run = self.terms.partition_point(|run| run.0 <= index);
        self.terms.get(run.checked_sub(1)?).map(|run| run.1)
    }

    pub(crate) fn truncate_suffix(&mut self, from: u64) {
        self.places.truncate(usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX));
        while self.terms.back().is_some_and(|run| run.0 >= from) {
            self.terms.pop_back();
        }
    }

    /// Forget the entries before an index; those may be gone already.
    pub(crate) fn truncate_prefix(&mut self, before: u64) {
        if before <= self.first {
            return;
        }
        let count = usize::try_from(before.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.places.len());
        let term = self.term(before);
        self.places.drain(..count);
        self.first = before;
        while self.terms.front().is_some_and(|run| run.0 < before) {
            self.terms.pop_front();
        }
        if let Some(term) = term.filter(|_| !self.places.is_empty()) {
            if self.terms.front().is_none_or(|run| run.0 != before) {
                self.terms.push_front((before, term));
            }
        }
    }
}
