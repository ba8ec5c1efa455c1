//! Frames over QUIC streams.

use bytes::Bytes;
use iroh::endpoint::{
    Connection, ConnectionError, ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError,
};
use thiserror::Error;

use crate::refusal::{CODE_GIVEN_UP, Refusal};
use crate::wire::frame::encode_header;
use crate::wire::reason::clean_reason;
use crate::wire::{Decoder, Frame, FrameError, Grammar, Header, Kind};

/// Most that is read from a stream at once.
const READ_BYTES: usize = 64 << 10;

/// Why no frame comes.
#[derive(Debug, Error)]
pub(crate) enum Broken {
    /// The peer does not keep to the protocol.
    #[error("{1}")]
    Refused(Refusal, String),
    /// The stream was reset, or the connection is gone.
    #[error("{0}")]
    Gone(String),
}

impl From<FrameError> for Broken {
    fn from(error: FrameError) -> Self {
        Self::Refused((&error).into(), error.to_string())
    }
}

impl From<ReadError> for Broken {
    fn from(error: ReadError) -> Self {
        Self::Gone(match error {
            ReadError::ConnectionLost(error) => explain(&error),
            ReadError::Reset(_) => "the peer gave it up".into(),
            other => other.to_string(),
        })
    }
}

impl From<WriteError> for Broken {
    fn from(error: WriteError) -> Self {
        Self::Gone(match error {
            WriteError::ConnectionLost(error) => explain(&error),
            WriteError::Stopped(_) => "the peer does not want it any more".into(),
            other => other.to_string(),
        })
    }
}

impl From<ConnectionError> for Broken {
    fn from(error: ConnectionError) -> Self {
        Self::Gone(explain(&error))
    }
}

impl Broken {
    pub(crate) fn malformed(text: &str) -> Self {
        Self::Refused(Refusal::Malformed, text.into())
    }
}

/// Why a connection is gone, in words that may be shown.
pub(crate) fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => format!("closed by the peer: {}", clean_reason(&close.reason)),
        ConnectionError::TimedOut => "no sign of life from the peer".into(),
        ConnectionError::LocallyClosed => "closed by this node".into(),
        ConnectionError::Reset => "the peer does not know the connection".into(),
        other => clean_reason(other.to_string().as_bytes()),
    }
}

/// Close with a code and words.
pub(crate) fn close(connection: &Connection, code: u32, reason: &str) {
    connection.close(code.into(), crate::wire::reason::cut_reason(reason).as_bytes());
}

/// Reads frames.
pub(crate) struct FrameReader {
    stream: RecvStream,
    decoder: Decoder,
}

impl FrameReader {
    pub(crate) fn new(stream: RecvStream, grammar: Grammar, max_payload_bytes: usize) -> Self {
        Self {
            stream,
            decoder: Decoder::new(grammar, max_payload_bytes),
        }
    }

    /// What came after the last frame, and the stream: what follows is no frames.
    pub(crate) fn into_raw(self) -> (Bytes, RecvStream) {
        (self.decoder.into_rest(), self.stream)
    }

    pub(crate) fn expect(&mut self, grammar: Grammar, max_payload_bytes: usize) {
        self.decoder.expect(grammar, max_payload_bytes);
    }

    /// Read more; false at the end of the stream.
    async fn fill(&mut self) -> Result<bool, Broken> {
        let Some(chunk) = self.stream.read_chunk(READ_BYTES).await? else {
            self.decoder.finish()?;
            return Ok(false);
        };
        self.decoder.push(&chunk);
        Ok(true)
    }

    /// The next frame's header; none at the end of the stream.
    pub(crate) async fn header(&mut self) -> Result<Option<Header>, Broken> {
        loop {
            if let Some(header) = self.decoder.header()? {
                return Ok(Some(header));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The next frame; none at the end of the stream.
    pub(crate) async fn frame(&mut self) -> Result<Option<Frame>, Broken> {
        loop {
            if let Some(frame) = self.decoder.frame()? {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The next frame, of which there has to be one.
    pub(crate) async fn need(&mut self) -> Result<Frame, Broken> {
        let ended = || Broken::Refused(Refusal::Truncated, "the stream ended before its next frame".into());
        self.frame().await?.ok_or_else(ended)
    }
}

/// Writes frames. Dropped before its end it resets the stream, so that nobody takes a part for the whole.
pub(crate) struct FrameWriter {
    stream: SendStream,
    finished: bool,
}

impl FrameWriter {
    pub(crate) const fn new(stream: SendStream) -> Self {
        Self {
            stream,
            finished: false,
        }
    }

    pub(crate) async fn frame(&mut self, kind: Kind, payload: &[u8]) -> Result<(), Broken> {
        Ok(self
            .stream
            .write_all(&crate::wire::frame::encode(kind, payload))
            .await?)
    }

    /// A frame with a payload that is not copied, after a short part in front of it.
    pub(crate) async fn large(&mut self, kind: Kind, front: &[u8], payload: Bytes) -> Result<(), Broken> {
        let length = u32::try_from(front.len() + payload.len()).map_err(|_| Broken::malformed("a body over 4 GiB"))?;
        let mut head = encode_header(kind, length).to_vec();
        head.extend_from_slice(front);
        Ok(self.stream.write_all_chunks(&mut [head.into(), payload]).await?)
    }

    pub(crate) async fn raw(&mut self, bytes: Bytes) -> Result<(), Broken> {
        Ok(self.stream.write_chunk(bytes).await?)
    }

    /// The stream, for what is no frames.
    pub(crate) const fn stream(&mut self) -> &mut SendStream {
        &mut self.stream
    }

    pub(crate) fn finish(&mut self) {
        self.finished = true;
        // An error tells that the peer does not want it any more.
        let _ = self.stream.finish();
    }

    /// Tell the peer that nothing more comes, and why, as a code.
    pub(crate) fn reset(&mut self, code: u32) {
        self.finished = true;
        let _ = self.stream.reset(code.into());
    }

    /// Resolves when the peer does not want more (its code), has everything (none), or is gone.
    pub(crate) fn stopped(&self) -> impl Future<Output = Result<Option<VarInt>, StoppedError>> + use<> {
        self.stream.stopped()
    }
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        if !self.finished {
            self.reset(CODE_GIVEN_UP);
        }
    }
}
