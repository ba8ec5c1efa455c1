"""The real log on a disk in memory, as the simulation uses it: cuts, faults, and that a seed says everything."""

from __future__ import annotations

import pytest

from jobs._native import DiskFullError, Log, NativeError, PoisonedError, SimDisk


def content(log: Log) -> list[tuple[bytes, int, int]]:
    return log.entries(log.first_index, 1 << 30, 1 << 40)


def written(disk: SimDisk, count: int, *, synced: int) -> Log:
    log = Log.on(disk)
    for index in range(1, count + 1):
        log.append(index, 1, b"%d" % index * 400)
        if index == synced:
            log.sync()
    return log


def append_many(log: Log, count: int) -> None:
    for index in range(1, count + 1):
        log.append(index, 1, b"x" * 5_000)


def test_a_power_cut_takes_only_what_was_not_synced_and_closes_what_is_open() -> None:
    kept = set()
    for seed in range(40):
        # given a log with entries on the disk and others that are not
        disk = SimDisk(seed)
        log = Log.on(disk)
        log.set_hard_state(3, "somebody")
        for index in range(1, 21):
            log.append(index, 3, b"%d" % index * 400)
            if index == 10:
                log.sync()
        # when the power goes
        disk.cut_power()
        # then nobody writes through what was open, and what was synced is there
        with pytest.raises(NativeError):
            log.sync()
        found = Log.on(disk)
        assert found.hard_state() == (3, "somebody")
        assert 10 <= found.last_index <= 20
        assert [entry[1] for entry in content(found)] == list(range(1, found.last_index + 1))
        kept.add(found.last_index)
    assert kept == {10}, "entries that were never handed to the system cannot be there"


def test_what_was_handed_to_the_system_may_survive_in_part() -> None:
    kept = set()
    for seed in range(60):
        disk = SimDisk(seed)
        log = written(disk, 20, synced=10)
        disk.fail("sync", "power_cut")
        with pytest.raises(NativeError):
            log.sync()
        disk.cut_power()
        kept.add(Log.on(disk).last_index)
    assert min(kept) == 10
    assert max(kept) == 20
    assert len(kept) > 3


def test_a_kill_loses_nothing_that_was_written() -> None:
    disk = SimDisk(1)
    log = written(disk, 20, synced=10)
    disk.fail("sync", "eio")
    with pytest.raises(NativeError):
        log.sync()
    with pytest.raises(PoisonedError):
        log.sync()
    disk.kill()
    assert Log.on(disk).last_index == 20


def test_the_same_seed_loses_the_same() -> None:
    def run(seed: int) -> list[object]:
        disk = SimDisk(seed)
        seen: list[object] = []
        for _ in range(10):
            log = Log.on(disk)
            start = log.last_index + 1
            for index in range(start, start + 5):
                log.append(index, 1, b"x" * 700)
            disk.fail("sync", "power_cut")
            with pytest.raises(NativeError):
                log.sync()
            disk.cut_power()
            seen += [log.recovered, disk.operations(), content(Log.on(disk))]
        return seen

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_a_full_disk_refuses_further_segments_until_there_is_room() -> None:
    disk = SimDisk(2)
    log = Log.on(disk)
    disk.set_full(True)
    with pytest.raises(DiskFullError):
        append_many(log, 100)
    last = log.sync()
    log.set_hard_state(9, None)
    disk.set_full(False)
    log.append(last + 1, 1, b"x" * 5_000)
    assert log.sync() == last + 1


def test_operations_are_counted_and_a_name_that_is_none_is_refused() -> None:
    disk = SimDisk(3)
    written(disk, 5, synced=5)
    counts = disk.operations()
    assert counts["create"] == counts["rename"] == 1
    assert counts["sync"] >= 2
    assert counts["remove"] == 0
    with pytest.raises(ValueError, match="melt is not known"):
        disk.fail("melt", "eio")
    with pytest.raises(ValueError, match="melt is not known"):
        disk.fail(None, "melt")
