//! The ordered map that the machine works on.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::{Bound, ControlFlow};

use crate::layout::{Kind, kind_of};

/// Called with each key and value of a scan; breaks it off. A type of its own for each visitor, not a pointer: a row of a
/// long scan costs less than some calls through one.
pub trait Visit: FnMut(&[u8], &[u8]) -> ControlFlow<()> {}

impl<F: FnMut(&[u8], &[u8]) -> ControlFlow<()>> Visit for F {}

/// Reading side of an ordered map from bytes to bytes.
pub trait Read {
    /// What can go wrong.
    type Error;

    /// Value of a key.
    ///
    /// # Errors
    /// Whatever the backend says.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Error>;

    /// Visit the keys in `[start, end)` in order, or in reverse order, until the visitor breaks.
    ///
    /// # Errors
    /// Whatever the backend says.
    fn scan(&self, start: &[u8], end: &[u8], reverse: bool, visit: impl Visit) -> Result<(), Self::Error>;

    /// Visit the keys in `[start, end)` in order, without a look at their values, until the visitor breaks.
    ///
    /// # Errors
    /// Whatever the backend says.
    fn scan_keys(
        &self,
        start: &[u8],
        end: &[u8],
        mut visit: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), Self::Error> {
        self.scan(start, end, false, |key, _| visit(key))
    }
}

/// Writing side.
pub trait Backend: Read {
    /// Set a key.
    ///
    /// # Errors
    /// Whatever the backend says; the caller must then give up the whole batch.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Self::Error>;

    /// Remove a key if it is there.
    ///
    /// # Errors
    /// Whatever the backend says; the caller must then give up the whole batch.
    fn delete(&mut self, key: &[u8]) -> Result<(), Self::Error>;

    /// Remove every key of a kind.
    ///
    /// # Errors
    /// Whatever the backend says; the caller must then give up the whole batch.
    fn clear(&mut self, kind: Kind) -> Result<(), Self::Error>;
}

/// A backend in memory.
#[derive(Clone, Debug, Default)]
pub struct Memory(BTreeMap<Vec<u8>, Vec<u8>>);

impl Memory {
    /// All rows, in the order of their keys.
    pub fn rows(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(key, value)| (&key[..], &value[..]))
    }
}

impl Read for Memory {
    type Error = Infallible;

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, start: &[u8], end: &[u8], reverse: bool, mut visit: impl Visit) -> Result<(), Infallible> {
        if start >= end {
            return Ok(());
        }
        let mut range = self.0.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)));
        while let Some((key, value)) = if reverse { range.next_back() } else { range.next() } {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Backend for Memory {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Infallible> {
        self.0.insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), Infallible> {
        self.0.remove(key);
        Ok(())
    }

    fn clear(&mut self, kind: Kind) -> Result<(), Infallible> {
        self.0.retain(|key, _| kind_of(key) != kind);
        Ok(())
    }
}

/// A backend in memory whose changes can be taken back.
#[derive(Debug)]
pub struct Tentative<'a> {
    memory: &'a mut Memory,
    /// What stood under each key before it was changed; in order.
    former: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl<'a> Tentative<'a> {
    /// Begin to change a backend.
    pub fn new(memory: &'a mut Memory) -> Self {
        Self {
            memory,
            former: Vec::new(),
        }
    }

    /// Take every change back.
    pub fn roll_back(self) {
        for (key, value) in self.former.into_iter().rev() {
            match value {
                Some(value) => drop(self.memory.0.insert(key, value)),
                None => drop(self.memory.0.remove(&key)),
            }
        }
    }
}

impl Read for Tentative<'_> {
    type Error = Infallible;

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Infallible> {
        self.memory.get(key)
    }

    fn scan(&self, start: &[u8], end: &[u8], reverse: bool, visit: impl Visit) -> Result<(), Infallible> {
        self.memory.scan(start, end, reverse, visit)
    }
}

impl Backend for Tentative<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Infallible> {
        let former = self.memory.0.insert(key.to_vec(), value.to_vec());
        self.former.push((key.to_vec(), former));
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), Infallible> {
        if let Some(former) = self.memory.0.remove(key) {
            self.former.push((key.to_vec(), Some(former)));
        }
        Ok(())
    }

    fn clear(&mut self, kind: Kind) -> Result<(), Infallible> {
        let keys: Vec<_> = self
            .memory
            .0
            .keys()
            .filter(|key| kind_of(key) == kind)
            .cloned()
            .collect();
        keys.iter().try_for_each(|key| self.delete(key))
    }
}
