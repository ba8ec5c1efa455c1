//! Two and more nodes that speak to each other as they should.

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use jobs_net::{Event, What};
use support::{Node, PATIENCE, read_all, stream, text};

fn pair() -> (Node, Node) {
    let (mut one, mut two) = (Node::start("n1"), Node::start("n2"));
    one.know(&[&two]);
    two.know(&[&one]);
    assert_eq!(one.wait(What::Up).text, "n2");
    assert_eq!(two.wait(What::Up).text, "n1");
    (one, two)
}

#[test]
fn messages_come_in_order_both_ways() {
    let (mut one, mut two) = pair();
    for number in 0..2_000 {
        assert!(
            one.endpoint
                .send(&two.endpoint.id(), text(&number.to_string()))
                .unwrap()
        );
        assert!(
            two.endpoint
                .send(&one.endpoint.id(), text(&number.to_string()))
                .unwrap()
        );
    }
    for number in 0..2_000 {
        for node in [&mut one, &mut two] {
            assert_eq!(&node.wait(What::Message).body[..], number.to_string().as_bytes());
        }
    }
}

#[test]
fn only_who_is_on_the_list_is_spoken_to_both_ways() {
    let (mut one, mut two) = (Node::start("n1"), Node::start("n2"));
    // Nobody knows: nothing is sent.
    assert!(
        one.endpoint
            .send(&two.endpoint.id(), text("x"))
            .unwrap_err()
            .to_string()
            .contains("allowlist")
    );
    // Only one knows the other: it is refused, and told why.
    one.know(&[&two]);
    let refused = one.wait(What::Refused);
    assert_eq!(refused.text, "by_peer");
    assert!(refused.detail.contains("not on the allowlist"), "{}", refused.detail);
    assert_eq!(two.wait(What::Refused).text, "stranger");
    let number = one.endpoint.request(&two.endpoint.id(), text("x"), PATIENCE).unwrap();
    let failure = one.wait_for(|event| event.number == number);
    assert_eq!(
        (failure.what, &failure.text[..], failure.extra),
        (What::Failure, "refused", 0)
    );
    assert!(!one.endpoint.send(&two.endpoint.id(), text("x")).unwrap());
    // Both know: they speak.
    two.know(&[&one]);
    one.wait(What::Up);
    two.assert_answers(&mut one);
}

#[test]
fn another_cluster_is_refused_and_both_are_told_why() {
    let mut one = Node::with("n1", "blue", &[]);
    let mut two = Node::with("n2", "green", &[]);
    one.know(&[&two]);
    two.know(&[&one]);
    let at_one = one.wait_for(|event| event.text == "by_peer");
    assert!(
        at_one.detail.contains("\"blue\"") && at_one.detail.contains("\"green\""),
        "{}",
        at_one.detail
    );
    assert_eq!(two.wait_for(|event| event.text == "cluster").what, What::Refused);
    assert!(!one.endpoint.peers().unwrap()[0].up);
}

#[test]
fn who_is_taken_off_the_list_is_cut_off_at_once() {
    let (mut one, mut two) = pair();
    let asked = two
        .endpoint
        .request(&one.endpoint.id(), text("work"), PATIENCE)
        .unwrap();
    let request = one.wait(What::Request);
    two.endpoint.send(&one.endpoint.id(), text("last words")).unwrap();
    one.wait_for(|event| event.what == What::Message);
    two.endpoint.send(&one.endpoint.id(), text("not taken yet")).unwrap();
    while one.count("messages_received") < 2 {
        std::thread::yield_now();
    }
    // When the list is replaced, what has come and was not taken is gone.
    one.know(&[]);
    let events = one.drain();
    assert!(events.iter().all(|event| event.what != What::Message), "{events:?}");
    let down = events.iter().find(|event| event.what == What::Down).unwrap();
    assert!(down.detail.contains("off the allowlist"));
    // Nothing more is taken or sent.
    assert!(one.endpoint.send(&two.endpoint.id(), text("x")).is_err());
    assert!(two.wait(What::Down).detail.contains("off the allowlist"));
    let failure = two.wait_for(|event| event.number == asked);
    assert_eq!(
        (failure.what, &failure.text[..], failure.extra),
        (What::Failure, "closed", 1)
    );
    let gone = |event: &Event| event.what == What::RequestGone && event.number == request.number;
    if !events.iter().any(gone) {
        one.wait_for(gone);
    }
    assert!(!one.endpoint.respond(request.number, text("late")).unwrap());
    assert_eq!(two.wait_for(|event| event.text == "by_peer").what, What::Refused);
    // On the list again they speak again.
    one.know(&[&two]);
    one.assert_answers(&mut two);
}

#[test]
fn a_peer_that_comes_back_is_reached_again_and_messages_meanwhile_are_dropped() {
    let (mut one, two) = pair();
    let (id, entry) = (two.endpoint.id(), two.entry());
    let folder = two.stop();
    let down = one.wait(What::Down);
    assert!(down.detail.contains("shuts down"), "{}", down.detail);
    assert!(!one.endpoint.send(&id, text("into the void")).unwrap());
    assert_eq!(one.count("messages_dropped"), 1);
    let number = one.endpoint.request(&id, text("x"), PATIENCE).unwrap();
    let failure = one.wait_for(|event| event.number == number);
    assert_eq!((&failure.text[..], failure.extra), ("unreachable", 0));
    let mut two = Node::restart(folder, "n2", entry.1[0]);
    two.know(&[&one]);
    one.wait(What::Up);
    assert!(one.endpoint.send(&id, text("again")).unwrap());
    assert_eq!(&two.wait(What::Message).body[..], b"again");
}

#[test]
fn a_full_queue_drops_and_counts() {
    let mut one = Node::with("n1", "test", &[("outbox_count", 100)]);
    // A peer whose application takes nothing.
    let mut two = Node::with(
        "n2",
        "test",
        &[("inbox_bytes", 64 << 10), ("max_message_bytes", 32 << 10)],
    );
    one.know(&[&two]);
    two.know(&[&one]);
    one.wait(What::Up);
    let id = two.endpoint.id();
    let body = Bytes::from(vec![7; 30 << 10]);
    let mut sent = 0;
    while one.endpoint.send(&id, body.clone()).unwrap() {
        sent += 1;
        assert!(sent < 10_000, "nothing stops it");
        std::thread::yield_now();
    }
    assert_eq!(one.count("messages_dropped"), 1);
    // Other traffic of the same peer goes on.
    two.assert_answers(&mut one);
    // What was taken comes, in full, and then there is room again.
    for _ in 0..sent {
        assert_eq!(two.wait(What::Message).body.len(), body.len());
    }
    while !one.endpoint.send(&id, text("room")).unwrap() {
        std::thread::yield_now();
    }
    assert_eq!(&two.wait(What::Message).body[..], b"room");
}

#[test]
fn requests_end_by_deadline_by_cancelling_and_by_refusal() {
    let (mut one, mut two) = pair();
    let id = two.endpoint.id();
    let short = one
        .endpoint
        .request(&id, text("slow"), Duration::from_millis(200))
        .unwrap();
    let slow = two.wait(What::Request);
    assert_eq!(slow.extra, 200);
    let failure = one.wait_for(|event| event.number == short);
    assert_eq!((&failure.text[..], failure.extra), ("timeout", 1));
    two.wait_for(|event| event.what == What::RequestGone && event.number == slow.number);

    let given_up = one.endpoint.request(&id, text("given up"), PATIENCE).unwrap();
    let request = two.wait(What::Request);
    assert_eq!(one.endpoint.cancel(given_up).unwrap(), Some(true));
    let gone = two.wait(What::RequestGone);
    assert_eq!(gone.number, request.number);
    assert!(!two.endpoint.respond(request.number, text("late")).unwrap());
    assert_eq!(one.endpoint.cancel(given_up).unwrap(), None);

    for (maybe_done, kind) in [(false, "refused"), (true, "failed")] {
        let number = one.endpoint.request(&id, text("declined"), PATIENCE).unwrap();
        let request = two.wait(What::Request);
        assert!(
            two.endpoint
                .decline(request.number, "not \x1b here", maybe_done)
                .unwrap()
        );
        let failure = one.wait_for(|event| event.number == number);
        let told = (&failure.text[..], failure.extra == 1, &failure.detail[..]);
        assert_eq!(told, (kind, maybe_done, "not � here"));
    }
    assert_eq!(two.count("refused_truncated") + two.count("refused_malformed"), 0);
}

#[test]
fn sizes_have_limits_on_both_sides() {
    let mut one = Node::with("n1", "test", &[("max_answer_bytes", 1_000)]);
    let mut two = Node::with("n2", "test", &[("max_request_bytes", 1_000)]);
    one.know(&[&two]);
    two.know(&[&one]);
    one.wait(What::Up);
    let id = two.endpoint.id();
    let too_long = Bytes::from(vec![0; (16 << 20) + 1]);
    assert!(
        one.endpoint
            .request(&id, too_long, PATIENCE)
            .unwrap_err()
            .to_string()
            .contains("at most")
    );
    // Over the other side's limit: it closes the connection.
    let number = one
        .endpoint
        .request(&id, Bytes::from(vec![0; 100_000]), PATIENCE)
        .unwrap();
    let failure = one.wait_for(|event| event.number == number);
    assert_eq!((failure.what, &failure.text[..]), (What::Failure, "closed"));
    assert_eq!(two.count("refused_too_large"), 1);
    // An answer over this side's limit.
    let number = one.endpoint.request(&id, text("much"), PATIENCE).unwrap();
    let request = two.wait(What::Request);
    two.endpoint
        .respond(request.number, Bytes::from(vec![0; 2_000]))
        .unwrap();
    let failure = one.wait_for(|event| event.number == number);
    assert_eq!((&failure.text[..], failure.extra), ("too_large", 1));
}

#[test]
fn two_nodes_with_one_key_take_turns_and_do_not_dial_without_a_pause() {
    let (mut one, mut two) = (Node::start("n1"), Node::start("n2"));
    let mut copy = one.copy("n1-copy");
    two.endpoint
        .set_peers(&[(one.endpoint.id(), Vec::new())], &[], &[])
        .unwrap();
    one.know(&[&two]);
    copy.know(&[&two]);
    let started = Instant::now();
    // Each takes the other's place; each of them is told so.
    for _ in 0..3 {
        assert!(one.wait(What::Down).detail.contains("later connection"));
        assert!(copy.wait(What::Down).detail.contains("later connection"));
    }
    let dials = one.count("dials") + copy.count("dials");
    let most = 40 + 8 * started.elapsed().as_secs();
    assert!(dials < most, "{dials} dials in {:?}", started.elapsed());
    two.drain();
}

#[test]
fn a_closed_endpoint_refuses_everything() {
    let node = Node::start("n1");
    node.endpoint.close();
    node.endpoint.close();
    assert!(
        node.endpoint
            .send("x", text("y"))
            .unwrap_err()
            .to_string()
            .contains("closed")
    );
    assert!(node.endpoint.set_peers(&[], &[], &[]).is_err());
    assert!(node.endpoint.events().fileno().is_none());
}

/// Id and address of a node that is no more.
fn gone() -> (String, Vec<std::net::SocketAddr>) {
    let node = Node::start("gone");
    let entry = node.entry();
    node.stop();
    entry
}

#[test]
fn a_stream_carries_bytes_both_ways_until_each_side_has_finished() {
    let (mut one, mut two) = pair();
    let (here, there) = stream(&one, &mut two, "header");
    assert!(one.endpoint.stream_write(here, text("question")).unwrap());
    one.endpoint.stream_finish(here).unwrap();
    assert!(one.endpoint.stream_write(here, text("more")).is_err());
    assert_eq!(read_all(&mut two, there), b"question");
    assert!(two.endpoint.stream_write(there, text("answer")).unwrap());
    two.endpoint.stream_finish(there).unwrap();
    assert_eq!(read_all(&mut one, here), b"answer");
    for (node, number) in [(&mut one, here), (&mut two, there)] {
        node.wait_for(|event| event.what == What::StreamClosed && event.number == number);
        assert!(node.endpoint.stream_write(number, text("late")).is_err());
        assert!(!node.endpoint.stream_reset(number).unwrap());
    }
}

#[test]
fn a_stream_whose_reader_is_slow_holds_up_its_writer_and_nothing_else() {
    let (mut one, mut two) = pair();
    let (here, there) = stream(&one, &mut two, "slow");
    let part = Bytes::from(
        (0..64 << 10)
            .map(|number: u32| number.to_le_bytes()[0])
            .collect::<Vec<u8>>(),
    );
    let mut written = 0;
    while one.endpoint.stream_write(here, part.clone()).unwrap() || room_comes(&mut one, here) {
        written += 1;
        assert!(written < 64, "nothing stops it");
    }
    // Messages, requests and other streams go on.
    assert!(one.endpoint.send(&two.endpoint.id(), text("message")).unwrap());
    two.wait(What::Message);
    two.assert_answers(&mut one);
    let (quick, quick_there) = stream(&one, &mut two, "quick");
    one.endpoint.stream_write(quick, text("past it")).unwrap();
    one.endpoint.stream_finish(quick).unwrap();
    assert_eq!(read_all(&mut two, quick_there), b"past it");
    // As it reads, there is room.
    one.endpoint.stream_finish(here).unwrap();
    let all = read_all(&mut two, there);
    assert!(
        all.len() >= 512 << 10 && all.chunks(64 << 10).all(|chunk| chunk == part),
        "{}",
        all.len()
    );
}

/// Whether there is room for one more part soon, which is written then.
fn room_comes(node: &mut Node, number: u64) -> bool {
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        let came = node.drain();
        if came
            .iter()
            .any(|event| event.what == What::StreamWritable && event.number == number)
        {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[test]
fn a_peer_that_takes_nothing_is_given_up() {
    let mut one = Node::with("n1", "test", &[("stall_ms", 300)]);
    let mut two = Node::start("n2");
    one.know(&[&two]);
    two.know(&[&one]);
    let (here, there) = stream(&one, &mut two, "stalls");
    let part = Bytes::from(vec![0; 64 << 10]);
    let broken = loop {
        let _ = one.endpoint.stream_write(here, part.clone());
        if let Some(broken) = one.drain().into_iter().find(|event| event.what == What::StreamBroken) {
            break broken;
        }
        std::thread::yield_now();
    };
    assert_eq!((broken.number, &broken.text[..]), (here, "stalled"));
    assert_eq!(
        two.wait_for(|event| event.what == What::StreamBroken && event.number == there)
            .text,
        "reset"
    );
}

#[test]
fn a_reset_from_either_side_ends_both_ways() {
    let (mut one, mut two) = pair();
    for opener_resets in [true, false] {
        let (here, there) = stream(&one, &mut two, "reset");
        one.endpoint.stream_write(here, text("to")).unwrap();
        two.endpoint.stream_write(there, text("fro")).unwrap();
        two.wait_for(|event| event.what == What::StreamData && event.number == there);
        one.wait_for(|event| event.what == What::StreamData && event.number == here);
        let (resets, other) = if opener_resets {
            ((&one, here), there)
        } else {
            ((&two, there), here)
        };
        assert!(resets.0.endpoint.stream_reset(resets.1).unwrap());
        let told = if opener_resets { &mut two } else { &mut one };
        let broken = told.wait_for(|event| event.number == other);
        assert_eq!((broken.what, &broken.text[..]), (What::StreamBroken, "reset"));
        assert!(told.endpoint.stream_write(other, text("late")).is_err());
    }
    // No event follows on the side that gave it up.
    let late = |node: &mut Node| node.drain().iter().any(|event| event.what == What::StreamBroken);
    assert!(!late(&mut one) && !late(&mut two));
}

#[test]
fn a_stream_to_nobody_and_one_too_many_are_told_apart() {
    let mut one = Node::with("n1", "test", &[("max_streams", 2), ("idle_ms", 300)]);
    let nobody = gone();
    one.endpoint.set_peers(std::slice::from_ref(&nobody), &[], &[]).unwrap();
    let number = one.endpoint.stream_open(&nobody.0, text("x")).unwrap();
    one.endpoint.stream_open(&nobody.0, text("y")).unwrap();
    let refused = one.endpoint.stream_open(&nobody.0, text("z")).unwrap_err().to_string();
    assert_eq!(refused, "streams: at most 2");
    let broken = one.wait_for(|event| event.number == number);
    assert_eq!((broken.what, &broken.text[..]), (What::StreamBroken, "unreachable"));
    let too_long = Bytes::from(vec![0; (64 << 10) + 1]);
    assert!(one.endpoint.stream_open(&nobody.0, too_long).is_err());
}

#[test]
fn streams_end_with_their_peers_life_and_place_on_the_list() {
    let (mut one, mut two) = pair();
    let (here, there) = stream(&one, &mut two, "cut off");
    one.know(&[]);
    let broken = one.wait_for(|event| event.number == here);
    assert_eq!((broken.what, &broken.text[..]), (What::StreamBroken, "closed"));
    let broken = two.wait_for(|event| event.number == there);
    assert!(broken.detail.contains("off the allowlist"), "{}", broken.detail);
    one.know(&[&two]);
    let (here, _) = stream(&one, &mut two, "shut down");
    two.stop();
    let broken = one.wait_for(|event| event.number == here);
    assert!(broken.detail.contains("shuts down"), "{}", broken.detail);
}
