//! Why something is refused, in words.

/// Longest text of a refusal; longer ones are cut.
pub const MAX_REASON_BYTES: usize = 512;

/// Text of a refusal as it may be shown: cut, and without what could steer a terminal.
#[must_use]
pub fn clean_reason(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_REASON_BYTES)]);
    text.chars()
        .map(|sign| if sign.is_control() { '�' } else { sign })
        .collect()
}

/// The beginning of this text that fits a refusal.
#[must_use]
pub fn cut_reason(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_REASON_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::test_cases()))]

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1_000)) {
            prop_assert!(clean_reason(&bytes).chars().count() <= MAX_REASON_BYTES);
        }
    }

    #[test]
    fn reasons_cannot_steer_a_terminal() {
        assert_eq!(clean_reason(b"no\x1b[2Jway\xff"), "no�[2Jway�");
    }
}
