//! Members that fetch from each other, and from providers that lie, stop or are slow.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jobs_blobs::{BlobError, Hash, Verdict};
use jobs_net::Foreign;
use support::{Member, Odd, acquaint, add, at_once, bytes, members, read_all, wanted};

const MIB: usize = 1 << 20;

#[test]
fn blobs_of_every_size_come_whole() {
    let nodes = members(2);
    let sizes = [
        0,
        1,
        1_024,
        16 << 10,
        (16 << 10) + 1,
        100_000,
        MIB - 1,
        MIB,
        MIB + 1,
        MIB + (16 << 10),
        5 * MIB + 7,
    ];
    for (seed, size) in sizes.into_iter().enumerate() {
        let data = bytes(size, seed as u64);
        let hash = add(nodes[0].store(), &data);
        let outcome = nodes[1].fetch(&hash, wanted(&[&nodes[0]])).unwrap();
        assert_eq!((outcome.size, outcome.blobs), (size as u64, 1));
        assert_eq!(outcome.tried[0].bytes, size as u64, "{size}");
        assert_eq!(read_all(nodes[1].store(), &hash).unwrap(), data, "{size}");
        assert_eq!(nodes[1].store().verify(&hash).unwrap(), Verdict::Sound, "{size}");
        // What is here is not asked for again
        let again = nodes[1].fetch(&hash, wanted(&[&nodes[0]])).unwrap();
        assert_eq!(again.tried[0].bytes, 0);
    }
    assert!(nodes[1].store().partials().unwrap().is_empty());
}

#[test]
fn who_is_not_a_member_gets_nothing() {
    let nodes = members(2);
    let stranger = Member::start("stranger");
    let hash = add(nodes[0].store(), &bytes(3 * MIB, 1));
    // It knows the member, which does not know it
    stranger.know(&[&nodes[0]]);
    let refused = stranger.fetch(&hash, wanted(&[&nodes[0]])).unwrap_err();
    assert_eq!(refused.kind(), "unavailable", "{refused}");
    assert!(refused.to_string().contains("allowlist"), "{refused}");
    // A guest may speak the cluster's protocol only
    let peers = [nodes[1].entry(), stranger.entry()];
    nodes[0]
        .endpoint
        .set_peers(&peers, &[stranger.endpoint.id()], &[])
        .unwrap();
    let refused = stranger.fetch(&hash, wanted(&[&nodes[0]])).unwrap_err();
    assert!(refused.to_string().contains("guest"), "{refused}");
    // And so may a peer of another cluster, which is not asked either
    let foreign = Foreign {
        id: stranger.endpoint.id(),
        cluster: "other".into(),
        addresses: stranger.endpoint.addresses().to_vec(),
    };
    nodes[0].endpoint.set_peers(&peers[..1], &[], &[foreign]).unwrap();
    let refused = stranger.fetch(&hash, wanted(&[&nodes[0]])).unwrap_err();
    assert!(refused.to_string().contains("other clusters"), "{refused}");
    let theirs = add(stranger.store(), &bytes(MIB, 7));
    let nobody = nodes[0].fetch(&theirs, wanted(&[&stranger])).unwrap_err();
    assert!(nobody.to_string().contains("not on the allowlist"), "{nobody}");
    // And a member does not fetch from one who is none
    let nobody = nodes[1].fetch(&hash, wanted(&[&stranger])).unwrap_err();
    assert!(nobody.to_string().contains("not on the allowlist"), "{nobody}");
    nodes[1].fetch(&hash, wanted(&[&nodes[0]])).unwrap();
    // Once it is a member, it gets it; once it is none any more, its connection is closed
    nodes[0].endpoint.set_peers(&peers, &[], &[]).unwrap();
    stranger.fetch(&hash, wanted(&[&nodes[0]])).unwrap();
    let other = add(nodes[0].store(), &bytes(MIB, 2));
    nodes[0].know(&[&nodes[1]]);
    assert!(stranger.fetch(&other, wanted(&[&nodes[0]])).is_err());
}

#[test]
fn who_lies_stops_or_knows_nothing_is_left_behind() {
    let data = bytes(4 * MIB, 3);
    let hash = Hash::new(&data);
    let twists: Vec<(&str, bool, &str, support::Twist)> = vec![
        (
            "a flipped byte early",
            true,
            "does not match",
            Arc::new(|mut answer| {
                answer[500_000] ^= 1;
                at_once(answer)
            }),
        ),
        (
            "a flipped byte late",
            true,
            "does not match",
            Arc::new(|mut answer| {
                let place = answer.len() - 100_000;
                answer[place] ^= 0x80;
                at_once(answer)
            }),
        ),
        (
            "a larger size",
            true,
            "does not match",
            Arc::new(|mut answer| {
                answer[..8].copy_from_slice(&(5 * MIB as u64).to_le_bytes());
                at_once(answer)
            }),
        ),
        (
            "a size of nothing",
            true,
            "does not match",
            Arc::new(|_| at_once(vec![0; 8])),
        ),
        (
            "a size beyond all",
            true,
            "it says that there are",
            Arc::new(|mut answer| {
                answer[..8].copy_from_slice(&u64::MAX.to_le_bytes());
                at_once(answer)
            }),
        ),
        (
            "noise",
            true,
            "it says that there are",
            Arc::new(|_| at_once(vec![0xEE; 100_000])),
        ),
        (
            "half a header",
            true,
            "ended before",
            Arc::new(|_| at_once(vec![1, 2, 3])),
        ),
        ("nothing", true, "does not have it", Arc::new(|_| at_once(Vec::new()))),
        (
            "half of it",
            true,
            "ended before",
            Arc::new(|answer| at_once(answer[..answer.len() / 2].to_vec())),
        ),
        (
            "half of it, then silence",
            false,
            "nothing came",
            Arc::new(|answer| at_once(answer[..answer.len() / 2].to_vec())),
        ),
        ("silence", false, "nothing came", Arc::new(|_| at_once(Vec::new()))),
    ];
    let honest = Member::start("honest");
    add(honest.store(), &data);
    for (name, ends, reason, twist) in twists {
        let odd = Odd::start(data.clone(), ends, twist);
        let fetcher = Member::start("fetcher");
        acquaint(&[&honest, &odd.member, &fetcher]);
        let mut options = wanted(&[&odd.member]);
        options.stall = Duration::from_millis(500);
        // Alone it is no use
        let error = fetcher.fetch(&hash, options.clone()).unwrap_err();
        assert!(error.to_string().contains(reason), "{name}: {error}");
        assert!(fetcher.store().stat(&hash).unwrap().is_none(), "{name}");
        // Before others it is left behind, and told of
        options.providers.push(honest.endpoint.id());
        let outcome = fetcher
            .fetch(&hash, options)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(outcome.tried[0].reason.contains(reason), "{name}: {outcome:?}");
        assert_eq!(outcome.tried[1].reason, "", "{name}");
        assert_eq!(read_all(fetcher.store(), &hash).unwrap(), data, "{name}");
        assert!(odd.asked.load(Ordering::Relaxed) >= 2, "{name}");
    }
}

#[test]
fn who_is_slow_is_left_behind_while_there_are_others() {
    let data = bytes(3 * MIB, 4);
    let hash = Hash::new(&data);
    let slowly: support::Twist = Arc::new(|answer| {
        answer
            .chunks(200_000)
            .map(|part| (Duration::from_millis(40), part.to_vec()))
            .collect()
    });
    let (slow, quick) = (Odd::start(data.clone(), true, slowly), Member::start("quick"));
    add(quick.store(), &data);
    let fetcher = Member::start("fetcher");
    acquaint(&[&slow.member, &quick, &fetcher]);
    let mut options = wanted(&[&slow.member, &quick]);
    options.min_bytes_per_s = 100 << 20;
    options.window = Duration::from_millis(100);
    let outcome = fetcher.fetch(&hash, options.clone()).unwrap();
    assert!(outcome.tried[0].reason.contains("slow"), "{outcome:?}");
    assert!(outcome.tried[0].bytes > 0 && outcome.tried[1].bytes > 0, "{outcome:?}");
    assert_eq!(
        outcome.tried.iter().map(|tried| tried.bytes).sum::<u64>(),
        data.len() as u64
    );
    // Where there is no other, it gives all
    let alone = Member::start("alone");
    acquaint(&[&slow.member, &alone]);
    options.providers.truncate(1);
    assert_eq!(alone.fetch(&hash, options).unwrap().tried[0].reason, "");
    assert_eq!(read_all(alone.store(), &hash).unwrap(), data);
}

#[test]
fn what_has_come_is_not_fetched_again() {
    let data = bytes(8 * MIB, 5);
    let hash = Hash::new(&data);
    let paced: support::Twist = Arc::new(|answer| {
        answer
            .chunks(500_000)
            .map(|part| (Duration::from_millis(50), part.to_vec()))
            .collect()
    });
    let paced = Odd::start(data.clone(), true, paced);
    let fetcher = Member::start("fetcher");
    acquaint(&[&paced.member, &fetcher]);
    // Given up in the middle
    let number = fetcher.service.fetch(hash, wanted(&[&paced.member])).unwrap();
    fetcher.until(number, |progress| progress.done_bytes > 3 * MIB as u64);
    assert!(fetcher.service.cancel(number));
    assert!(!fetcher.service.cancel(number));
    assert!(fetcher.store().stat(&hash).unwrap().is_none());
    // The next try, from another, fetches the rest
    let other = Member::start("other");
    add(other.store(), &data);
    acquaint(&[&paced.member, &other, &fetcher]);
    let outcome = fetcher.fetch(&hash, wanted(&[&other])).unwrap();
    assert!(outcome.tried[0].bytes < 6 * MIB as u64, "{outcome:?}");
    assert_eq!(read_all(fetcher.store(), &hash).unwrap(), data);
    assert!(fetcher.store().partials().unwrap().is_empty());
}

#[test]
fn a_sequence_comes_with_its_children() {
    let nodes = members(2);
    let children: Vec<Hash> = (0..200)
        .map(|seed| add(nodes[0].store(), &bytes(3_000, seed)))
        .collect();
    let mut sequence: Vec<u8> = children.iter().flat_map(|hash| *hash.as_bytes()).collect();
    sequence.extend_from_slice(children[0].as_bytes());
    let root = add(nodes[0].store(), &sequence);
    let mut options = wanted(&[&nodes[0]]);
    options.children = true;
    let outcome = nodes[1].fetch(&root, options.clone()).unwrap();
    assert_eq!((outcome.blobs, outcome.size), (201, 200 * 3_000 + 201 * 32));
    for (seed, hash) in children.iter().enumerate() {
        assert_eq!(read_all(nodes[1].store(), hash).unwrap(), bytes(3_000, seed as u64));
    }
    // One that is missing everywhere is told by its name
    let gone = Hash::new(b"gone");
    let root = add(nodes[0].store(), gone.as_bytes());
    let error = nodes[1].fetch(&root, options.clone()).unwrap_err();
    assert!(error.to_string().contains(&gone.to_hex()), "{error}");
    // What is no sequence is not taken for one
    let root = add(nodes[0].store(), &bytes(33, 9));
    assert_eq!(nodes[1].fetch(&root, options).unwrap_err().kind(), "invalid");
}

#[test]
fn many_fetches_of_one_blob_are_one() {
    let nodes = members(2);
    let data = bytes(6 * MIB, 6);
    let hash = add(nodes[0].store(), &data);
    let numbers: Vec<u64> = (0..20)
        .map(|_| nodes[1].service.fetch(hash, wanted(&[&nodes[0]])).unwrap())
        .collect();
    let mut sent = 0;
    let mut open: std::collections::HashSet<u64> = numbers.into_iter().collect();
    while !open.is_empty() {
        for event in nodes[1].wait() {
            if let jobs_blobs::OperationEvent::Ended(number, result) = event {
                open.remove(&number);
                sent += result.unwrap().tried[0].bytes;
            }
        }
    }
    assert_eq!(sent, data.len() as u64);
}

#[test]
fn a_provider_does_not_give_what_is_damaged_and_is_mended_by_a_fetch() {
    let nodes = members(3);
    let data = bytes(3 * MIB, 7);
    let hash = add(nodes[0].store(), &data);
    add(nodes[1].store(), &data);
    let mut wrong = data.clone();
    wrong[2_500_000] ^= 4;
    std::fs::write(nodes[0].file(&hash), &wrong).unwrap();
    let outcome = nodes[2].fetch(&hash, wanted(&[&nodes[0], &nodes[1]])).unwrap();
    assert_ne!(outcome.tried[0].reason, "", "{outcome:?}");
    assert_eq!(read_all(nodes[2].store(), &hash).unwrap(), data);
    // The provider has put it aside, and gets it anew
    while nodes[0].store().stat(&hash).unwrap().is_some() {
        std::thread::yield_now();
    }
    assert_eq!(nodes[0].store().usage().unwrap().quarantined, 1);
    nodes[0].fetch(&hash, wanted(&[&nodes[2]])).unwrap();
    assert_eq!(read_all(nodes[0].store(), &hash).unwrap(), data);
    let usage = nodes[0].store().usage().unwrap();
    assert_eq!((usage.quarantined, usage.damages, usage.blobs), (0, 1, 1));
}

#[test]
fn a_blob_that_is_too_large_is_not_wanted() {
    let nodes = members(2);
    let hash = add(nodes[0].store(), &bytes(2 * MIB, 8));
    let mut options = wanted(&[&nodes[0]]);
    options.max_bytes = MIB as u64;
    let error = nodes[1].fetch(&hash, options).unwrap_err();
    assert!(matches!(error, BlobError::Limit(_)), "{error}");
    assert_eq!(nodes[1].store().usage().unwrap().partial_bytes, 0);
}
