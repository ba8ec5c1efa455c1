//! Memory of values that is used again when all columns over it have gone.
//!
//! A value of half a megabyte in memory of its own costs more to be mapped and cleared page by page than to be copied.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Bytes that are kept for later at most.
const KEPT_BYTES: usize = 16 << 20;

/// Memory that is used again.
#[derive(Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

/// Memory that goes back.
struct Lent {
    memory: Vec<u8>,
    pool: Pool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut kept = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: usize = kept.iter().map(Vec::capacity).sum();
        if bytes + self.memory.capacity() <= KEPT_BYTES {
            kept.push(std::mem::take(&mut self.memory));
        }
    }
}

impl Pool {
    /// Copy a value.
    pub fn copy(&self, value: &[u8]) -> Bytes {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut memory = kept.unwrap_or_default();
        memory.clear();
        memory.extend_from_slice(value);
        let pool = self.clone();
        Bytes::from_owner(Lent { memory, pool })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_once_nobody_has_it() {
        let pool = Pool::default();
        let (one, other) = (pool.copy(&[1; 1_000]), pool.copy(&[2; 1_000]));
        let part = one.slice(10..20);
        let place = one.as_ptr();
        drop(one);
        assert_eq!(pool.0.lock().unwrap().len(), 0);
        assert_eq!(part, [1; 10][..]);
        drop(part);
        let third = pool.copy(&[3; 500]);
        assert_eq!((third.as_ptr(), &third[..]), (place, &[3; 500][..]));
        assert_eq!(other, [2; 1_000][..]);
    }
}
