//! Peers of other clusters: they ask and open streams, and nothing else.

mod support;

use std::time::Duration;

use iroh::endpoint::Connection;
use jobs_net::wire::{Channel, Hello, Kind, frame};
use jobs_net::{ALPN, Foreign, What};
use support::{Node, PATIENCE, Raw, hello, read_all, stream, text};

/// Nodes of two clusters that know each other.
fn pair() -> (Node, Node) {
    let (one, two) = (Node::with("n1", "blue", &[]), Node::with("n2", "green", &[]));
    one.know_foreign(&[(&two, "green")]);
    two.know_foreign(&[(&one, "blue")]);
    (one, two)
}

/// A node with these limits, a member that behaves, and a foreign peer that need not.
fn crowd(limits: &[(&str, u64)]) -> (Node, Node, Raw) {
    let (node, friend, raw) = (Node::with("n1", "test", limits), Node::start("n2"), Raw::start());
    let foreign = Foreign {
        id: raw.id(),
        cluster: "other".into(),
        addresses: Vec::new(),
    };
    node.endpoint.set_peers(&[friend.entry()], &[], &[foreign]).unwrap();
    friend.know(&[&node]);
    (node, friend, raw)
}

/// What the foreign peer says of itself.
fn of_other(channel: Channel) -> Hello {
    Hello {
        cluster: "other".into(),
        ..hello(channel)
    }
}

fn connections(node: &Node) -> u64 {
    node.count("accepted") + node.count("dials") + node.count("dials_failed")
}

#[test]
fn they_ask_and_open_streams_both_ways_and_are_dialled_only_then() {
    // Given a member beside the foreign peer, with which the link for messages is up
    let (mut one, mut two) = pair();
    let mut friend = Node::with("n3", "blue", &[]);
    let foreign = Foreign {
        id: two.endpoint.id(),
        cluster: "green".into(),
        addresses: vec![two.address()],
    };
    one.endpoint.set_peers(&[friend.entry()], &[], &[foreign]).unwrap();
    friend.know(&[&one]);
    one.wait(What::Up);
    friend.wait(What::Up);
    assert_eq!(connections(&two), 0);
    // When something is asked, then they are dialled
    two.assert_answers(&mut one);
    one.assert_answers(&mut two);
    for opener_is_one in [true, false] {
        let (opener, taker) = if opener_is_one {
            (&mut one, &mut two)
        } else {
            (&mut two, &mut one)
        };
        let (here, there) = stream(opener, taker, "of another cluster");
        opener.endpoint.stream_write(here, text("question")).unwrap();
        opener.endpoint.stream_finish(here).unwrap();
        assert_eq!(read_all(taker, there), b"question");
        taker.endpoint.stream_write(there, text("answer")).unwrap();
        taker.endpoint.stream_finish(there).unwrap();
        assert_eq!(read_all(opener, here), b"answer");
    }
    // Then for that alone: one connection for each kind, each way
    assert_eq!(connections(&two), 4);
    // And no messages are sent, whatever the application says
    for node in [&one, &two] {
        let other = if std::ptr::eq(node, &raw const one) { &two } else { &one };
        assert!(!node.endpoint.send(&other.endpoint.id(), text("x")).unwrap());
        assert!(!node.endpoint.send_urgent(&other.endpoint.id(), text("x")).unwrap());
        assert_eq!(node.count("messages_dropped"), 2);
    }
    assert!(two.endpoint.peers().unwrap().iter().all(|peer| !peer.up));
    one.assert_answers(&mut friend);
}

#[test]
fn another_cluster_than_the_one_that_is_known_is_refused_on_either_side() {
    // What each takes the other for; words of the side that refuses
    let of_own = "is not this node's, which is";
    let of_known = "is not the one that this endpoint id is known to be of, which is";
    for (known_to_one, known_to_two, asker_refuses, words) in [
        (Some("red"), Some("blue"), true, of_known),
        (Some("green"), Some("red"), false, of_known),
        (None, Some("blue"), true, of_own),
        (Some("green"), None, false, of_own),
    ] {
        let (mut one, two) = (Node::with("n1", "blue", &[]), Node::with("n2", "green", &[]));
        for (node, other, known) in [(&one, &two, known_to_one), (&two, &one, known_to_two)] {
            match known {
                Some(cluster) => node.know_foreign(&[(other, cluster)]),
                None => node.know(&[other]),
            }
        }
        let number = one.endpoint.request(&two.endpoint.id(), text("x"), PATIENCE).unwrap();
        let failure = one.wait_for(|event| event.number == number);
        assert_eq!((failure.what, failure.extra), (What::Failure, 0));
        assert!(failure.detail.contains(words), "{}", failure.detail);
        let refuses = if asker_refuses { &one } else { &two };
        assert!(refuses.count("refused_cluster") > 0);
        assert_eq!(two.count("requests_received"), 0);
    }
}

#[test]
fn who_is_taken_off_the_list_or_taken_for_another_is_cut_off_at_once() {
    let (mut one, mut two) = pair();
    for change in ["off the list", "of another cluster", "a member"] {
        let asked = two
            .endpoint
            .request(&one.endpoint.id(), text("work"), PATIENCE)
            .unwrap();
        let request = one.wait(What::Request);
        let (here, there) = stream(&one, &mut two, change);
        match change {
            "off the list" => one.know(&[]),
            "a member" => one.know(&[&two]),
            _ => one.know_foreign(&[(&two, "red")]),
        }
        let failure = two.wait_for(|event| event.number == asked);
        assert_eq!(
            (failure.what, &failure.text[..], failure.extra),
            (What::Failure, "closed", 1)
        );
        let broken = two.wait_for(|event| event.number == there && event.what == What::StreamBroken);
        assert!(broken.detail.contains("off the allowlist"), "{}", broken.detail);
        one.wait_for(|event| event.number == here && event.what == What::StreamBroken);
        one.wait_for(|event| event.number == request.number && event.what == What::RequestGone);
        assert!(!one.endpoint.respond(request.number, text("late")).unwrap());
        if change == "off the list" {
            assert!(one.endpoint.request(&two.endpoint.id(), text("x"), PATIENCE).is_err());
        }
        // Known again they speak again
        one.know_foreign(&[(&two, "green")]);
        one.assert_answers(&mut two);
    }
}

#[test]
fn what_cannot_be_known_is_refused_and_the_list_stays() {
    let (mut one, mut two) = pair();
    let (id, addresses) = two.entry();
    let foreign = |id: &str, cluster: &str| Foreign {
        id: id.into(),
        cluster: cluster.into(),
        addresses: addresses.clone(),
    };
    let members = [(id.clone(), addresses.clone())];
    for (peers, entries, words) in [
        (
            &members[..0],
            vec![foreign(&id, "blue")],
            "its cluster is this node's own",
        ),
        (&members[..0], vec![foreign(&id, "not a name")], "is no cluster id"),
        (&members[..0], vec![foreign("nonsense", "green")], "is no endpoint id"),
        (
            &members[..0],
            vec![foreign(&one.endpoint.id(), "green")],
            "this node itself",
        ),
        (&members[..], vec![foreign(&id, "green")], "on the allowlist already"),
        (
            &members[..0],
            vec![foreign(&id, "green"), foreign(&id, "red")],
            "on the allowlist already",
        ),
        (&members[..0], vec![foreign(&id, "green"); 65], "65 peers: at most 64"),
    ] {
        let refused = one.endpoint.set_peers(peers, &[], &entries).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
    one.assert_answers(&mut two);
}

#[test]
fn they_may_not_send_messages_or_speak_other_protocols() {
    let (mut node, mut friend, raw) = crowd(&[]);
    let connection = raw.connect(&node, ALPN).unwrap();
    let (mut send, _receive) = raw.open(&connection);
    raw.write(
        &mut send,
        &frame::encode(Kind::Hello, &of_other(Channel::Messages).encode()),
    );
    let refusal = (1, "a peer of another cluster may not send messages".to_owned());
    assert_eq!(raw.closed(&connection), refusal);
    let told = node.wait(What::Refused);
    assert_eq!((&told.text[..], &told.detail), ("stranger", &refusal.1));
    assert!(raw.connect(&node, b"/iroh-bytes/4").is_err());
    assert_eq!(node.wait(What::Refused).text, "tls");
    // As a member, of this node's cluster, it is no one
    let connection = raw.connect(&node, ALPN).unwrap();
    let (mut send, _receive) = raw.open(&connection);
    raw.write(
        &mut send,
        &frame::encode(Kind::Hello, &hello(Channel::Requests).encode()),
    );
    assert_eq!(raw.closed(&connection).0, 2);
    assert_eq!(node.wait(What::Refused).text, "cluster");
    node.assert_answers(&mut friend);
}

#[test]
fn what_keeps_to_nothing_closes_its_connection_only() {
    let (mut node, mut friend, raw) = crowd(&[]);
    let whole = frame::encode(Kind::Open, &[1; 40]);
    let cases = [
        (
            Channel::Requests,
            frame::encode_header(Kind::Request, 100 << 20).to_vec(),
            "too_large",
        ),
        (Channel::Requests, frame::encode(Kind::Request, b"abc"), "malformed"),
        (
            Channel::Requests,
            frame::encode(Kind::Request, &[0; 9])[..9].to_vec(),
            "truncated",
        ),
        (
            Channel::Streams,
            frame::encode_header(Kind::Open, 100 << 20).to_vec(),
            "too_large",
        ),
        (Channel::Streams, frame::encode(Kind::Message, b"message"), "malformed"),
        (Channel::Streams, whole[..30].to_vec(), "truncated"),
    ];
    for (channel, bytes, kind) in cases {
        let connection = raw.join_as(&node, &of_other(channel));
        let (mut send, _receive) = raw.open(&connection);
        raw.write(&mut send, &bytes);
        send.finish().unwrap();
        raw.closed(&connection);
        let told = node.wait(What::Refused);
        assert_eq!(told.text, kind, "{channel:?}: {}", told.detail);
        node.assert_answers(&mut friend);
    }
}

/// Open streams and write this to each, until no more are taken; how many were.
fn flood(raw: &Raw, connection: &Connection, bytes: &[u8]) -> usize {
    raw.runtime.block_on(async {
        let mut streams = Vec::new();
        while streams.len() < 200 {
            let Ok(opened) = tokio::time::timeout(Duration::from_millis(500), connection.open_bi()).await else {
                break;
            };
            let mut opened = opened.unwrap();
            opened.0.write_all(bytes).await.unwrap();
            streams.push(opened);
        }
        streams.len()
    })
}

#[test]
fn a_flood_of_theirs_is_held_up_sooner_than_that_of_members() {
    let limits = [
        ("max_foreign_requests", 8),
        ("max_foreign_streams", 4),
        ("max_streams", 5),
        ("max_request_bytes", 1 << 20),
        ("foreign_requests_in_bytes", 2 << 20),
    ];
    let (mut node, mut friend, raw) = crowd(&limits);
    let asking = raw.join_as(&node, &of_other(Channel::Requests));
    let request = [&60_000u32.to_le_bytes()[..], b"never answered"].concat();
    let asked = flood(&raw, &asking, &frame::encode(Kind::Request, &request));
    assert!((1..=8).contains(&asked), "{asked} requests were taken");
    for _ in 0..asked {
        node.wait_for(|event| event.what == What::Request && &event.body[..] == b"never answered");
    }
    let streaming = raw.join_as(&node, &of_other(Channel::Streams));
    let opened = flood(&raw, &streaming, &frame::encode(Kind::Open, b"theirs"));
    assert!((1..=4).contains(&opened), "{opened} streams were taken");
    for _ in 0..opened {
        node.wait_for(|event| event.what == What::Stream && &event.body[..] == b"theirs");
    }
    // There is room for the members all the while
    node.assert_answers(&mut friend);
    let (here, there) = stream(&friend, &mut node, "a member's");
    friend.endpoint.stream_write(here, text("comes")).unwrap();
    friend.endpoint.stream_finish(here).unwrap();
    assert_eq!(read_all(&mut node, there), b"comes");
}

#[test]
fn all_of_them_together_leave_room_to_the_members() {
    let limits = [
        ("all_foreign_streams", 3),
        ("max_streams", 4),
        ("max_request_bytes", 1 << 20),
        ("all_foreign_requests_in_bytes", (1 << 20) + 1_024),
    ];
    let (mut node, mut friend) = (Node::with("n1", "test", &limits), Node::start("n2"));
    let theirs: Vec<_> = (0..3).map(|_| Raw::start()).collect();
    let foreign = |raw: &Raw| Foreign {
        id: raw.id(),
        cluster: "other".into(),
        addresses: Vec::new(),
    };
    let foreign: Vec<_> = theirs.iter().map(foreign).collect();
    node.endpoint.set_peers(&[friend.entry()], &[], &foreign).unwrap();
    friend.know(&[&node]);
    let mut kept = Vec::new();
    for raw in &theirs {
        let streaming = raw.join_as(&node, &of_other(Channel::Streams));
        for _ in 0..2 {
            let (mut send, receive) = raw.open(&streaming);
            raw.write(&mut send, &frame::encode(Kind::Open, b"theirs"));
            kept.push((send, receive));
        }
    }
    for _ in 0..3 {
        node.wait(What::Stream);
        assert_eq!(node.wait(What::Refused).text, "busy");
    }
    let request = frame::encode(
        Kind::Request,
        &[&60_000u32.to_le_bytes()[..], &vec![7; 900 << 10]].concat(),
    );
    for raw in &theirs {
        let asking = raw.join_as(&node, &of_other(Channel::Requests));
        let (mut send, receive) = raw.open(&asking);
        let _ = raw
            .runtime
            .block_on(async { tokio::time::timeout(Duration::from_millis(300), send.write_all(&request)).await });
        kept.push((send, receive));
    }
    node.wait(What::Request);
    node.assert_answers(&mut friend);
    let (here, there) = stream(&friend, &mut node, "a member's");
    friend.endpoint.stream_write(here, text("comes")).unwrap();
    friend.endpoint.stream_finish(here).unwrap();
    assert_eq!(read_all(&mut node, there), b"comes");
    assert_eq!(node.count("requests_received"), 2);
}

#[test]
fn requests_of_theirs_that_are_not_answered_are_bounded_in_bytes() {
    let limits = [("max_request_bytes", 1 << 20), ("foreign_requests_in_bytes", 2 << 20)];
    let (mut node, mut friend, raw) = crowd(&limits);
    let asking = raw.join_as(&node, &of_other(Channel::Requests));
    let request = frame::encode(
        Kind::Request,
        &[&60_000u32.to_le_bytes()[..], &vec![7; 900 << 10]].concat(),
    );
    let mut streams: Vec<_> = (0..4).map(|_| raw.open(&asking)).collect();
    raw.runtime.block_on(async {
        for (send, _) in &mut streams {
            let _ = tokio::time::timeout(Duration::from_millis(300), send.write_all(&request)).await;
        }
    });
    for _ in 0..2 {
        node.wait_for(|event| event.what == What::Request && event.body.len() == 900 << 10);
    }
    node.assert_answers(&mut friend);
    let more = node
        .drain()
        .into_iter()
        .filter(|event| event.what == What::Request)
        .count();
    assert_eq!(more, 0);
    assert_eq!(node.count("requests_received"), 3);
}
