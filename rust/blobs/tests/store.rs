//! A store alone: additions, reads, deletions, damage, kills.

mod support;

use std::fs;

use jobs_blobs::{Adding, Deletion, Hash, Reader, Store, Verdict, parse_hash};
use support::{add, bytes, options, read_all};

fn open(folder: &tempfile::TempDir) -> Store {
    Store::open(folder.path(), options()).unwrap()
}

#[test]
fn what_is_added_is_read_in_any_part_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let data = bytes(1_000_000, 1);
    let hash = add(&store, &data);
    let reader = Reader::open(&store, &hash).unwrap();
    for (offset, length) in [
        (0, 1),
        (16_383, 2),
        (16_384, 16_384),
        (999_999, 10),
        (500_000, 70_000),
        (0, 1_000_000),
    ] {
        let part = reader.read(offset, length).unwrap();
        let place = |at: u64| usize::try_from(at).unwrap().min(data.len());
        let (from, to) = (place(offset), place(offset + length));
        assert_eq!(part, &data[from..to], "{offset}");
    }
    assert!(reader.read(1_000_000, 1).unwrap().is_empty());
    assert!(reader.read(u64::MAX, u64::MAX).unwrap().is_empty());
    drop((reader, store));
    let store = open(&folder);
    assert_eq!(read_all(&store, &hash).unwrap(), data);
    let usage = store.usage().unwrap();
    assert_eq!((usage.blobs, usage.bytes), (1, 1_000_000));
}

#[test]
fn only_one_process_has_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let _store = open(&folder);
    assert!(
        Store::open(folder.path(), options())
            .unwrap_err()
            .to_string()
            .contains("in use")
    );
}

#[test]
fn a_store_of_another_format_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(&folder));
    fs::write(folder.path().join("format"), "jobs-blobs 2\n").unwrap();
    assert!(
        Store::open(folder.path(), options())
            .unwrap_err()
            .to_string()
            .contains("jobs-blobs 1")
    );
}

#[test]
fn an_addition_that_is_given_up_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let mut adding = Adding::begin(&store).unwrap();
    adding.write(&bytes(100_000, 2)).unwrap();
    drop(adding);
    assert_eq!(fs::read_dir(folder.path().join("incoming")).unwrap().count(), 0);
    assert_eq!(store.usage().unwrap().blobs, 0);
}

#[test]
fn what_a_kill_leaves_is_cleared_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let hash = add(&store, &bytes(100_000, 3));
    drop(store);
    let lost = Hash::new(b"lost");
    let orphan = folder
        .path()
        .join("data")
        .join(&lost.to_hex()[..2])
        .join(format!("{}.tree", lost.to_hex()));
    fs::write(folder.path().join("incoming/0123"), b"half").unwrap();
    fs::write(&orphan, b"a tree without a blob").unwrap();
    let store = open(&folder);
    assert!(!orphan.exists());
    assert_eq!(fs::read_dir(folder.path().join("incoming")).unwrap().count(), 0);
    assert_eq!(store.list(None, 10).unwrap().len(), 1);
    assert_eq!(store.stat(&hash).unwrap().unwrap().size, 100_000);
}

#[test]
fn blobs_are_listed_page_by_page_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let mut all: Vec<Hash> = (0..100).map(|seed| add(&store, &bytes(10, seed))).collect();
    all.sort_unstable_by_key(|hash| *hash.as_bytes());
    let mut listed = Vec::new();
    loop {
        let page = store.list(listed.last(), 7).unwrap();
        assert!(page.len() <= 7);
        if page.is_empty() {
            break;
        }
        listed.extend(page.iter().map(|stat| stat.hash));
    }
    assert_eq!(listed, all);
}

#[test]
fn a_blob_that_is_read_or_new_is_not_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let data = bytes(200_000, 4);
    let hash = add(&store, &data);
    assert_eq!(store.delete(&hash, 60_000).unwrap(), Deletion::Recent);
    let reader = Reader::open(&store, &hash).unwrap();
    assert_eq!(store.delete(&hash, 0).unwrap(), Deletion::Held);
    drop(reader);
    assert!(matches!(store.delete(&hash, 0).unwrap(), Deletion::Deleted(bytes) if bytes > 200_000));
    assert_eq!(store.delete(&hash, 0).unwrap(), Deletion::Missing);
    assert_eq!(Reader::open(&store, &hash).unwrap_err().kind(), "not_found");
    let usage = store.usage().unwrap();
    assert_eq!((usage.blobs, usage.bytes, usage.tree_bytes), (0, 0, 0));
}

#[test]
fn adding_again_makes_a_blob_new() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let data = bytes(50_000, 5);
    let hash = add(&store, &data);
    let file = folder.path().join("data").join(&hash.to_hex()[..2]).join(hash.to_hex());
    let old = fs::File::options().write(true).open(&file).unwrap();
    old.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(store.stat(&hash).unwrap().unwrap().added_ms, 0);
    let mut adding = Adding::begin(&store).unwrap();
    adding.write(&data).unwrap();
    assert!(adding.finish().unwrap().existed);
    // So one that is about to be referred to is not swept
    assert_eq!(store.delete(&hash, 60_000).unwrap(), Deletion::Recent);
    assert_eq!(store.usage().unwrap().blobs, 1);
}

#[test]
fn damage_is_found_by_whoever_reads_and_put_aside() {
    for size in [10_000, 500_000] {
        for damage in ["flip", "cut", "grow"] {
            let folder = tempfile::tempdir().unwrap();
            let store = open(&folder);
            let data = bytes(size, 6);
            let hash = add(&store, &data);
            let file = folder.path().join("data").join(&hash.to_hex()[..2]).join(hash.to_hex());
            let mut wrong = data.clone();
            match damage {
                "flip" => wrong[size / 2] ^= 1,
                "cut" => wrong.truncate(size - 20_000_usize.min(size / 2)),
                _ => wrong.resize(size + 20_000, 0),
            }
            fs::write(&file, &wrong).unwrap();
            let error = read_all(&store, &hash).unwrap_err();
            assert_eq!(error.kind(), "corrupt", "{damage}: {error}");
            let usage = store.usage().unwrap();
            assert_eq!((usage.blobs, usage.quarantined, usage.damages), (0, 1, 1), "{damage}");
            assert_eq!(store.verify(&hash).unwrap(), Verdict::Missing);
            add(&store, &data);
            assert_eq!(read_all(&store, &hash).unwrap(), data);
            assert_eq!(store.usage().unwrap().quarantined, 0);
        }
    }
}

#[test]
fn a_tree_that_is_lost_or_wrong_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let data = bytes(500_000, 7);
    let hash = add(&store, &data);
    let tree = folder
        .path()
        .join("data")
        .join(&hash.to_hex()[..2])
        .join(format!("{}.tree", hash.to_hex()));
    let right = fs::read(&tree).unwrap();
    fs::remove_file(&tree).unwrap();
    assert_eq!(read_all(&store, &hash).unwrap(), data);
    assert_eq!(fs::read(&tree).unwrap(), right);
    let mut wrong = right.clone();
    wrong[100] ^= 1;
    fs::write(&tree, &wrong).unwrap();
    assert_eq!(store.verify(&hash).unwrap(), Verdict::Mended);
    assert_eq!(store.verify(&hash).unwrap(), Verdict::Sound);
    assert_eq!(read_all(&store, &hash).unwrap(), data);
}

#[test]
fn names_that_are_no_hashes_lead_nowhere() {
    for wrong in ["", "..", "../../etc/passwd", "0", &"0".repeat(63), &"G".repeat(64)] {
        assert!(parse_hash(wrong).is_err());
    }
}
