//! Hashes as text.

use crate::Hash;
use crate::error::{BlobError, Result};

/// A hash as its 64 lower-case hexadecimal digits, the only form of it: one blob has one name.
///
/// # Errors
/// When it is anything else.
pub fn parse(text: &str) -> Result<Hash> {
    parse_bytes(text.as_bytes()).ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        BlobError::Invalid(format!("hash {shown:?}: 64 digits 0-9 and a-f are right"))
    })
}

pub(crate) fn parse_bytes(digits: &[u8]) -> Option<Hash> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(Hash::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_has_one_form() {
        let hash = Hash::new(b"hello");
        assert_eq!(parse(&hash.to_hex()).unwrap(), hash);
        for wrong in [
            "",
            "ab",
            &hash.to_hex().to_uppercase(),
            &format!("{}0", hash.to_hex()),
            &"é".repeat(32),
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse(&"../".repeat(1_000)).unwrap_err().to_string().len() < 200);
    }
}
