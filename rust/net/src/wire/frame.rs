//! Frames: one byte of kind, four of length (little-endian), the payload.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

/// Bytes before each payload.
pub const HEADER_BYTES: usize = 5;

/// What a frame is. The numbers are the wire's; a number is never used again for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Who the dialling side is; the first frame of every connection.
    Hello = 1,
    /// Who the accepting side is: it goes on.
    Welcome = 2,
    /// The dialling side got the welcome: it is alive now, so this connection counts.
    Go = 3,
    /// One message.
    Message = 16,
    /// How long the caller waits, and the request.
    Request = 32,
    /// The answer to a request.
    Answer = 33,
    /// A refusal of a request, in words.
    Declined = 34,
    /// The header of a duplex stream; what follows on it is no frames.
    Open = 48,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Hello,
        Self::Welcome,
        Self::Go,
        Self::Message,
        Self::Request,
        Self::Answer,
        Self::Declined,
        Self::Open,
    ];

    /// The kind with this number.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Kinds that a stream may carry at this point.
pub type Grammar = &'static [Kind];

/// The beginning of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Length of the payload.
    pub payload_bytes: usize,
}

/// A whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Its content.
    pub payload: Bytes,
}

/// Why bytes are no frame. Nothing that follows on the stream can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// A number that is no kind, or a kind that has no place here.
    #[error("a frame of kind {0} has no place here")]
    Kind(u8),
    /// A length over the limit of this stream.
    #[error("a frame of {payload_bytes} bytes is over the limit of {max_bytes}")]
    TooLarge {
        /// Length that the header tells.
        payload_bytes: u64,
        /// Limit.
        max_bytes: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended {missing_bytes} bytes short of a frame's end")]
    Truncated {
        /// How many are known to be missing.
        missing_bytes: usize,
    },
}

/// Bytes of a header. The payload's length fits: limits are `u32`.
#[must_use]
pub fn encode_header(kind: Kind, payload_bytes: u32) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = payload_bytes.to_le_bytes();
    [kind as u8, a, b, c, d]
}

/// A frame as bytes.
///
/// # Panics
/// On a payload of 4 GiB and more, which every limit forbids.
#[must_use]
pub fn encode(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("payloads are far shorter than 4 GiB");
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&encode_header(kind, length));
    frame.extend_from_slice(payload);
    frame
}

/// Takes a stream apart. It holds what it was given and did not yet hand on, never room for what a length promises.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    grammar: Grammar,
    max_payload_bytes: usize,
}

impl Decoder {
    /// A decoder for a stream of these kinds.
    #[must_use]
    pub fn new(grammar: Grammar, max_payload_bytes: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            grammar,
            max_payload_bytes,
        }
    }

    /// From here on the stream carries other kinds.
    pub fn expect(&mut self, grammar: Grammar, max_payload_bytes: usize) {
        self.grammar = grammar;
        self.max_payload_bytes = max_payload_bytes;
    }

    /// Take what came.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// Bytes held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The next frame's header, when it is there.
    ///
    /// # Errors
    /// When it is none that may stand here.
    pub fn header(&self) -> Result<Option<Header>, FrameError> {
        // The kind is judged by its first byte already: a sender of garbage is found out at once.
        let Some(&byte) = self.buffer.first() else {
            return Ok(None);
        };
        let kind = Kind::from_byte(byte)
            .filter(|kind| self.grammar.contains(kind))
            .ok_or(FrameError::Kind(byte))?;
        let Some(length) = self.buffer.get(1..HEADER_BYTES) else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
        let payload_bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if payload_bytes > self.max_payload_bytes {
            return Err(FrameError::TooLarge {
                payload_bytes: u64::from(length),
                max_bytes: self.max_payload_bytes,
            });
        }
        Ok(Some(Header { kind, payload_bytes }))
    }

    /// The next frame, when all of it is there.
    ///
    /// # Errors
    /// When it is none that may stand here.
    pub fn frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.header()? else {
            return Ok(None);
        };
        if self.buffer.len() < HEADER_BYTES + header.payload_bytes {
            return Ok(None);
        }
        // A copy of its own size: a slice of the buffer would keep all of the buffer as long as one small frame waits.
        let payload = Bytes::copy_from_slice(&self.buffer[HEADER_BYTES..HEADER_BYTES + header.payload_bytes]);
        self.buffer.advance(HEADER_BYTES + header.payload_bytes);
        Ok(Some(Frame {
            kind: header.kind,
            payload,
        }))
    }

    /// What is held: no frames follow.
    #[must_use]
    pub fn into_rest(self) -> Bytes {
        self.buffer.freeze()
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// When that is inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let whole = HEADER_BYTES + self.header()?.map_or(0, |header| header.payload_bytes);
        Err(FrameError::Truncated {
            missing_bytes: whole.saturating_sub(self.buffer.len()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANY: Grammar = &Kind::ALL;

    fn kinds() -> impl Strategy<Value = Kind> {
        proptest::sample::select(&Kind::ALL[..])
    }

    fn frames() -> impl Strategy<Value = Vec<(Kind, Vec<u8>)>> {
        proptest::collection::vec((kinds(), proptest::collection::vec(any::<u8>(), 0..200)), 0..8)
    }

    fn decode(decoder: &mut Decoder) -> Result<Vec<Frame>, FrameError> {
        std::iter::from_fn(|| decoder.frame().transpose()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::test_cases()))]

        #[test]
        fn frames_come_back_however_the_stream_is_cut(sent in frames(), cuts in proptest::collection::vec(1usize..64, 1..40)) {
            let stream: Vec<u8> = sent.iter().flat_map(|(kind, payload)| encode(*kind, payload)).collect();
            let mut decoder = Decoder::new(ANY, 200);
            let (mut got, mut rest, mut cuts) = (Vec::new(), &stream[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                decoder.push(now);
                got.extend(decode(&mut decoder).unwrap());
                rest = later;
            }
            let got: Vec<_> = got.into_iter().map(|frame| (frame.kind, frame.payload.to_vec())).collect();
            prop_assert_eq!(got, sent);
            prop_assert_eq!(decoder.finish(), Ok(()));
        }

        #[test]
        fn every_truncation_is_told(kind in kinds(), payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let whole = encode(kind, &payload);
            for length in 1..whole.len() {
                let mut decoder = Decoder::new(ANY, 100);
                decoder.push(&whole[..length]);
                prop_assert_eq!(decoder.frame(), Ok(None));
                let known = if length < HEADER_BYTES { HEADER_BYTES } else { whole.len() };
                prop_assert_eq!(decoder.finish(), Err(FrameError::Truncated { missing_bytes: known - length }));
            }
        }

        #[test]
        fn a_flipped_bit_changes_one_frame_or_is_found_out(sent in frames(), place in any::<prop::sample::Index>()) {
            let mut stream: Vec<u8> = sent.iter().flat_map(|(kind, payload)| encode(*kind, payload)).collect();
            prop_assume!(!stream.is_empty());
            let bit = place.index(stream.len() * 8);
            stream[bit / 8] ^= 1 << (bit % 8);
            let mut decoder = Decoder::new(ANY, 200);
            decoder.push(&stream);
            let got = decode(&mut decoder);
            // What stands before the flipped bit comes as it was sent.
            let (mut whole, mut end) = (0, 0);
            for (_, payload) in &sent {
                end += HEADER_BYTES + payload.len();
                whole += usize::from(end <= bit / 8);
            }
            if let Ok(got) = got {
                prop_assert!(got.len() >= whole && got.iter().all(|frame| frame.payload.len() <= 200));
                for (frame, (kind, payload)) in got.iter().zip(&sent).take(whole) {
                    prop_assert_eq!((frame.kind, &frame.payload[..]), (*kind, &payload[..]));
                }
            }
        }

        #[test]
        fn random_bytes_never_panic_and_nothing_is_kept_for_what_lengths_promise(
            bytes in proptest::collection::vec(any::<u8>(), 0..2_000), max in 0usize..4_096,
        ) {
            let mut decoder = Decoder::new(&[Kind::Message, Kind::Hello], max);
            for chunk in bytes.chunks(7) {
                decoder.push(chunk);
                match decode(&mut decoder) {
                    Err(_) => break,
                    Ok(frames) => prop_assert!(frames.iter().all(|frame| frame.payload.len() <= max)),
                }
                prop_assert!(decoder.held_bytes() < HEADER_BYTES + max + chunk.len());
                prop_assert!(decoder.buffer.capacity() <= 2 * (bytes.len() + 64));
            }
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_payload_comes() {
        let mut decoder = Decoder::new(ANY, 1_000);
        decoder.push(&encode_header(Kind::Message, u32::MAX));
        let refused = FrameError::TooLarge {
            payload_bytes: u64::from(u32::MAX),
            max_bytes: 1_000,
        };
        assert_eq!(decoder.frame(), Err(refused));
        assert!(decoder.buffer.capacity() < 1_000);
    }

    #[test]
    fn a_kind_out_of_its_place_is_refused_by_its_first_byte() {
        let mut decoder = Decoder::new(&[Kind::Hello], 1_000);
        decoder.push(&[Kind::Message as u8]);
        assert_eq!(decoder.frame(), Err(FrameError::Kind(16)));
    }
}
