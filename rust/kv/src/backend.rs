//! The ordered map that the machine works on.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::{Bound, ControlFlow};

use crate::layout::{Kind, kind_of};

/// Called with each key and value of a scan; breaks it off.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

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
    fn scan(&self, start: &[u8], end: &[u8], reverse: bool, visit: Visit<'_>) -> Result<(), Self::Error>;
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

    fn scan(&self, start: &[u8], end: &[u8], reverse: bool, visit: Visit<'_>) -> Result<(), Infallible> {
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
