"""The store's face in Python: errors, limits, snapshots that are damaged, and what a power cut leaves."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from jobs._native import (
    CompactedError,
    CorruptError,
    DiskFullError,
    FutureRevisionError,
    MemoryStore,
    NativeError,
    Store,
    StoreReader,
)
from jobs.store import (
    MAX_KEY_BYTES,
    MAX_TXN_OPS,
    MAX_VALUE_BYTES,
    Compact,
    Delete,
    Get,
    LeaseGrant,
    Op,
    Put,
    Txn,
    TxnResult,
    decode_results,
    encode_command,
)
from tests.support.damage import damages

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("JOBS_TEST_SEED", "0")) or random.randrange(1 << 32)


class Writer:
    """A store and the entries it is given."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.store = Store(str(directory), **settings)  # type: ignore[arg-type]

    def apply(self, *ops: Op) -> TxnResult:
        command = encode_command([Txn(then=ops)])
        (result,) = self.store.apply([(self.store.applied_index + 1, 1, command)])
        return decode_results(result)[0]


def fill(writer: Writer, count: int, size: int = 100) -> None:
    for number in range(count):
        writer.apply(Put(b"k%06d" % number, bytes([number % 251]) * size))


@pytest.mark.parametrize("kind", ["disk", "memory"])
@pytest.mark.parametrize(
    ("ops", "error"),
    [
        ((Put(b"", b"v"),), "limit: a key of 0 bytes"),
        ((Put(b"k" * (MAX_KEY_BYTES + 1), b"v"),), "limit: a key of 1025 bytes"),
        ((Put(b"ok", b"v"), Put(b"k", b"v" * (MAX_VALUE_BYTES + 1))), "limit: a value of 1048577 bytes"),
        ((Put(b"k", b"v"),) * (MAX_TXN_OPS + 1), "limit: 1001 operations"),
        ((Put(b"ok", b"v"), Put(b"k", b"v", 7)), "lease_not_found"),
        ((LeaseGrant(0, 1),), "limit: lease 0"),
        ((Get(b""),), "limit: a key of 0 bytes"),
    ],
)
def test_a_transaction_beyond_a_limit_changes_nothing(
    tmp_path: Path, kind: str, ops: tuple[Op, ...], error: str
) -> None:
    store = Store(str(tmp_path)) if kind == "disk" else MemoryStore()
    (data,) = store.apply([(1, 1, encode_command([Txn(then=ops), Txn(then=(Put(b"next", b""),))]))])
    refused, after = decode_results(data)
    assert refused.error.startswith(error)
    assert (refused.revision, refused.results) == (0, [])
    assert (after.error, after.revision) == ("", 1)
    assert store.get(b"ok") is None


def test_a_delete_of_more_keys_than_allowed_is_refused_whole(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for lot in range(11):
        writer.apply(*(Put(b"k%06d" % (lot * 1000 + number), b"") for number in range(1000)))
    assert writer.apply(Delete(b"k", b"l")).error.startswith("limit: a delete of more than 10000 keys")
    assert writer.store.count(b"k", b"l", limit=20_000) == 11_000
    assert writer.apply(Delete(b"k", b"k001000")).results == [1_000]


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"\x03\x90",
        b"\x02",
        b"\x01",
        b"\x02\xdd\xff\xff\xff\xff",
        b"\x02\x91\x94\x91",
        b"\x02\x90x",
        encode_command([Txn(request_id=b"short")]),
    ],
)
def test_bytes_that_are_no_command_are_refused_with_their_offset(tmp_path: Path, command: bytes) -> None:
    store = Store(str(tmp_path))
    if not command:
        assert store.apply([(1, 1, command)]) == [b""]
        return
    with pytest.raises(CorruptError, match=r"at byte \d+"):
        store.apply([(1, 1, command)])
    assert store.applied_index == 0


def test_a_request_id_is_remembered_for_at_least_250_000_others_and_at_most_twice_as_many(tmp_path: Path) -> None:
    # Given a full generation of ids, and then another
    ids = [number.to_bytes(16) for number in range(500_001)]
    store = Store(str(tmp_path))

    def apply(first: int, last: int) -> None:
        commands = [
            encode_command(
                [Txn(then=(Put(b"k", b""),), request_id=name) for name in ids[start : min(start + 2_000, last)]]
            )
            for start in range(first, last, 2_000)
        ]
        entries = [(store.applied_index + 1 + number, 1, command) for number, command in enumerate(commands)]
        store.apply(entries)

    apply(0, 500_000)
    assert store.revision == 500_000
    assert store.recall(ids[0]) is not None
    # When there is no room for one more
    apply(500_000, 500_001)
    # Then the older generation is forgotten, and no other
    assert store.recall(ids[249_999]) is None
    assert store.recall(ids[250_000]) is not None
    # And what is remembered is not done again, also after a restart
    store.close()
    store = Store(str(tmp_path))
    apply(250_000, 500_001)
    assert store.revision == 500_001
    apply(0, 1)
    assert store.revision == 500_002
    store.close()


def test_of_a_result_too_large_to_remember_only_that_it_was_is_remembered(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    txn = Txn(then=(Put(b"k", b"v" * 1_100), Get(b"k"), Delete(b"other")), request_id=b"r" * 16)
    first, again = (decode_results(store.apply([(index, 1, encode_command([txn]))])[0])[0] for index in (1, 2))
    assert first.results == [None, (b"k", b"v" * 1_100, 1, 1, 1, 0), 0]
    assert again == TxnResult("result_gone", True, 1, [], True)


def test_random_damage_to_a_command_never_does_more_than_refuse_it() -> None:
    print(f"replay with JOBS_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    good = encode_command(
        [Txn(then=(Put(b"a", b"1"), Delete(b"b", b"c"), LeaseGrant(1, 5)), request_id=b"r" * 16), Txn()]
    )
    for _ in range(3_000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        store = MemoryStore()
        try:
            store.apply([(1, 1, bytes(data[: chance.randint(1, len(data))]))])
        except CorruptError:
            assert store.applied_index == 0


def test_a_full_store_refuses_whole_batches_and_takes_them_when_there_is_room(tmp_path: Path) -> None:
    writer = Writer(tmp_path, max_bytes=4 << 20)
    with pytest.raises(DiskFullError):
        fill(writer, 100, 100_000)
    written = writer.store.revision
    assert 5 < written < 50
    assert writer.store.applied_index == written
    assert writer.store.get(b"k%06d" % written) is None
    writer.store.close()
    roomier = Writer(tmp_path, max_bytes=16 << 20)
    assert roomier.apply(Put(b"k%06d" % written, b"now")).revision == written + 1


def test_what_is_closed_or_open_twice_says_so(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(NativeError, match="already"):
        Store(str(tmp_path))
    store.close()
    store.close()
    with pytest.raises(NativeError, match="it is closed"):
        store.get(b"k")
    with pytest.raises(NativeError, match="cannot open the store"):
        StoreReader(str(tmp_path / "nowhere"))
    Store(str(tmp_path)).close()


def test_history_is_forgotten_in_steps_and_its_space_used_again(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for _ in range(20):
        fill(writer, 100, 1_000)
    grown = (tmp_path / "data.mdb").stat().st_size
    writer.apply(Compact(writer.store.revision))
    with pytest.raises(CompactedError):
        writer.store.get(b"k000001", 5)
    for _ in range(20):
        fill(writer, 100, 1_000)
        writer.apply(Compact(writer.store.revision))
    assert (tmp_path / "data.mdb").stat().st_size < grown * 1.5
    assert len(writer.store.range(b"k", b"l", limit=1_000)[0]) == 100


def test_a_power_cut_brings_the_snapshot_back_and_a_kill_does_not_need_it(tmp_path: Path) -> None:
    writer = Writer(tmp_path, boot_id="first")
    fill(writer, 50)
    assert writer.store.snapshot() == 50
    at_snapshot = writer.store.state_hash()
    fill(writer, 60)
    # The process dies: nothing is closed. A copy stands for the same files after it.
    left = tmp_path / "left"
    left.mkdir()
    for file in tmp_path.iterdir():
        if file.is_file() and file.name != "lock.mdb":
            (left / file.name).write_bytes(file.read_bytes())
    killed = Store(str(left), boot_id="first")
    assert (killed.recovered, killed.applied_index) == (None, 110)
    killed.close()
    marker = left / "OPEN"
    marker.write_text(marker.read_text().replace("closed", "open"))
    cut = Store(str(left), boot_id="second")
    assert "restored the snapshot at entry 50" in (cut.recovered or "")
    assert (cut.applied_index, cut.state_hash()) == (50, at_snapshot)
    # The log tells the rest
    cut.apply([(51, 1, encode_command([Txn(then=(Put(b"after", b""),))]))])
    assert cut.revision == 51


def test_a_store_with_a_bit_that_changed_is_never_served(tmp_path: Path) -> None:
    print(f"replay with JOBS_TEST_SEED={SEED}")
    # Given a closed store with a snapshot
    place = tmp_path / "store"
    place.mkdir()
    writer = Writer(place)
    fill(writer, 500, 60)
    writer.apply(Put(b"large", b"x" * 50_000))
    writer.store.snapshot()
    fill(writer, 20)
    writer.store.close()
    # When one bit of its data file changes, any of them
    command = [sys.executable, "-m", "tests.support.opening", str(place), str(tmp_path / "copy"), str(SEED), "60"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(("python", "."))}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    # Then either nothing was lost by it, or the snapshot takes the file's place, at the third start at the latest
    ends = Counter(done.stdout.split())
    print(ends)
    assert ends.total() == 60
    assert ends["wrong"] == 0
    assert ends["recovered"] > 0


def test_a_store_whose_opening_was_killed_once_is_taken_as_it_is(tmp_path: Path) -> None:
    # Given a whole store, whose process was killed once while it looked at the file
    writer = Writer(tmp_path)
    fill(writer, 5)
    truth = writer.store.state_hash()
    writer.store.close()
    (tmp_path / "LOOKING").write_bytes(b"x")
    # Then the next one takes it, and nothing is left of that
    with closing(Store(str(tmp_path))) as store:
        assert store.recovered is None
        assert store.state_hash() == truth
    assert not (tmp_path / "LOOKING").exists()


def test_a_row_that_changes_while_the_store_is_open_is_not_served(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    fill(writer, 10)
    writer.apply(Put(b"k", b"what was written"))
    data = tmp_path / "data.mdb"
    with data.open("r+b") as file:  # the very pages that the store sees
        for found in re.finditer(b"what was written", data.read_bytes()):
            file.seek(found.start())
            file.write(b"W")
    with pytest.raises(NativeError, match=r'key ".*k" fails its checksum'):
        writer.store.get(b"k")
    with pytest.raises(NativeError, match="fails its checksum"):
        writer.store.range(b"k", b"l", limit=100)
    assert writer.store.get(b"k000001") is not None


def test_a_damaged_snapshot_is_refused_and_never_half_restored(tmp_path: Path) -> None:
    print(f"replay with JOBS_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    writer = Writer(tmp_path)
    fill(writer, 300, 10_000)  # several blocks
    writer.store.snapshot()
    whole = writer.store.state_hash()
    writer.store.close()
    (snapshot,) = tmp_path.glob("snapshot-*.snap")
    good = snapshot.read_bytes()
    bad = damages(good, chance)
    for number, data in enumerate(bad):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / snapshot.name).write_bytes(data)
        store = Store(str(directory))
        assert "corrupt at byte" in (store.recovered or ""), number
        assert snapshot.name in (store.recovered or "")
        assert (store.applied_index, store.revision) == (0, 0)
        store.close()
    older = tmp_path / "older"
    older.mkdir()
    (older / snapshot.name).write_bytes(good)
    (older / f"snapshot-{999:020}.snap").write_bytes(bad[-1])
    store = Store(str(older))
    assert store.state_hash() == whole


def test_what_a_crash_in_the_middle_of_a_restore_leaves_is_cleared(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    fill(writer, 10)
    writer.store.snapshot()
    whole = writer.store.state_hash()
    writer.store.close()
    (tmp_path / "data.mdb").unlink()
    (tmp_path / "restore").mkdir()
    (tmp_path / "restore" / "data.mdb").write_bytes(b"half of it")
    (tmp_path / f"snapshot-{11:020}.snap.new").write_bytes(b"half of it")
    store = Store(str(tmp_path))
    assert store.state_hash() == whole
    assert not (tmp_path / "restore").exists()


def test_other_threads_run_while_a_snapshot_is_written(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    fill(writer, 2_000, 5_000)
    steps = 0
    done = threading.Event()

    def snapshot() -> None:
        writer.store.snapshot()
        done.set()

    thread = threading.Thread(target=snapshot)
    thread.start()
    while not done.is_set():
        writer.apply(Put(b"beside", b"%d" % steps))
        steps += 1
    thread.join()
    assert steps > 3, "the snapshot held everything up"
    assert writer.store.revision == 2_000 + steps


def test_digests_tell_where_two_stores_differ(tmp_path: Path) -> None:
    # Given two stores with the same 3,000 keys, one of them under another prefix
    here, there = Writer(tmp_path / "here"), Writer(tmp_path / "there")
    for lot in range(3):
        numbers = range(lot * 1000, lot * 1000 + 1000)
        here.apply(*(Put(b"/data/%04d" % number, b"%d" % number) for number in numbers))
        there.apply(*(Put(b"/data/copy/%04d" % number, b"%d" % number) for number in numbers))

    def pieces(rows: int, start: bytes = b"", end: bytes = b"9") -> tuple[list[tuple[bytes, bytes]], ...]:
        sides = ((here, b"/data/"), (there, b"/data/copy/"))
        found = []
        for writer, prefix in sides:
            told, cursor = writer.store.digests(
                prefix + start, prefix + end, strip=len(prefix), content_only=True, rows=rows
            )
            assert cursor == b""
            found.append([(last.removeprefix(prefix), digest) for last, digest, *_ in told])
        return tuple(found)

    one, other = pieces(64)
    assert one == other
    assert len(one) > 10
    # When one differs
    there.apply(Put(b"/data/copy/1234", b"changed"))
    # Then so does one piece, and within it a smaller one
    one, other = pieces(64)
    differing = [number for number, (left, right) in enumerate(zip(one, other, strict=True)) if left != right]
    (number,) = differing
    bounds = (one[number - 1][0] + b"\0", one[number][0] + b"\0")
    assert bounds[0] <= b"1234" < bounds[1]
    one, other = pieces(1, *bounds)
    assert [left[0] for left, right in zip(one, other, strict=True) if left != right] == [b"1234"]


def test_digests_of_an_older_revision_are_what_they_were(tmp_path: Path) -> None:
    # Given keys, half of which are then changed, deleted, or added
    writer = Writer(tmp_path)
    for lot in range(2):
        writer.apply(*(Put(b"k%05d" % number, b"old") for number in range(lot * 1000, lot * 1000 + 1000)))
    revision, then = writer.store.revision, writer.store.digests(b"k", b"l", rows=32)
    writer.apply(*(Put(b"k%05d" % number, b"new") for number in range(0, 900, 2)))
    writer.apply(*(Delete(b"k%05d" % number) for number in range(900, 1_900)))
    writer.apply(*(Put(b"k%05d/" % number, b"new") for number in range(0, 2_000, 3)))
    assert writer.store.digests(b"k", b"l", rows=32) != then
    # Then they are the same at the revision from before, also bit by bit
    assert writer.store.digests(b"k", b"l", rows=32, revision=revision) == then
    found, cursor = writer.store.digests(b"k", b"l", rows=32, revision=revision, max_rows=7)
    while cursor:
        more, cursor = writer.store.digests(b"k", b"l", cursor=cursor, rows=32, revision=revision, max_rows=7)
        found += more
    assert found == then[0]
    # And they are refused of one that is gone, or still to come
    writer.apply(Compact(writer.store.revision))
    with pytest.raises(CompactedError):
        writer.store.digests(b"k", b"l", revision=revision)
    with pytest.raises(FutureRevisionError):
        writer.store.digests(b"k", b"l", revision=writer.store.revision + 1)


def test_what_makes_no_sense_to_compare_is_refused(tmp_path: Path) -> None:
    for store in (Store(str(tmp_path)), MemoryStore()):
        with pytest.raises(ValueError, match="a power of two"):
            store.digests(b"a", b"b", rows=100)
        with pytest.raises(ValueError, match="no cursor"):
            store.digests(b"a", b"b", cursor=b"x")
        assert store.digests(b"a", b"b") == ([], b"")
        assert store.digests(b"b", b"a") == ([], b"")


def test_every_row_is_checked_and_a_damaged_one_named(tmp_path: Path) -> None:
    # Given a store, in whose file one value is changed
    writer = Writer(tmp_path)
    fill(writer, 300)
    writer.apply(Put(b"marked", b"a value that is found"))
    rows, size, cursor, damaged = writer.store.check_rows()
    assert (cursor, damaged) == (b"", [])
    assert rows >= 2 * 301
    assert size > 300 * 100
    data = (tmp_path / "data.mdb").read_bytes()
    at = data.rindex(b"a value that is found")
    with (tmp_path / "data.mdb").open("r+b") as file:
        file.seek(at)
        file.write(b"b")
    # When the rows are looked at in bounded steps
    seen, cursor, wrong = 0, b"", list[str]()
    while not seen or cursor:
        looked_at, _, cursor, damaged = writer.store.check_rows(cursor, max_rows=50)
        assert looked_at <= 50
        seen += looked_at
        wrong += damaged
    # Then it is found, and the rows behind it are looked at
    assert seen == rows
    assert len(wrong) == 1
    assert "fails its checksum" in wrong[0]


def test_a_snapshot_file_is_checked_whole(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "store")
    fill(writer, 50)
    writer.store.snapshot()
    path = Path(writer.store.snapshot_path() or "")
    rows, *_ = writer.store.check_rows()
    assert Store.check_snapshot_file(str(path)) == rows
    chance = random.Random(SEED)
    print(f"replay with JOBS_TEST_SEED={SEED}")
    damaged = tmp_path / "damaged"
    for data in damages(path.read_bytes(), chance):
        damaged.write_bytes(data)
        with pytest.raises(CorruptError, match="damaged: corrupt at byte"):
            Store.check_snapshot_file(str(damaged))
    with pytest.raises(NativeError, match="cannot open"):
        Store.check_snapshot_file(str(tmp_path / "none"))


def test_the_data_file_tells_how_much_of_it_is_empty(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for lot in range(5):
        writer.apply(*(Put(b"k%06d" % (lot * 1000 + number), b"x" * 1_000) for number in range(1_000)))
    size, empty = writer.store.file_bytes()
    assert size == (tmp_path / "data.mdb").stat().st_size
    assert 0 <= empty < size / 4
    writer.apply(Delete(b"k", b"l"))
    writer.apply(Compact(writer.store.revision))
    for _ in range(200):
        writer.apply(Get(b"k"))
    larger, empty = writer.store.file_bytes()
    assert larger >= size
    assert empty > larger / 2
