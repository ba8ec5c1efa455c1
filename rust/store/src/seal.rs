//! The checksum of a row: CRC-32C of its key and its value.
//!
//! A scan computes it for every row, and rows are short: what the `crc32c` crate spends on a piece that begins and ends
//! between two words, byte by byte, was half of what a scan took. So pieces of a few words are done here, with the same
//! instruction; long ones by the crate, which does three streams at once.
#![allow(
    unsafe_code,
    reason = "a function for a processor that has an instruction, where it has it"
)]

use crc32c::{crc32c, crc32c_append};

/// Length of a checksum.
pub(crate) const SEAL_BYTES: usize = 4;
/// Rows of so many bytes and more are left to the crate.
#[cfg(target_arch = "x86_64")]
const LONG_BYTES: usize = 512;

/// Return the checksum of a row.
#[inline]
pub(crate) fn seal(key: &[u8], value: &[u8]) -> [u8; SEAL_BYTES] {
    #[cfg(target_arch = "x86_64")]
    if key.len() + value.len() < LONG_BYTES && is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instruction.
        return unsafe { short(key, value) }.to_le_bytes();
    }
    crc32c_append(crc32c(key), value).to_le_bytes()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn short(key: &[u8], value: &[u8]) -> u32 {
    !append(append(!0, key), value)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
#[inline]
fn append(state: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u16, _mm_crc32_u32, _mm_crc32_u64};
    let (words, mut rest) = bytes.as_chunks::<8>();
    let mut wide = u64::from(state);
    for word in words {
        wide = _mm_crc32_u64(wide, u64::from_le_bytes(*word));
    }
    #[allow(clippy::cast_possible_truncation, reason = "the upper half is zero")]
    let mut state = wide as u32;
    if let Some((word, more)) = rest.split_first_chunk() {
        state = _mm_crc32_u32(state, u32::from_le_bytes(*word));
        rest = more;
    }
    if let Some((word, more)) = rest.split_first_chunk() {
        state = _mm_crc32_u16(state, u16::from_le_bytes(*word));
        rest = more;
    }
    if let [last] = rest {
        state = _mm_crc32_u8(state, *last);
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_is_the_checksum_of_key_and_value_at_every_length_and_place() {
        let bytes: Vec<u8> = (0_u32..1_200).map(|number| (number * 7919 % 251) as u8).collect();
        for start in 0..9 {
            for key in (0..40).chain([500, 511, 512, 600]) {
                for value in (0..40).chain([500, 511, 512]) {
                    let (key, rest) = bytes[start..].split_at(key);
                    let value = &rest[..value];
                    let whole = crc32c(&[key, value].concat());
                    assert_eq!(
                        seal(key, value),
                        whole.to_le_bytes(),
                        "{start} {} {}",
                        key.len(),
                        value.len()
                    );
                }
            }
        }
    }
}
