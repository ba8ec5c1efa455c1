//! Real members on the loopback interface, and providers that do as they like.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bao_tree::BlockSize;
use bao_tree::io::outboard::PostOrderMemOutboard;
use bao_tree::io::sync::encode_ranges_validated;
use iroh_blobs::protocol::Request;
use jobs_blobs::{
    Adding, FetchOptions, Fetched, Hash, OperationEvent, Options, Progress, Reader, Result, Service, Store,
};
use jobs_net::{Config, Endpoint, Limits, OtherProtocol};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Longest wait for anything; reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_mins(1);

pub fn options() -> Options {
    Options { min_free_bytes: 0 }
}

/// Bytes of which no two groups are alike.
pub fn bytes(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut made = Vec::with_capacity(size + 8);
    while made.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        made.extend_from_slice(&state.to_le_bytes());
    }
    made.truncate(size);
    made
}

pub fn add(store: &Store, data: &[u8]) -> Hash {
    let mut adding = Adding::begin(store).unwrap();
    for part in data.chunks(100_000) {
        adding.write(part).unwrap();
    }
    let added = adding.finish().unwrap();
    assert_eq!((added.hash, added.size), (Hash::new(data), data.len() as u64));
    added.hash
}

pub fn read_all(store: &Store, hash: &Hash) -> Result<Vec<u8>> {
    let reader = Reader::open(store, hash)?;
    let mut all = Vec::new();
    loop {
        let part = reader.read(all.len() as u64, 300_000)?;
        if part.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&part);
    }
}

pub fn wanted(providers: &[&Member]) -> FetchOptions {
    FetchOptions {
        providers: providers.iter().map(|member| member.endpoint.id()).collect(),
        children: false,
        max_bytes: 1 << 40,
        stall: Duration::from_secs(5),
        min_bytes_per_s: 0,
        window: Duration::from_secs(5),
    }
}

/// A member with a store.
pub struct Member {
    pub service: Service,
    pub endpoint: Endpoint,
    pub folder: TempDir,
}

impl Member {
    pub fn start(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let service = Service::open(&folder.path().join("blobs"), options()).unwrap();
        let endpoint = endpoint(&folder, name);
        service.join(&endpoint).unwrap();
        Self {
            service,
            endpoint,
            folder,
        }
    }

    pub fn store(&self) -> &Store {
        self.service.store()
    }

    pub fn entry(&self) -> (String, Vec<SocketAddr>) {
        (self.endpoint.id(), self.endpoint.addresses().to_vec())
    }

    pub fn know(&self, others: &[&Self]) {
        let peers: Vec<_> = others.iter().map(|other| other.entry()).collect();
        self.endpoint.set_peers(&peers, &[], &[]).unwrap();
    }

    /// The file of a blob.
    pub fn file(&self, hash: &Hash) -> PathBuf {
        let hex = hash.to_hex();
        self.folder.path().join("blobs/data").join(&hex[..2]).join(hex)
    }

    pub fn fetch(&self, hash: &Hash, options: FetchOptions) -> Result<Fetched> {
        let number = self.service.fetch(*hash, options)?;
        self.ended(number)
    }

    /// How a fetch ended.
    pub fn ended(&self, number: u64) -> Result<Fetched> {
        loop {
            for event in self.wait() {
                match event {
                    OperationEvent::Ended(ended, result) if ended == number => return result,
                    _ => {}
                }
            }
        }
    }

    /// How far a fetch is, once it is so far.
    pub fn until(&self, number: u64, far_enough: impl Fn(&Progress) -> bool) -> Progress {
        loop {
            for event in self.wait() {
                match event {
                    OperationEvent::Progress(told, progress) if told == number && far_enough(&progress) => {
                        return progress;
                    }
                    OperationEvent::Ended(..) => panic!("it ended before: {event:?}"),
                    OperationEvent::Progress(..) => {}
                }
            }
        }
    }

    pub fn wait(&self) -> Vec<OperationEvent> {
        let file = self.service.try_clone_descriptor().unwrap();
        let timeout = Timespec {
            tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap(),
            tv_nsec: 0,
        };
        let ready = poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(ready, 1, "nothing came");
        self.service.receive()
    }
}

fn endpoint(folder: &TempDir, name: &str) -> Endpoint {
    Endpoint::start(Config {
        key_file: folder.path().join("node.key"),
        bind: vec!["127.0.0.1:0".parse().unwrap()],
        cluster: "test".into(),
        node: name.into(),
        limits: Limits::default(),
    })
    .unwrap()
}

/// Members all of which know each other.
pub fn members(count: usize) -> Vec<Member> {
    let made: Vec<Member> = (1..=count).map(|number| Member::start(&format!("n{number}"))).collect();
    acquaint(&made.iter().collect::<Vec<_>>());
    made
}

pub fn acquaint(members: &[&Member]) {
    for member in members {
        let id = member.endpoint.id();
        let others: Vec<&Member> = members
            .iter()
            .copied()
            .filter(|other| other.endpoint.id() != id)
            .collect();
        member.know(&others);
    }
}

/// What an answer becomes: its parts, and the pause before each.
pub type Twist = Arc<dyn Fn(Vec<u8>) -> Vec<(Duration, Vec<u8>)> + Send + Sync>;

/// A member that answers each request for one blob in a way of its own; after the parts its answers end.
pub struct Odd {
    pub member: Member,
    pub asked: Arc<AtomicU64>,
    _runtime: Runtime,
}

impl Odd {
    pub fn start(data: Vec<u8>, ends: bool, twist: Twist) -> Self {
        let member = Member::start("odd");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (handle, asked) = (runtime.handle().clone(), Arc::new(AtomicU64::new(0)));
        let (data, count) = (Arc::new(data), Arc::clone(&asked));
        let take = move |caller: jobs_net::Caller| {
            let (data, twist, count) = (Arc::clone(&data), Arc::clone(&twist), Arc::clone(&count));
            handle.spawn(async move {
                while let Ok((mut send, mut receive)) = caller.connection.accept_bi().await {
                    count.fetch_add(1, Ordering::Relaxed);
                    let (data, twist) = (Arc::clone(&data), Arc::clone(&twist));
                    tokio::spawn(async move {
                        let Ok((Request::Get(request), _)) = Request::read_async(&mut receive).await else {
                            return;
                        };
                        let ranges = request.ranges.iter_non_empty_infinite().next().unwrap().1;
                        let outboard = PostOrderMemOutboard::create(&data[..], BlockSize::from_chunk_log(4));
                        let mut answer = (data.len() as u64).to_le_bytes().to_vec();
                        encode_ranges_validated(&data[..], &outboard, ranges, &mut answer).unwrap();
                        for (pause, part) in twist(answer) {
                            tokio::time::sleep(pause).await;
                            if send.write_all(&part).await.is_err() {
                                return;
                            }
                        }
                        if ends {
                            let _ = send.finish();
                        } else {
                            tokio::time::sleep(PATIENCE).await;
                        }
                    });
                }
            });
        };
        let protocol = OtherProtocol {
            alpn: iroh_blobs::ALPN,
            max_streams: 8,
            take: Arc::new(take),
        };
        member.endpoint.serve_other(protocol).unwrap();
        Self {
            member,
            asked,
            _runtime: runtime,
        }
    }
}

/// All of an answer at once.
pub fn at_once(answer: Vec<u8>) -> Vec<(Duration, Vec<u8>)> {
    vec![(Duration::ZERO, answer)]
}
