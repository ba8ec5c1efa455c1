"""A store whose data file is made compact while it is used."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from jobs._native import CorruptError, DiskFullError, NativeError, SqlSnapshot, Store, StoreReader
from jobs.store import Compact, Delete, Op, Put, Txn, encode_command
from tests.support.disks import small_disk


class Written:
    """A store, and the entries that it has been given."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = Store(str(directory))
        self.entries: list[tuple[int, int, bytes]] = []

    def apply(self, *ops: Op) -> None:
        entry = (self.store.applied_index + 1, 1, encode_command([Txn(then=ops)]))
        self.entries.append(entry)
        self.store.apply([entry])

    def fill(self, count: int, size: int = 1_000, prefix: bytes = b"k") -> None:
        for start in range(0, count, 500):
            numbers = range(start, min(start + 500, count))
            self.apply(*(Put(prefix + b"%06d" % number, os.urandom(size // 2) * 2) for number in numbers))

    def after(self, index: int) -> list[tuple[int, int, bytes]]:
        return [entry for entry in self.entries if entry[0] > index]

    def compact(self) -> None:
        copy = self.store.begin_compaction()
        assert copy.finish()
        copy.close()

    def file_names(self) -> list[str]:
        return sorted(str(file.relative_to(self.directory)) for file in self.directory.rglob("*") if file.is_file())


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "store")


def delete_most(written: Written, count: int) -> None:
    """Delete nine of ten keys, all over the file, and forget that they were there."""
    for start in range(0, count, 500):
        numbers = (number for number in range(start, start + 500) if number % 10)
        written.apply(*(Delete(b"k%06d" % number) for number in numbers))
    written.apply(Compact(written.store.revision))
    while written.store.history_events:
        before = written.store.history_events
        written.apply(Put(b"step", b""), Compact(written.store.revision))
        if written.store.history_events >= before:
            break


def test_the_room_of_what_was_deleted_is_given_back(written: Written) -> None:
    # Given a store of which most was deleted: its file stays as it is
    written.fill(20_000, size=200)
    full, _ = written.store.file_bytes()
    delete_most(written, 20_000)
    state, (before, empty) = written.store.state_hash(), written.store.file_bytes()
    assert before >= full
    assert empty > before / 2
    # When it is compacted
    written.compact()
    # Then the file holds little but what is there
    rows, live, *_ = written.store.check_rows(max_rows=1_000_000)
    assert 2_000 < rows < 2_200
    after, _ = written.store.file_bytes()
    assert live < after < 1.2 * live
    assert written.store.used_bytes() <= after
    # And the same, which it can also be after a restart
    assert written.store.state_hash() == state
    written.fill(10, prefix=b"more")
    state = written.store.state_hash()
    written.store.close()
    again = Store(str(written.directory))
    assert again.recovered is None
    assert (again.state_hash(), again.applied_index) == (state, len(written.entries))


def test_a_copy_follows_what_is_applied_while_it_is_made(written: Written) -> None:
    written.fill(5_000)
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            written.apply(Put(b"k%06d" % (number % 5_000), b"new"), Put(b"w%06d" % number, b"x" * 100))

    writer = threading.Thread(target=write)
    writer.start()
    # When a copy is made as the store is written
    copied: list[int] = []
    copy = written.store.begin_compaction(copied.append)
    begun = copy.applied_index
    for _ in range(20):
        copy.apply(written.after(copy.applied_index))
    over.set()
    writer.join()
    # Then it does not take the store's place before it has caught up
    written.apply(Put(b"last", b""))
    assert begun < written.store.applied_index
    assert copied == sorted(copied)
    assert copied
    assert copy.finish() is False
    copy.apply(written.after(copy.applied_index))
    state = written.store.state_hash()
    assert copy.finish() is True
    copy.close()
    # And is the same
    assert written.store.state_hash() == state
    assert written.store.check_rows(max_rows=1_000_000)[3] == []
    assert written.store.events(0, [b"last"], limit=10, max_bytes=1 << 40)[1] > 0


def test_only_one_data_file_is_left_after_any_number_of_compactions(written: Written) -> None:
    written.fill(1_000)
    for number in range(1, 5):
        written.compact()
        places = {name for name in written.file_names() if name.endswith(".mdb")}
        assert len({os.path.dirname(name) for name in places}) == 1
        written.apply(Put(b"after", b"%d" % number))
    written.store.close()
    store = Store(str(written.directory))
    found = store.get(b"after")
    assert found is not None
    assert found[1] == b"4"
    assert sum(name.endswith("data.mdb") for name in written.file_names()) == 1


def test_there_is_one_copy_at_a_time_and_one_that_is_dropped_is_removed(written: Written) -> None:
    written.fill(1_000)
    names = written.file_names()
    copy = written.store.begin_compaction()
    with pytest.raises(NativeError, match="being compacted already"):
        written.store.begin_compaction()
    copy.close()
    with pytest.raises(NativeError, match="closed"):
        copy.finish()
    assert [name for name in written.file_names() if name != "CURRENT.new"] == names
    written.compact()


def test_whoever_may_read_the_file_may_read_the_next_one(written: Written) -> None:
    group = 65_534 if os.getuid() == 0 else os.getgid()
    rights = {"": 0o751, "data.mdb": 0o640, "lock.mdb": 0o666}
    for name, mode in rights.items():
        os.chown(written.directory / name, -1, group)
        (written.directory / name).chmod(mode)
    written.fill(10)
    written.compact()
    for name, mode in rights.items():
        found = (written.directory / "compact-1" / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (mode, group)


def test_a_directory_that_hands_its_group_on_has_its_files_read_by_that_group(tmp_path: Path) -> None:
    group = 65_534 if os.getuid() == 0 else os.getgid()
    shared, private = tmp_path / "shared", tmp_path / "private"
    for directory in (shared, private):
        directory.mkdir()
        os.chown(directory, -1, group)
        directory.chmod(0o2750 if directory == shared else 0o750)
    before = os.umask(0o027)
    try:
        for directory, rights in ((shared, [0o640, 0o660]), (private, [0o600, 0o600])):
            written = Written(directory)
            written.fill(10)
            written.compact()
            found = [(directory / "compact-1" / name).stat() for name in ("data.mdb", "lock.mdb")]
            assert [stat.S_IMODE(one.st_mode) for one in found] == rights
            # A node may be forbidden to set the bit, and has not to: it is inherited.
            assert (directory / "compact-1").stat().st_mode & 0o7777 == directory.stat().st_mode & 0o7777
            written.store.close()
        assert {path.stat().st_gid for path in shared.rglob("*")} == {group}
    finally:
        os.umask(before)


def test_a_copy_is_broken_off_by_who_is_told_how_far_it_is(written: Written) -> None:
    written.fill(10_000)
    names = written.file_names()

    def stop(copied: int) -> None:
        assert copied > 0
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        written.store.begin_compaction(stop)
    assert written.file_names() == names
    written.compact()


def test_a_copy_of_a_damaged_row_is_not_made(written: Written) -> None:
    written.fill(100)
    written.apply(Put(b"marked", b"a value that is found"))
    path = written.directory / "data.mdb"
    at = path.read_bytes().rindex(b"a value that is found")
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"b")
    with pytest.raises(CorruptError, match="fails its checksum"):
        written.store.begin_compaction()
    assert "CURRENT" not in written.file_names()


def test_a_snapshot_that_is_taken_in_ends_the_copy_from_before(written: Written, tmp_path: Path) -> None:
    # Given a copy that is made of a store
    written.fill(1_000)
    copy = written.store.begin_compaction()
    # When the store takes in another member's snapshot, and the copy is made to stand at the same entry
    leader = Written(tmp_path / "leader")
    for _ in range(written.store.applied_index + 1):
        leader.apply(Put(b"other", b"history"))
    leader.store.snapshot()
    received = written.directory / "received"
    shutil.copyfile(leader.store.snapshot_path() or "", received)
    written.store.install(str(received))
    copy.apply(leader.after(copy.applied_index))
    assert copy.applied_index == written.store.applied_index
    # Then it does not take its place
    assert copy.finish() is False
    copy.close()
    assert written.store.state_hash() == leader.store.state_hash()
    written.compact()
    assert written.store.state_hash() == leader.store.state_hash()


@pytest.mark.parametrize(
    ("current", "boot_id", "why"),
    [
        ("1 compact-1", "another", "the operating system went down"),
        ("1 compact-7", "this", "the data file is gone"),
        ("1 ../elsewhere", "this", "it names no place"),
        ("", "this", "it names no place"),
        ("\udcff", "this", "it names no place"),
    ],
)
def test_a_compacted_store_that_cannot_be_trusted_is_put_back_from_its_snapshot(
    tmp_path: Path, current: str, boot_id: str, why: str
) -> None:
    # Given a compacted store whose process, or operating system, died
    store = Store(str(tmp_path), boot_id="this")
    for index in range(1, 500):
        store.apply([(index, 1, encode_command([Txn(then=(Put(b"k%d" % index, b"x"),))]))])
    store.snapshot()
    state = store.state_hash()
    copy = store.begin_compaction()
    assert copy.finish()
    copy.close()
    del store, copy
    (tmp_path / "CURRENT").write_bytes(current.encode(errors="surrogateescape"))
    # Then the next opener takes the snapshot, and nothing is left of the other files
    store = Store(str(tmp_path), boot_id=boot_id)
    assert why in (store.recovered or "")
    assert store.state_hash() == state
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"OPEN", "data.mdb", "lock.mdb", Path(store.snapshot_path() or "").name}


def test_what_was_left_of_a_copy_is_removed_by_the_next_opener(written: Written) -> None:
    written.fill(500)
    written.compact()
    state = written.store.state_hash()
    written.store.close()
    # Given the former file, which could not be removed, a copy that came to nothing, and what is none of these
    for name in ("data.mdb", "lock.mdb", "compact-9/data.mdb", "compact-9/lock.mdb", "CURRENT.new", "compact-x/mine"):
        path = written.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"left over")
    store = Store(str(written.directory))
    assert store.recovered is None
    assert store.state_hash() == state
    assert written.file_names() == [
        "CURRENT",
        "OPEN",
        "compact-1/data.mdb",
        "compact-1/lock.mdb",
        "compact-x/mine",
    ]


def test_this_process_reads_a_store_once_also_when_it_was_compacted(written: Written) -> None:
    """LMDB allows that once: a second opener would end the first one's locks."""
    written.fill(100)
    written.compact()
    for opener in (SqlSnapshot, StoreReader):
        with pytest.raises(NativeError, match="already open in this program"):
            opener(str(written.directory))


def test_without_ample_room_no_copy_is_begun(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk"):
        written = Written(tmp_path / "disk" / "store")
        written.fill(2_000)
        names = written.file_names()
        with pytest.raises(DiskFullError, match="no room to compact it"):
            written.store.begin_compaction()
        assert written.file_names() == names
        written.store.close()
