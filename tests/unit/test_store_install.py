"""Taking another member's snapshot in place of what a store holds: all of it or nothing, whatever happens."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs._native import CompactedError, CorruptError, DiskFullError, MemoryStore, NativeError, Store, StoreReader
from jobs.store import Compact, Delete, LeaseGrant, Op, Put, Txn, decode_results, encode_command
from tests.support.damage import damages

SEED = int(os.environ.get("JOBS_TEST_SEED", "0")) or random.randrange(1 << 32)

Either = Store | MemoryStore
REQUEST = b"r" * 16


def apply(store: Either, *ops: Op, term: int = 1, request_id: bytes = b"") -> None:
    command = encode_command([Txn(then=ops, request_id=request_id)])
    (result,) = store.apply([(store.applied_index + 1, term, command)])
    assert not decode_results(result)[0].error


def fill(store: Either, count: int, size: int = 100, name: bytes = b"k") -> None:
    for number in range(count):
        apply(store, Put(name + b"%06d" % number, bytes([number % 251]) * size))


def grow(store: Either) -> None:
    """Use everything that a snapshot has to carry: deleted keys, leases, compacted history, large values, requests."""
    fill(store, 20)
    apply(store, LeaseGrant(7, 1_000))
    apply(store, Put(b"leased", b"v", 7))
    apply(store, Put(b"large", b"x" * 200_000))
    apply(store, Delete(b"k000003"))
    apply(store, Compact(store.revision - 5))
    apply(store, Put(b"last", b"", 0), term=3, request_id=REQUEST)


def everything(store: Either) -> object:
    rows, _ = store.range(b"\x00", b"\xff", limit=1 << 30, max_bytes=1 << 40)
    events = store.events(store.compact_revision, [b""], limit=1 << 30, max_bytes=1 << 40)
    return (
        (store.applied_index, store.applied_term, store.revision, store.compact_revision, store.history_events),
        (store.state_hash(), rows, events, store.leases(), store.lease_keys(7), store.recall(REQUEST)),
    )


@pytest.fixture
def leader(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "leader"))
    grow(store)
    store.snapshot()
    yield store
    store.close()


def received(leader: Store, directory: Path) -> Path:
    """The leader's snapshot, as it lies beside a follower's store when all of it has come."""
    directory.mkdir(exist_ok=True)
    path = directory / "received"
    shutil.copyfile(leader.snapshot_path() or "", path)
    return path


def test_a_store_that_took_a_snapshot_is_like_the_one_that_made_it_and_goes_on(leader: Store, tmp_path: Path) -> None:
    # given a follower that is behind
    directory = tmp_path / "follower"
    follower = Store(str(directory))
    fill(follower, 3, name=b"old")
    follower.snapshot()
    assert (follower.snapshot_index, follower.snapshot_term) == (3, 1)

    # when it takes the leader's snapshot
    path = received(leader, directory)
    follower.install(str(path))

    # then it holds what the leader holds, and the file is its newest snapshot
    assert everything(follower) == everything(leader)
    assert follower.get(b"old000001") is None
    assert (follower.snapshot_index, follower.snapshot_term) == (leader.applied_index, 3)
    assert [file.name for file in directory.glob("*.snap")] == [Path(leader.snapshot_path() or "").name]
    assert not path.exists()

    # and both go on alike, also when the follower is opened again
    apply(leader, Put(b"next", b"1"))
    follower.close()
    follower = Store(str(directory))
    assert follower.recovered is None
    assert follower.snapshot_path() == str(next(directory.glob("*.snap")))
    apply(follower, Put(b"next", b"1"))
    assert everything(follower) == everything(leader)


def test_watchers_of_revisions_that_are_gone_are_told(leader: Store, tmp_path: Path) -> None:
    directory = tmp_path / "follower"
    follower = Store(str(directory))
    fill(follower, 3)
    follower.install(str(received(leader, directory)))
    with pytest.raises(CompactedError):
        follower.events(3, [b""], limit=10)
    with pytest.raises(CompactedError):
        follower.get(b"k000001", 3)
    events, seen = follower.events(follower.compact_revision, [b""], limit=100)
    assert seen == follower.revision
    assert events[-1][1] == b"last"


def test_a_snapshot_that_is_not_ahead_is_refused(leader: Store, tmp_path: Path) -> None:
    directory = tmp_path / "follower"
    follower = Store(str(directory))
    follower.install(str(received(leader, directory)))
    apply(follower, Put(b"more", b""))
    before = everything(follower)
    path = received(leader, directory)
    with pytest.raises(NativeError, match=r"refused: entry \d+ is applied already"):
        follower.install(str(path))
    memory = MemoryStore()
    memory.install(path.read_bytes())
    with pytest.raises(NativeError, match=r"refused: entry \d+ is applied already"):
        memory.install(path.read_bytes())
    assert everything(follower) == before
    assert path.exists()


def test_a_damaged_snapshot_changes_nothing(tmp_path: Path) -> None:
    print(f"replay with JOBS_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    leader = Store(str(tmp_path / "leader"))
    fill(leader, 300, 10_000)
    leader.snapshot()
    directory = tmp_path / "follower"
    follower = Store(str(directory))
    fill(follower, 5, name=b"old")
    follower.snapshot()
    before, files = everything(follower), sorted(directory.iterdir())
    path = received(leader, directory)
    good = path.read_bytes()
    for number, data in enumerate(damages(good, chance)):
        path.write_bytes(data)
        with pytest.raises(CorruptError, match=r"corrupt at byte \d+"):
            follower.install(str(path))
        with pytest.raises(CorruptError, match=r"corrupt at byte \d+"):
            MemoryStore().install(data)
        assert everything(follower) == before, number
    path.unlink()
    assert sorted(directory.iterdir()) == files
    with pytest.raises(NativeError, match="cannot open"):
        follower.install(str(path))


def test_what_does_not_fit_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    leader = Store(str(tmp_path / "leader"))
    fill(leader, 60, 100_000)
    leader.snapshot()
    directory = tmp_path / "follower"
    follower = Store(str(directory), max_bytes=4 << 20)
    fill(follower, 5)
    before = everything(follower)
    path = received(leader, directory)
    with pytest.raises(DiskFullError):
        follower.install(str(path))
    assert everything(follower) == before
    assert path.exists()
    follower.close()
    # There is room now
    follower = Store(str(directory), max_bytes=64 << 20)
    follower.install(str(path))
    assert everything(follower) == everything(leader)


def test_an_installation_cut_off_after_the_file_was_in_place_is_finished_by_the_next_opening(
    leader: Store, tmp_path: Path
) -> None:
    directory = tmp_path / "follower"
    follower = Store(str(directory))
    fill(follower, 4)
    follower.snapshot()
    follower.close()
    received(leader, directory).rename(directory / Path(leader.snapshot_path() or "").name)
    follower = Store(str(directory))
    assert follower.recovered == f"finished to install the snapshot at entry {leader.applied_index}"
    assert everything(follower) == everything(leader)
    assert follower.snapshot_index == leader.applied_index


def test_a_damaged_file_in_the_place_of_a_snapshot_ahead_is_passed_over(leader: Store, tmp_path: Path) -> None:
    directory = tmp_path / "follower"
    follower = Store(str(directory))
    fill(follower, 4)
    follower.snapshot()
    before = everything(follower)
    follower.close()
    path = received(leader, directory)
    path.write_bytes(path.read_bytes()[:-5])
    path.rename(directory / Path(leader.snapshot_path() or "").name)
    follower = Store(str(directory))
    assert "passed over a snapshot (refused: " in (follower.recovered or "")
    assert everything(follower) == before
    assert follower.snapshot_index == 4


def test_a_power_cut_after_an_installation_brings_the_new_state_back(leader: Store, tmp_path: Path) -> None:
    directory = tmp_path / "follower"
    follower = Store(str(directory), boot_id="first")
    fill(follower, 4)
    follower.snapshot()
    follower.install(str(received(leader, directory)))
    fill(follower, 3)
    left = tmp_path / "left"
    left.mkdir()
    for file in directory.iterdir():
        if file.is_file() and file.name != "lock.mdb":
            (left / file.name).write_bytes(file.read_bytes())
    cut = Store(str(left), boot_id="second")
    assert "restored the snapshot at entry" in (cut.recovered or "")
    assert everything(cut) == everything(leader)


def test_a_memory_store_exports_what_a_store_on_disk_takes_and_the_other_way_round(
    leader: Store, tmp_path: Path
) -> None:
    memory = MemoryStore()
    grow(memory)
    assert memory.export() == Path(leader.snapshot_path() or "").read_bytes()
    other = MemoryStore()
    apply(other, Put(b"old", b""))
    other.install(memory.export())
    assert everything(other) == everything(memory) == everything(leader)
    apply(other, Put(b"next", b"1"))
    assert memory.get(b"next") is None

    directory = tmp_path / "disk"
    store = Store(str(directory))
    (directory / "received").write_bytes(other.export())
    store.install(str(directory / "received"))
    assert everything(store) == everything(other)


def test_readers_go_on_while_a_snapshot_is_installed_and_see_the_old_state_or_the_new(tmp_path: Path) -> None:
    leader = Store(str(tmp_path / "leader"))
    fill(leader, 3_000, 5_000)
    leader.snapshot()
    directory = tmp_path / "follower"
    follower = Store(str(directory))
    fill(follower, 10, name=b"old")
    path = received(leader, directory)
    done = threading.Event()

    def install() -> None:
        follower.install(str(path))
        done.set()

    thread = threading.Thread(target=install)
    thread.start()
    reads = 0
    while not done.is_set():
        olds = follower.count(b"old", b"ole", limit=100)
        assert olds in (0, 10)
        reads += olds == 10
    thread.join()
    assert reads > 3, "the installation held everything up"
    assert follower.state_hash() == leader.state_hash()


def test_a_reader_that_is_open_sees_the_new_state(leader: Store, tmp_path: Path) -> None:
    # In one process LMDB opens a directory once: test_store_processes.py has readers beside a writer.
    directory = tmp_path / "follower"
    follower = Store(str(directory))
    fill(follower, 3)
    follower.install(str(received(leader, directory)))
    revision = follower.revision
    follower.close()
    reader = StoreReader(str(directory))
    assert reader.snapshot_revision() == revision
    assert reader.get(b"k000000") == leader.get(b"k000000")
