//! One connection to Jobs' API: HTTP/1.1 over a Unix socket, kept open.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::Operation;

pub struct Client {
    stream: UnixStream,
    read: Vec<u8>,
    filled: usize,
}

impl Client {
    pub async fn connect(path: &str) -> io::Result<Self> {
        Ok(Self {
            stream: UnixStream::connect(path).await?,
            read: vec![0; 64 << 10],
            filled: 0,
        })
    }

    pub async fn call(&mut self, operation: Operation, key: u64, value: &str) -> io::Result<()> {
        let request = match operation {
            Operation::Put => {
                let body = format!("{{\"key\":\"/data/bench/{key}\",\"value\":{{\"text\":\"{value}\"}}}}");
                format!(
                    "POST /v1/kv:put HTTP/1.1\r\nHost: jobs\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            }
            Operation::Get => {
                format!("GET /v1/kv?key=/data/bench/{key} HTTP/1.1\r\nHost: jobs\r\n\r\n")
            }
        };
        self.stream.write_all(request.as_bytes()).await?;
        self.answer().await
    }

    /// Reads one answer whole; fails unless its status is a success.
    async fn answer(&mut self) -> io::Result<()> {
        self.filled = 0;
        let mut whole = usize::MAX;
        while self.filled < whole {
            if self.filled == self.read.len() {
                return Err(io::Error::other("an answer is larger than 64 KiB"));
            }
            let count = self.stream.read(&mut self.read[self.filled..]).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.filled += count;
            if whole == usize::MAX {
                whole = size(&self.read[..self.filled])?.unwrap_or(usize::MAX);
            }
        }
        if self.read[9] != b'2' {
            let shown = String::from_utf8_lossy(&self.read[..self.filled.min(400)]).into_owned();
            return Err(io::Error::other(shown));
        }
        Ok(())
    }
}

/// Returns the size of head and body once the head is here.
fn size(answer: &[u8]) -> io::Result<Option<usize>> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = head
        .split("content-length:")
        .nth(1)
        .and_then(|rest| rest.split("\r\n").next());
    let length = length.and_then(|digits| digits.trim().parse::<usize>().ok());
    match length {
        Some(length) => Ok(Some(end + 4 + length)),
        None => Err(io::Error::other(format!("an answer without a length: {head}"))),
    }
}
