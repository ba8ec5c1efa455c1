//! Real endpoints on the loopback interface, and a peer that speaks QUIC as it likes.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh::endpoint::{Connection, ConnectionError, RecvStream, SendStream, presets};
use iroh::{EndpointAddr, RelayMode, SecretKey, TransportAddr};
use jobs_net::wire::{Channel, Hello, Kind, frame};
use jobs_net::{ALPN, Config, Endpoint, Event, Foreign, Limits, What};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Longest wait for anything; reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A node's endpoint in a folder of its own.
pub struct Node {
    pub endpoint: Endpoint,
    folder: TempDir,
    descriptor: File,
    seen: Vec<Event>,
}

impl Node {
    pub fn start(name: &str) -> Self {
        Self::with(name, "test", &[])
    }

    pub fn with(name: &str, cluster: &str, limits: &[(&str, u64)]) -> Self {
        let address = "127.0.0.1:0".parse().unwrap();
        Self::open(tempfile::tempdir().unwrap(), name, cluster, limits, address)
    }

    /// Another node with the same key, as a copied disk makes it.
    pub fn copy(&self, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(self.folder.path().join("node.key"), folder.path().join("node.key")).unwrap();
        Self::open(folder, name, "test", &[], "127.0.0.1:0".parse().unwrap())
    }

    /// Close it; its folder stays for the next life.
    pub fn stop(self) -> TempDir {
        self.endpoint.close();
        self.folder
    }

    /// The next life, with the same key and address.
    pub fn restart(folder: TempDir, name: &str, address: SocketAddr) -> Self {
        Self::open(folder, name, "test", &[], address)
    }

    fn open(folder: TempDir, name: &str, cluster: &str, limits: &[(&str, u64)], address: SocketAddr) -> Self {
        let mut set = Limits::default();
        for (limit, value) in limits {
            set.set(limit, *value).unwrap();
        }
        let endpoint = Endpoint::start(Config {
            key_file: folder.path().join("node.key"),
            bind: vec![address],
            cluster: cluster.into(),
            node: name.into(),
            limits: set,
        });
        let endpoint = endpoint.unwrap();
        let descriptor = endpoint.events().try_clone_descriptor().unwrap();
        Self {
            descriptor: descriptor.into(),
            endpoint,
            folder,
            seen: Vec::new(),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.endpoint.addresses()[0]
    }

    pub fn entry(&self) -> (String, Vec<SocketAddr>) {
        (self.endpoint.id(), vec![self.address()])
    }

    /// Speak to these.
    pub fn know(&self, others: &[&Self]) {
        let peers: Vec<_> = others.iter().map(|other| other.entry()).collect();
        self.endpoint.set_peers(&peers, &[], &[]).unwrap();
    }

    /// Speak to these, of the clusters named, and to nobody else.
    pub fn know_foreign(&self, others: &[(&Self, &str)]) {
        let entry = |(other, cluster): &(&Self, &str)| Foreign {
            id: other.endpoint.id(),
            cluster: (*cluster).into(),
            addresses: vec![other.address()],
        };
        let foreign: Vec<_> = others.iter().map(entry).collect();
        self.endpoint.set_peers(&[], &[], &foreign).unwrap();
    }

    /// Speak to this key, which has no address.
    pub fn know_raw(&self, raw: &Raw) {
        self.endpoint.set_peers(&[(raw.id(), Vec::new())], &[], &[]).unwrap();
    }

    /// The next event like this; those before it are put aside.
    pub fn wait(&mut self, what: What) -> Event {
        self.wait_for(|event| event.what == what)
    }

    pub fn wait_for(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(place) = self.seen.iter().position(&wanted) {
                return self.seen.remove(place);
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "nothing like it came; seen: {:?}, {:?}",
                self.seen,
                self.counters()
            );
            self.poll(left);
            self.seen.extend(self.endpoint.events().receive(64));
        }
    }

    /// Wait until something came.
    fn poll(&self, longest: Duration) {
        let timeout = Timespec {
            tv_sec: i64::try_from(longest.as_secs()).unwrap(),
            tv_nsec: longest.subsec_nanos().into(),
        };
        poll(&mut [PollFd::new(&self.descriptor, PollFlags::IN)], Some(&timeout)).unwrap();
    }

    /// Take what has come until now.
    pub fn drain(&mut self) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.seen);
        events.extend(self.endpoint.events().receive(usize::MAX));
        events
    }

    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.endpoint.counters().read().into_iter().collect()
    }

    pub fn count(&self, name: &str) -> u64 {
        self.counters()[name]
    }

    /// Ask and answer once: both live and speak to each other.
    pub fn assert_answers(&mut self, asker: &mut Self) {
        let number = asker
            .endpoint
            .request(&self.endpoint.id(), Bytes::from_static(b"there?"), PATIENCE);
        let number = number.unwrap();
        let question = self.wait_for(|event| event.what == What::Request && &event.body[..] == b"there?");
        assert!(
            self.endpoint
                .respond(question.number, Bytes::from_static(b"yes"))
                .unwrap()
        );
        let answer = asker.wait_for(|event| event.number == number);
        assert_eq!((answer.what, &answer.body[..]), (What::Answer, &b"yes"[..]));
    }
}

/// A peer that keeps to nothing but QUIC.
pub struct Raw {
    pub runtime: Runtime,
    pub endpoint: iroh::Endpoint,
}

impl Raw {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let endpoint = runtime.block_on(async {
            iroh::Endpoint::builder(presets::Minimal)
                .relay_mode(RelayMode::Disabled)
                .clear_address_lookup()
                .clear_ip_transports()
                .secret_key(SecretKey::generate())
                .alpns(vec![ALPN.to_vec()])
                .bind_addr("127.0.0.1:0")
                .unwrap()
                .bind()
                .await
                .unwrap()
        });
        Self { runtime, endpoint }
    }

    pub fn id(&self) -> String {
        self.endpoint.id().to_string()
    }

    pub fn connect(&self, node: &Node, alpn: &[u8]) -> Result<Connection, String> {
        let id = node.endpoint.id().parse().unwrap();
        let address = EndpointAddr::from_parts(id, [TransportAddr::Ip(node.address())]);
        self.runtime
            .block_on(self.endpoint.connect(address, alpn))
            .map_err(|error| error.to_string())
    }

    pub fn open(&self, connection: &Connection) -> (SendStream, RecvStream) {
        self.runtime.block_on(connection.open_bi()).unwrap()
    }

    pub fn write(&self, stream: &mut SendStream, bytes: &[u8]) {
        self.runtime.block_on(stream.write_all(bytes)).unwrap();
    }

    /// Say hello and get the welcome; the go is left to the caller.
    pub fn greet(&self, node: &Node, channel: Channel) -> (Connection, SendStream) {
        self.greet_as(node, &hello(channel))
    }

    /// The same with another hello.
    pub fn greet_as(&self, node: &Node, hello: &Hello) -> (Connection, SendStream) {
        let connection = self.connect(node, ALPN).unwrap();
        let (mut send, mut receive) = self.open(&connection);
        self.write(&mut send, &frame::encode(Kind::Hello, &hello.encode()));
        let mut first = [0];
        self.runtime.block_on(receive.read_exact(&mut first)).unwrap();
        assert_eq!(first, [Kind::Welcome as u8]);
        (connection, send)
    }

    /// A connection that counts.
    pub fn join(&self, node: &Node, channel: Channel) -> Connection {
        self.join_as(node, &hello(channel))
    }

    /// The same with another hello.
    pub fn join_as(&self, node: &Node, hello: &Hello) -> Connection {
        let (connection, mut send) = self.greet_as(node, hello);
        self.write(&mut send, &frame::encode(Kind::Go, &[]));
        connection
    }

    /// How the node closed the connection: code and words.
    pub fn closed(&self, connection: &Connection) -> (u64, String) {
        let closed = async { tokio::time::timeout(PATIENCE, connection.closed()).await };
        match self.runtime.block_on(closed).expect("the connection is still open") {
            ConnectionError::ApplicationClosed(close) => (
                close.error_code.into_inner(),
                String::from_utf8(close.reason.to_vec()).unwrap(),
            ),
            other => panic!("closed by something else: {other}"),
        }
    }
}

pub fn hello(channel: Channel) -> Hello {
    Hello {
        channel,
        incarnation: 7,
        cluster: "test".into(),
        node: "raw".into(),
    }
}

/// A message as a frame.
pub fn message(text: &str) -> Vec<u8> {
    frame::encode(Kind::Message, text.as_bytes())
}

/// Bytes of a text.
pub fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A stream from one to two; its numbers on both sides.
pub fn stream(one: &Node, two: &mut Node, header: &str) -> (u64, u64) {
    let number = one.endpoint.stream_open(&two.endpoint.id(), text(header)).unwrap();
    let came = two.wait_for(|event| event.what == What::Stream && event.body == header.as_bytes());
    (number, came.number)
}

/// Everything that comes on a stream until its end, consumed as it comes.
pub fn read_all(node: &mut Node, number: u64) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let event = node.wait_for(|event| event.number == number && event.what != What::StreamWritable);
        match event.what {
            What::StreamData => {
                all.extend_from_slice(&event.body);
                node.endpoint.stream_consumed(number, event.body.len()).unwrap();
            }
            What::StreamEnd => return all,
            _ => panic!("{event:?}"),
        }
    }
}
