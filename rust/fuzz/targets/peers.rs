//! What another node sends: frames, and the handshake in them.
#![no_main]
#![allow(dead_code, unused_imports, reason = "the module is net's, which uses all of it")]

use libfuzzer_sys::fuzz_target;

// By its path: the crate brings iroh along, which takes long to build and is not what is tried here.
#[path = "../../net/src/wire/mod.rs"]
mod wire;

use wire::{Decoder, Frame, FrameError, Hello, Kind};

const KINDS: wire::Grammar = &[Kind::Hello, Kind::Welcome, Kind::Message, Kind::Request, Kind::Declined];
const MAX_PAYLOAD_BYTES: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((size, stream)) = data.split_first() else {
        return;
    };
    let whole = read_frames([stream]);
    let pieces = read_frames(stream.chunks(usize::from(*size) + 1));
    assert_eq!(whole, pieces, "the pieces change what is read");
    for frame in whole.0 {
        assert!(frame.payload.len() <= MAX_PAYLOAD_BYTES && KINDS.contains(&frame.kind));
        if let Ok(hello) = Hello::decode(&frame.payload) {
            assert_eq!(hello.encode(), frame.payload, "two ways to say the same");
        }
        assert!(wire::reason::clean_reason(&frame.payload).chars().all(|sign| !sign.is_control()));
    }
});

fn read_frames<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Frame>, Option<FrameError>) {
    let (mut decoder, mut frames) = (Decoder::new(KINDS, MAX_PAYLOAD_BYTES), Vec::new());
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}
