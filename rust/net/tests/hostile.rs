//! A node lives on, counts and tells, whatever a peer or a stranger sends.

mod support;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use iroh::endpoint::ReadError;
use jobs_net::wire::{Channel, Hello, Kind, frame};
use jobs_net::{ALPN, What};
use support::{Node, PATIENCE, Raw, hello, message};

/// A node that gives peers time on a machine that is busy.
fn patient() -> Node {
    Node::with("n1", "test", &[("handshake_ms", 30_000)])
}

/// A node with these limits, a friend that behaves, and a peer that need not.
fn crowd(limits: &[(&str, u64)]) -> (Node, Node, Raw) {
    let (node, friend, raw) = (Node::with("n1", "test", limits), Node::start("n2"), Raw::start());
    node.endpoint
        .set_peers(&[(raw.id(), Vec::new()), friend.entry()], &[], &[])
        .unwrap();
    friend.know(&[&node]);
    (node, friend, raw)
}

#[test]
fn a_stranger_is_refused_with_a_reason() {
    let mut node = patient();
    let stranger = Raw::start();
    let connection = stranger.connect(&node, ALPN).unwrap();
    let (code, reason) = stranger.closed(&connection);
    assert_eq!((code, &reason[..]), (1, "this endpoint id is not on the allowlist"));
    let told = node.wait(What::Refused);
    assert_eq!(told.text, "stranger");
    assert!(told.peer.contains(&stranger.id()), "{}", told.peer);
    assert_eq!(node.count("refused_stranger"), 1);
}

#[test]
fn a_greeting_that_is_none_is_refused_by_its_kind() {
    let mut node = patient();
    let raw = Raw::start();
    node.know_raw(&raw);
    let greeting = hello(Channel::Messages).encode();
    let mut of_version_9 = greeting.clone();
    of_version_9[4] = 9;
    let other_cluster = Hello {
        cluster: "other".into(),
        ..hello(Channel::Streams)
    };
    let cases = [
        ("version", 3, frame::encode(Kind::Hello, &of_version_9)),
        ("cluster", 2, frame::encode(Kind::Hello, &other_cluster.encode())),
        ("malformed", 4, frame::encode(Kind::Hello, b"hello there")),
        ("malformed", 4, frame::encode(Kind::Message, &greeting)),
        ("malformed", 4, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("too_large", 6, frame::encode_header(Kind::Hello, u32::MAX).to_vec()),
        ("truncated", 5, frame::encode(Kind::Hello, &greeting)[..20].to_vec()),
        ("truncated", 5, Vec::new()),
    ];
    for (kind, code, bytes) in cases {
        let before = node.count(&format!("refused_{kind}"));
        let connection = raw.connect(&node, ALPN).unwrap();
        let (mut send, _receive) = raw.open(&connection);
        raw.write(&mut send, &bytes);
        // An empty stream reaches the other side by its end alone.
        send.finish().unwrap();
        let (closed, reason) = raw.closed(&connection);
        assert_eq!(closed, code, "{kind}: {reason}");
        let told = node.wait(What::Refused);
        assert_eq!((&told.text[..], &told.detail), (kind, &reason));
        assert_eq!(node.count(&format!("refused_{kind}")), before + 1);
    }
}

#[test]
fn the_words_name_the_version_and_the_clusters() {
    let node = patient();
    let raw = Raw::start();
    node.know_raw(&raw);
    let mut of_version_9 = hello(Channel::Messages).encode();
    of_version_9[4] = 9;
    let mut other = hello(Channel::Messages);
    other.cluster = "blue".into();
    let cases = [
        (of_version_9, "protocol version 9 is unknown here; this node speaks 1"),
        (other.encode(), "cluster \"blue\" is not this node's, which is \"test\""),
    ];
    for (greeting, words) in cases {
        let connection = raw.connect(&node, ALPN).unwrap();
        let (mut send, _receive) = raw.open(&connection);
        raw.write(&mut send, &frame::encode(Kind::Hello, &greeting));
        assert_eq!(raw.closed(&connection).1, words);
    }
}

#[test]
fn traffic_that_keeps_to_nothing_closes_its_connection_only() {
    let (mut node, mut friend, raw) = crowd(&[]);
    let huge = |kind| frame::encode_header(kind, 100 << 20).to_vec();
    let cases = [
        (Channel::Messages, huge(Kind::Message), "too_large"),
        (Channel::Messages, vec![255; 100], "malformed"),
        (Channel::Messages, message("whole")[..8].to_vec(), "truncated"),
        (Channel::Requests, huge(Kind::Request), "too_large"),
        (Channel::Requests, frame::encode(Kind::Request, b"abc"), "malformed"),
        (Channel::Requests, frame::encode(Kind::Answer, b"abc"), "malformed"),
        (Channel::Streams, huge(Kind::Open), "too_large"),
        (Channel::Streams, frame::encode(Kind::Request, &[1; 40]), "malformed"),
        (
            Channel::Streams,
            frame::encode(Kind::Open, &[1; 40])[..30].to_vec(),
            "truncated",
        ),
    ];
    for (channel, bytes, kind) in cases {
        let connection = raw.join(&node, channel);
        // The other half is kept: without it the peer tells that it wants no answer, and nothing is read.
        let (mut send, _receive) = if channel == Channel::Messages {
            (raw.runtime.block_on(connection.open_uni()).unwrap(), None)
        } else {
            let (send, receive) = raw.open(&connection);
            (send, Some(receive))
        };
        raw.write(&mut send, &bytes);
        send.finish().unwrap();
        raw.closed(&connection);
        let told = node.wait(What::Refused);
        assert_eq!(told.text, kind, "{channel:?}: {}", told.detail);
        node.assert_answers(&mut friend);
    }
}

#[test]
fn noise_in_place_of_traffic_costs_its_connection_only() {
    let (mut node, mut friend, raw) = crowd(&[("stall_ms", 200)]);
    let scale: u64 = std::env::var("JOBS_TEST_SCALE").map_or(1, |text| text.parse().unwrap());
    let mut chance = Chance(scale);
    let whole = [
        (Channel::Messages, Kind::Message),
        (Channel::Requests, Kind::Request),
        (Channel::Streams, Kind::Open),
    ];
    for round in 0..60 * scale {
        let (channel, kind) = whole[chance.below(whole.len())];
        // Right frames, of which some bits are turned, or that are cut, or noise alone.
        let mut bytes: Vec<u8> = (0..chance.below(4))
            .flat_map(|_| frame::encode(kind, &chance.bytes(300)))
            .collect();
        match chance.below(3) {
            0 => bytes.truncate(chance.below(bytes.len() + 1)),
            1 => bytes.extend(chance.bytes(300)),
            _ => {}
        }
        for _ in 0..chance.below(3).min(bytes.len()) {
            let place = chance.below(bytes.len() * 8);
            bytes[place / 8] ^= 1 << (place % 8);
        }
        let greets = chance.below(4) > 0;
        let connection = if greets {
            raw.join(&node, channel)
        } else {
            raw.connect(&node, ALPN).unwrap()
        };
        // The other half is kept: without it nothing is read.
        let (mut send, _receive) = if greets && channel == Channel::Messages {
            (raw.runtime.block_on(connection.open_uni()).unwrap(), None)
        } else {
            let (send, receive) = raw.open(&connection);
            (send, Some(receive))
        };
        // The node may have closed it before all was written.
        let written = raw.runtime.block_on(send.write_all(&bytes));
        if written.is_ok() && chance.below(2) == 0 {
            let _ = send.finish();
        }
        if round % 10 == 0 {
            node.assert_answers(&mut friend);
        }
        connection.close(0u32.into(), b"");
    }
    node.assert_answers(&mut friend);
    let refused: u64 = node
        .counters()
        .iter()
        .filter(|(name, _)| name.starts_with("refused_"))
        .map(|(_, count)| count)
        .sum();
    assert!(refused > 0, "{:?}", node.counters());
}

/// Numbers that look random, from a seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit.max(1)
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most))
            .map(|_| self.below(256).to_le_bytes()[0])
            .collect()
    }
}

#[test]
fn a_peer_that_says_nothing_is_closed_after_the_handshakes_time() {
    let mut node = Node::with("n1", "test", &[("handshake_ms", 2_000)]);
    let raw = Raw::start();
    node.know_raw(&raw);
    let mute = raw.connect(&node, ALPN).unwrap();
    let (hesitating, _stream) = raw.greet(&node, Channel::Messages);
    for connection in [mute, hesitating] {
        assert_eq!(raw.closed(&connection), (7, "the handshake took too long".into()));
        assert_eq!(node.wait(What::Refused).text, "timeout");
    }
}

#[test]
fn handshakes_of_one_source_are_bounded() {
    let limits = [("max_handshakes_per_source", 4), ("max_handshakes", 64)];
    let mut node = Node::with("n1", "test", &limits);
    let raw = Raw::start();
    node.know_raw(&raw);
    let mute: Vec<_> = (0..4).map(|_| raw.connect(&node, ALPN).unwrap()).collect();
    assert!(raw.connect(&node, ALPN).is_err());
    assert_eq!(node.wait(What::Refused).text, "busy");
    for connection in mute {
        connection.close(0u32.into(), b"");
    }
    // There is room again as soon as the node knows.
    let until = Instant::now() + PATIENCE;
    while raw.connect(&node, ALPN).is_err() {
        assert!(Instant::now() < until, "no handshake is taken any more");
    }
}

#[test]
fn another_protocol_finds_nobody() {
    let mut node = patient();
    let raw = Raw::start();
    node.know_raw(&raw);
    assert!(raw.connect(&node, b"h3").is_err());
    assert_eq!(node.wait(What::Refused).text, "tls");
}

#[test]
fn datagrams_that_are_no_quic_change_nothing() {
    let (mut node, mut friend) = (patient(), Node::start("n2"));
    node.know(&[&friend]);
    friend.know(&[&node]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut chance = Chance(1);
    for length in (0..1_400).step_by(7) {
        let noise: Vec<u8> = (0..length).map(|_| chance.below(256).to_le_bytes()[0]).collect();
        socket.send_to(&noise, node.address()).unwrap();
        // Like a long header of QUIC version 1, with the rest as noise.
        let initial = [&[0xc3, 0, 0, 0, 1, 8][..], &noise].concat();
        socket.send_to(&initial, node.address()).unwrap();
    }
    node.assert_answers(&mut friend);
}

#[test]
fn requests_beyond_the_limit_wait_on_the_peers_side() {
    let (mut node, mut friend, raw) = crowd(&[("max_concurrent_requests", 32)]);
    let connection = raw.join(&node, Channel::Requests);
    let request = frame::encode(
        Kind::Request,
        &[&60_000u32.to_le_bytes()[..], b"never answered"].concat(),
    );
    let opened = raw.runtime.block_on(async {
        let mut streams = Vec::new();
        while streams.len() < 5_000 {
            let Ok(stream) = tokio::time::timeout(Duration::from_millis(500), connection.open_bi()).await else {
                break;
            };
            let mut stream = stream.unwrap();
            stream.0.write_all(&request).await.unwrap();
            streams.push(stream);
        }
        streams
    });
    assert!(opened.len() <= 32, "{} streams were taken", opened.len());
    for _ in 0..opened.len() {
        node.wait_for(|event| event.what == What::Request && &event.body[..] == b"never answered");
    }
    node.assert_answers(&mut friend);
}

#[test]
fn a_peer_that_floods_is_held_up_when_the_application_does_not_take_its_messages() {
    let limits = [("inbox_bytes", 1 << 20), ("max_message_bytes", 64 << 10)];
    let (mut node, mut friend, raw) = crowd(&limits);
    let connection = raw.join(&node, Channel::Messages);
    let mut send = raw.runtime.block_on(connection.open_uni()).unwrap();
    let flood = message(&"x".repeat(60 << 10)).repeat(8);
    let written = raw.runtime.block_on(async {
        let mut written = 0;
        while written < 200 << 20 {
            let writing = tokio::time::timeout(Duration::from_millis(500), send.write_all(&flood));
            if writing.await.is_err() {
                break;
            }
            written += flood.len();
        }
        written
    });
    assert!(written < 16 << 20, "{written} bytes were taken without a reader");
    let held = node.drain();
    let held_bytes: usize = held.iter().map(|event| event.body.len()).sum();
    assert!(held_bytes <= 1 << 20, "{held_bytes} bytes wait");
    drop(held);
    node.assert_answers(&mut friend);
}

#[test]
fn nothing_of_a_former_connection_comes_after_a_later_one_counts() {
    let mut node = patient();
    let raw = Raw::start();
    node.know_raw(&raw);
    let (early, mut early_greeting) = raw.greet(&node, Channel::Messages);
    let later = raw.join(&node, Channel::Messages);
    let mut later_stream = raw.runtime.block_on(later.open_uni()).unwrap();
    raw.write(&mut later_stream, &message("new"));
    assert_eq!(&node.wait(What::Message).body[..], b"new");
    // The earlier one goes on only now: it is too late.
    raw.write(&mut early_greeting, &frame::encode(Kind::Go, &[]));
    assert_eq!(raw.closed(&early), (9, "a later connection takes its place".into()));
    // And one that counted is closed by the next.
    let _next = raw.join(&node, Channel::Messages);
    assert_eq!(raw.closed(&later).0, 9);
    assert!(node.drain().iter().all(|event| event.what != What::Message));
}

#[test]
fn a_stream_that_never_says_what_it_is_for_is_given_up_alone() {
    let mut node = Node::with("n1", "test", &[("handshake_ms", 2_000)]);
    let raw = Raw::start();
    node.know_raw(&raw);
    let connection = raw.join(&node, Channel::Streams);
    let (mut mute, mut answers) = raw.open(&connection);
    raw.write(&mut mute, &frame::encode(Kind::Open, b"header")[..7]);
    let read = raw.runtime.block_on(answers.read(&mut [0]));
    assert!(matches!(read, Err(ReadError::Reset(_))), "{read:?}");
    // Others on the same connection are taken.
    let (mut send, _answers) = raw.open(&connection);
    raw.write(&mut send, &frame::encode(Kind::Open, b"header"));
    assert_eq!(&node.wait(What::Stream).body[..], b"header");
    assert_eq!(node.count("streams_taken"), 1);
}

#[test]
fn streams_are_bounded_in_number_and_a_flood_without_a_reader_in_bytes() {
    let limits = [
        ("max_streams_in", 64),
        ("max_streams", 6),
        ("stream_in_bytes", 64 << 10),
    ];
    let (mut node, mut friend, raw) = crowd(&limits);
    let connection = raw.join(&node, Channel::Streams);
    let mut streams: Vec<_> = (0..8).map(|_| raw.open(&connection)).collect();
    for (send, _) in &mut streams {
        raw.write(send, &frame::encode(Kind::Open, b""));
    }
    // Two are over the limit of all; which ones, chance decides.
    for _ in 0..6 {
        node.wait(What::Stream);
    }
    assert_eq!(node.wait(What::Refused).text, "busy");
    let flood = vec![7; 64 << 10];
    let mut written = 0;
    raw.runtime.block_on(async {
        for (send, _) in &mut streams {
            let writing = async {
                while send.write_all(&flood).await.is_ok() {
                    written += flood.len();
                }
            };
            let _ = tokio::time::timeout(Duration::from_millis(200), writing).await;
        }
    });
    // For each: what was handed on, and what the library keeps.
    assert!(
        written <= 6 * ((64 + 256 + 64) << 10),
        "{written} bytes were taken without a reader"
    );
    node.assert_answers(&mut friend);
}

#[test]
fn refusals_are_told_at_a_rate_and_counted_all() {
    let mut node = patient();
    let stranger = Raw::start();
    for _ in 0..30 {
        let connection = stranger.connect(&node, ALPN).unwrap();
        stranger.closed(&connection);
    }
    node.wait(What::Refused);
    let until = Instant::now() + PATIENCE;
    while node.count("refused_stranger") < 30 {
        assert!(Instant::now() < until, "{:?}", node.counters());
        std::thread::yield_now();
    }
    let told = 1 + node.drain().len();
    assert!(told < 30, "{told} were told");
}
