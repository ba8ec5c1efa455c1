//! Frames between launcher and worker: u32 big-endian length, then one `MessagePack` map tagged by `t`.
//!
//! The other side of `jobs.workers.sandbox` (Python), field by field.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_bytes::{ByteBuf, Bytes};

/// Version of the frames; the first one carries it.
pub const PROTOCOL_VERSION: u32 = 5;
/// Largest frame either side sends.
pub const MAX_FRAME_BYTES: usize = 16 << 20;

/// What the worker asks.
#[derive(Debug, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum Request {
    /// First frame.
    Configure(Configure),
    /// Start a job.
    Spawn(Box<Spawn>),
    /// End a job.
    End(End),
    /// Output is safe.
    Ack(Ack),
}

/// How strong the walls around a job are; ordered from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// No promise.
    None,
    /// User, pid and mount namespaces; some other wall is missing.
    Standard,
    /// Every wall.
    Strict,
}

impl Level {
    /// The level's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Standard => "standard",
            Self::Strict => "strict",
        }
    }
}

/// What network a job has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// Its own, without any interface that is up.
    None,
    /// Its own, with a loopback.
    Loopback,
    /// Its own, with a loopback at which some addresses lie.
    Listed,
    /// The host's.
    Host,
}

/// What holds for every job.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configure {
    /// [`PROTOCOL_VERSION`].
    pub protocol: u32,
    /// Most jobs at a time.
    pub slots: u32,
    /// Weakest isolation that is accepted.
    pub level: Level,
    /// Whether jobs may ask for the host's network.
    pub allow_host_network: bool,
    /// First of the uids and gids that are this launcher's own, when it is started as root.
    pub uid_base: u32,
    /// Host paths shown besides the system's own.
    pub read_only_paths: Vec<String>,
    /// Directory of the worker's whose entries jobs can be given as inputs.
    pub inputs: Option<String>,
    /// Delegated cgroup directory.
    pub cgroup: Option<String>,
    /// Output that a job may have on the way.
    pub output_window_bytes: usize,
    /// Directory of the worker's in which each job has one of its own; at level `none`.
    pub directories: Option<String>,
    /// How many uids and gids there are from `uid_base` on.
    pub uid_count: u32,
    /// Those of the worker's user, when it is not root.
    pub subordinate: Option<Subordinate>,
    /// Directories of the host that jobs may have as their root, by name.
    pub roots: BTreeMap<String, String>,
    /// Directory of the worker's in which unpacked images are.
    pub root_cache: Option<String>,
}

/// uids and gids that `/etc/subuid` and `/etc/subgid` give a user.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subordinate {
    /// First uid.
    pub uid: u32,
    /// First gid.
    pub gid: u32,
    /// How many of each.
    pub count: u32,
}

/// Bounds of one execution; `None` is unlimited.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    pub pids: Option<u64>,
    pub open_files: u64,
    pub file_bytes: Option<u64>,
    pub tmp_bytes: u64,
    pub output_bytes: u64,
    pub cpu_s: Option<u64>,
    pub cpu_milli: Option<u64>,
    pub cpu_weight: Option<u64>,
    pub io_weight: Option<u64>,
}

/// A job to start.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spawn {
    pub job: String,
    pub attempt: u32,
    pub argv: Vec<String>,
    pub script: Option<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: Option<String>,
    pub stdin: Option<ByteBuf>,
    pub files: BTreeMap<String, ByteBuf>,
    /// Path in the job's directory, and which entry of the directory of inputs is shown there, read-only.
    pub inputs: BTreeMap<String, String>,
    /// Whether the worker is given what the job leaves in its directories.
    pub keep: bool,
    pub network: NetworkKind,
    /// Addresses and ports that it may reach by TCP, with a network of kind `listed`.
    pub connect: Vec<String>,
    pub timeout_s: Option<f64>,
    pub heartbeat_s: Option<f64>,
    pub grace_s: f64,
    pub limits: Limits,
    /// Name below [`crate::plan::SECRETS_DIRECTORY`] and content.
    pub secrets: BTreeMap<String, Secret>,
    /// Name of its directory in that of `Configure::directories`.
    pub directory: Option<String>,
    /// Whether more output than is kept ends the job.
    pub fail_on_output_limit: bool,
    /// Its root image: `named/NAME`, or `cache/ENTRY`.
    pub root: Option<String>,
}

/// What must not be told to anybody but the job.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(ByteBuf);

impl Secret {
    /// The value itself.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(***)")
    }
}

impl Spawn {
    /// A job that asks for as much as any other, and is never run.
    #[must_use]
    pub fn rehearsal() -> Self {
        Self {
            job: "rehearsal".into(),
            attempt: 0,
            argv: vec!["true".into()],
            script: None,
            env: BTreeMap::new(),
            cwd: None,
            stdin: None,
            files: BTreeMap::from([("directory/file".into(), ByteBuf::from(b"content"))]),
            inputs: BTreeMap::new(),
            keep: true,
            network: NetworkKind::Loopback,
            connect: Vec::new(),
            timeout_s: None,
            heartbeat_s: None,
            grace_s: 0.0,
            limits: Limits {
                memory_bytes: Some(1 << 30),
                pids: Some(16),
                open_files: 64,
                file_bytes: None,
                tmp_bytes: 1 << 20,
                output_bytes: 0,
                cpu_s: None,
                cpu_milli: None,
                cpu_weight: None,
                io_weight: None,
            },
            secrets: BTreeMap::from([("secret".into(), Secret(ByteBuf::from(b"content")))]),
            directory: None,
            fail_on_output_limit: false,
            root: None,
        }
    }
}

/// A job to end.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    pub job: String,
    pub attempt: u32,
    pub reason: EndReason,
    pub now: bool,
}

/// Why the worker ends a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    Cancelled,
    Deadline,
    WorkerLost,
}

/// Output that has reached safety.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    pub job: String,
    pub attempt: u32,
    pub count: usize,
}

/// (1 stdout | 2 stderr, data).
pub type Segment<'a> = (u8, &'a Bytes);

/// What the launcher tells.
#[derive(Debug, Serialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum Event<'a> {
    Ready {
        level: Level,
        features: BTreeMap<&'static str, String>,
    },
    Failed {
        detail: String,
    },
    Started {
        job: &'a str,
        attempt: u32,
        pid: i32,
        started_ms: u64,
    },
    Output {
        job: &'a str,
        attempt: u32,
        segments: Vec<Segment<'a>>,
    },
    Notes {
        job: &'a str,
        attempt: u32,
        lines: ByteBuf,
    },
    Exited {
        job: &'a str,
        attempt: u32,
        outcome: Outcome,
        segments: Vec<Segment<'a>>,
        /// Device and inode number of the directory that the job has left; its descriptor came with this or before.
        kept: Option<(u64, u64)>,
    },
}

/// Why a job failed, by the job model's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    ExitCode,
    Signal,
    Oom,
    PidsLimit,
    Timeout,
    Deadline,
    Cancelled,
    WorkerLost,
    SandboxUnavailable,
    SpawnFailed,
    InvalidPayload,
    OutputLimit,
    DiskLimit,
    CpuLimit,
}

impl From<EndReason> for Reason {
    fn from(reason: EndReason) -> Self {
        match reason {
            EndReason::Cancelled => Self::Cancelled,
            EndReason::Deadline => Self::Deadline,
            EndReason::WorkerLost => Self::WorkerLost,
        }
    }
}

/// How an attempt ended; `jobs.protocol.wire.Outcome`.
#[derive(Debug, PartialEq, Serialize)]
pub struct Outcome {
    pub reason: Option<Reason>,
    pub message: Option<String>,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub started_ms: u64,
    pub finished_ms: u64,
    pub wall_s: f64,
    pub cpu_user_s: f64,
    pub cpu_system_s: f64,
    pub peak_memory_bytes: u64,
    pub sandbox: Level,
    pub stdout: StreamInfo,
    pub stderr: StreamInfo,
    /// What it may do to its root image, where it has one.
    pub root: Option<RootKind>,
}

/// What a job may do to its root image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RootKind {
    /// Write to it, in a layer of its own.
    Writable,
    /// Read it.
    ReadOnly,
}

/// How much one stream carried, and how much of it was kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StreamInfo {
    pub bytes: u64,
    pub stored_bytes: u64,
    pub truncated: bool,
}

/// The peer sent what no worker sends; the connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// A length over the limit.
    #[error("request of {0} bytes, limit {MAX_FRAME_BYTES}")]
    TooLong(usize),
    /// Not `MessagePack`, or not a known request.
    #[error("request that cannot be read: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
}

/// Cuts a stream of bytes into requests.
#[derive(Default)]
pub struct Decoder {
    rest: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds what was received.
    pub fn feed(&mut self, data: &[u8]) {
        self.rest.drain(..self.start);
        self.start = 0;
        self.rest.extend_from_slice(data);
    }

    /// Returns the next whole request, if there is one.
    ///
    /// # Errors
    /// [`ProtocolError`] for bytes that no worker sends.
    pub fn next(&mut self) -> Result<Option<Request>, ProtocolError> {
        let unread = &self.rest[self.start..];
        let Some((head, body)) = unread.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*head) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(ProtocolError::TooLong(length));
        }
        let Some(body) = body.get(..length) else {
            return Ok(None);
        };
        let request = rmp_serde::from_slice(body)?;
        self.start += 4 + length;
        Ok(Some(request))
    }
}

/// Appends `event` with its length in front to `buffer`.
pub fn encode(event: &Event<'_>, buffer: &mut Vec<u8>) {
    let start = buffer.len();
    buffer.extend([0; 4]);
    rmp_serde::encode::write_named(buffer, event).expect("writing plain data to memory cannot fail");
    let length = u32::try_from(buffer.len() - start - 4).expect("a frame carries little more than one flush of output");
    buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(value: &impl Serialize) -> Vec<u8> {
        let body = rmp_serde::to_vec_named(value).unwrap();
        let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(body);
        bytes
    }

    #[derive(Serialize)]
    struct AckFrame<'a> {
        t: &'a str,
        job: &'a str,
        attempt: u32,
        count: usize,
    }

    #[test]
    fn a_request_arrives_whole_whatever_the_pieces() {
        let bytes = frame(&AckFrame {
            t: "ack",
            job: "j",
            attempt: 2,
            count: 7,
        });
        let mut decoder = Decoder::default();
        for (index, byte) in bytes.iter().chain(&bytes).enumerate() {
            assert!(decoder.next().unwrap().is_none() || index == bytes.len());
            decoder.feed(&[*byte]);
        }
        let Some(Request::Ack(ack)) = decoder.next().unwrap() else {
            panic!("no request")
        };
        assert_eq!((ack.job.as_str(), ack.attempt, ack.count), ("j", 2, 7));
        assert!(decoder.next().unwrap().is_none());
    }

    #[test]
    fn lies_about_length_and_unknown_requests_are_refused() {
        let mut decoder = Decoder::default();
        decoder.feed(&u32::MAX.to_be_bytes());
        assert!(matches!(decoder.next(), Err(ProtocolError::TooLong(_))));
        let mut decoder = Decoder::default();
        decoder.feed(&frame(&AckFrame {
            t: "launch",
            job: "j",
            attempt: 1,
            count: 0,
        }));
        assert!(matches!(decoder.next(), Err(ProtocolError::Malformed(_))));
    }
}
