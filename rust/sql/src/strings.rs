//! Byte strings behind one another, as a column holds them.

use arrow::array::StringArray;
use arrow::buffer::{Buffer, OffsetBuffer};
use datafusion_common::Result;

use crate::source::text;

/// Byte strings behind one another.
pub(crate) struct Strings {
    bytes: Vec<u8>,
    /// Where each begins, and where the last one ends.
    offsets: Vec<i32>,
}

impl Default for Strings {
    fn default() -> Self {
        Self::with_capacity(0, 0)
    }
}

impl Strings {
    fn with_capacity(rows: usize, bytes: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        Self {
            bytes: Vec::with_capacity(bytes),
            offsets,
        }
    }

    pub fn push(&mut self, string: &[u8]) {
        self.bytes.extend_from_slice(string);
        // What is gathered for a batch comes to a few MiB.
        self.offsets.push(i32::try_from(self.bytes.len()).unwrap_or(i32::MAX));
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.offsets.truncate(1);
    }

    /// Return what is there, and begin anew with room for as much, so that it does not have to grow.
    pub fn take(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        let anew = Self::with_capacity(self.offsets.len(), self.bytes.len());
        let full = std::mem::replace(self, anew);
        (OffsetBuffer::new(full.offsets.into()), full.bytes.into())
    }

    /// Return keys as text. They are looked at all together, which costs next to nothing, and one by one only to name the
    /// one that is none.
    pub fn take_keys(&mut self) -> Result<StringArray> {
        let (offsets, bytes) = self.take();
        StringArray::try_new(offsets.clone(), bytes.clone(), None).map_err(|error| {
            let places = offsets.iter().zip(offsets.iter().skip(1));
            let bad = places
                .filter_map(|(&start, &end)| bytes.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?))
                .find_map(|key| text(key, key).err());
            bad.unwrap_or_else(|| error.into())
        })
    }
}
