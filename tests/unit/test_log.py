"""The write-ahead log as Python sees it: types, errors, and that its disk work does not hold up other threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from jobs._native import (
    CompactedError,
    CorruptError,
    DiskFullError,
    LimitError,
    Log,
    NativeError,
    PoisonedError,
)

SEGMENT_BYTES = 64 << 10
HEADER_BYTES = 512


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "deep" / "log")


def filled(directory: str, count: int = 5) -> Log:
    log = Log(directory, segment_bytes=SEGMENT_BYTES)
    for index in range(1, count + 1):
        log.append(index, 1 + index // 3, b"entry %d" % index)
    log.sync()
    return log


def newest_segment(directory: str) -> Path:
    return max(Path(directory).glob("*.seg"))


def in_a_process(code: str, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_new_log_is_empty(directory: str) -> None:
    log = Log(directory)
    assert (log.first_index, log.last_index, log.durable_index, log.size_bytes) == (1, 0, 0, 0)
    assert log.recovered is None
    assert log.hard_state() == (0, None)
    assert log.get(1) is None
    assert log.entries(1, 10, 10) == []
    assert log.term_at(0) is None


def test_entries_have_the_order_of_pysyncobjs_journal(directory: str) -> None:
    log = filled(directory)
    entry = log.get(4)
    assert entry == (b"entry 4", 4, 2)
    assert [type(field) for field in entry] == [bytes, int, int]
    assert log.entries(4, 10, 1 << 62) == [(b"entry 4", 4, 2), (b"entry 5", 5, 2)]
    assert [log.term_at(index) for index in range(7)] == [None, 1, 1, 2, 2, 2, None]


def test_entries_are_bounded_by_count_and_bytes_but_one_always_comes(directory: str) -> None:
    log = filled(directory)
    assert [entry[1] for entry in log.entries(2, 2, 1000)] == [2, 3]
    assert [entry[1] for entry in log.entries(1, 10, 2 * len(b"entry 1"))] == [1, 2]
    assert [entry[1] for entry in log.entries(1, 10, 0)] == [1]
    assert log.entries(1, 0, 1000) == []
    assert log.entries(2**64 - 1, 10, 10) == []


def test_an_entry_can_be_read_before_it_is_durable(directory: str) -> None:
    log = filled(directory)
    log.append(6, 2, b"pending")
    assert log.get(6) == (b"pending", 6, 2)
    assert (log.last_index, log.durable_index) == (6, 5)
    assert log.sync() == 6
    assert log.durable_index == 6
    # a spill to the page cache makes nothing durable either
    log.append(7, 2, bytes(8 << 20))
    assert log.durable_index == 6


def test_everything_synced_is_there_after_reopening(directory: str) -> None:
    log = filled(directory, 300)
    log.set_hard_state(7, "node-ä")
    log.truncate_prefix(20)
    log.truncate_suffix(280)
    size_bytes = log.size_bytes
    log.close()

    log = Log(directory, segment_bytes=SEGMENT_BYTES)
    assert (log.first_index, log.last_index, log.durable_index) == (20, 279, 279)
    assert log.hard_state() == (7, "node-ä")
    assert log.size_bytes == size_bytes
    assert [entry[0] for entry in log.entries(1, 1000, 1 << 62)] == []
    assert [entry[0] for entry in log.entries(20, 1000, 1 << 62)] == [b"entry %d" % index for index in range(20, 280)]
    assert log.recovered is None
    log.set_hard_state(8, None)
    log.close()
    assert Log(directory).hard_state() == (8, None)


def test_cutting_the_prefix_removes_files_and_the_log_can_go_on_anywhere_when_empty(directory: str) -> None:
    log = Log(directory, segment_bytes=SEGMENT_BYTES)
    for index in range(1, 21):
        log.append(index, 1, bytes(20_000))
    log.sync()
    before = len(list(Path(directory).glob("*.seg")))
    log.truncate_prefix(18)
    assert len(list(Path(directory).glob("*.seg"))) < before
    log.truncate_prefix(50)
    assert (log.first_index, log.last_index, log.size_bytes) == (50, 49, 0)
    # a follower that gets an older snapshot begins before where it was
    log.append(30, 2, b"after a snapshot")
    log.sync()
    log.close()
    log = Log(directory, segment_bytes=SEGMENT_BYTES)
    assert (log.first_index, log.last_index) == (30, 30)
    assert log.get(30) == (b"after a snapshot", 30, 2)


def test_a_gap_and_a_cut_before_the_first_entry_are_refused(directory: str) -> None:
    log = filled(directory)
    for index in (0, 5, 7):
        with pytest.raises(NativeError, match=f"entry {index} cannot follow entry 5"):
            log.append(index, 1, b"")
    log.truncate_prefix(3)
    with pytest.raises(NativeError, match="begins at 3"):
        log.truncate_suffix(2)
    assert (log.first_index, log.last_index) == (3, 5)


def test_limits_are_named_and_change_nothing(directory: str) -> None:
    log = filled(directory)
    with pytest.raises(LimitError, match="67108865 bytes; the limit is 67108864"):
        log.append(6, 1, bytes((64 << 20) + 1))
    with pytest.raises(LimitError, match="the limit is 255"):
        log.set_hard_state(2, "n" * 256)
    with pytest.raises(NativeError, match="64 KiB to 1 GiB"):
        Log(directory + "-small", segment_bytes=1000)
    assert (log.last_index, log.hard_state()) == (5, (0, None))


def test_wrong_types_are_refused_by_python(directory: str) -> None:
    log = filled(directory)
    with pytest.raises(TypeError):
        log.append(6, 1, "text")  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        log.append(-1, 1, b"")
    with pytest.raises(TypeError):
        log.set_hard_state(1, b"node")  # type: ignore[arg-type]


def test_every_error_is_a_native_error() -> None:
    for error in (CorruptError, DiskFullError, PoisonedError, CompactedError, LimitError):
        assert issubclass(error, NativeError)
        assert error.__module__ == "jobs._native"


def test_a_closed_log_refuses(directory: str) -> None:
    log = filled(directory)
    log.close()
    log.close()
    for call in (log.sync, log.hard_state, lambda: log.last_index, lambda: log.get(1)):
        with pytest.raises(NativeError, match="closed"):
            call()


def test_a_second_opener_is_refused_here_and_in_another_process(directory: str) -> None:
    log = filled(directory)
    with pytest.raises(NativeError, match="open already"):
        Log(directory)
    code = "import sys; from jobs._native import Log; Log(sys.argv[1])"
    refused = in_a_process(code, directory)
    assert refused.returncode == 1
    assert "open already" in refused.stderr
    log.close()
    assert in_a_process(code, directory).returncode == 0


def test_a_torn_tail_is_cut_and_said(directory: str) -> None:
    filled(directory).close()
    path = newest_segment(directory)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"entry 5")
    data[at] ^= 1
    path.write_bytes(data)
    log = Log(directory)
    assert log.last_index == 4
    assert log.recovered is not None
    assert f"{path}: cut a torn tail" in log.recovered
    assert "after entry 4" in log.recovered


def test_corruption_names_file_and_offset(directory: str) -> None:
    log = filled(directory)
    log.append(6, 2, b"proof that the entries before it were durable")
    log.sync()
    log.close()
    path = newest_segment(directory)
    data = bytearray(path.read_bytes())
    data[data.index(b"entry 1")] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=f"{path}: corrupt at byte {HEADER_BYTES}"):
        Log(directory)


def test_a_write_that_the_system_refuses_poisons_the_log(directory: str) -> None:
    """Given a limit on file sizes, when a write goes beyond it, then the log refuses until it is opened again."""
    filled(directory).close()
    code = """
        import resource, signal, sys
        from jobs._native import Log, NativeError, PoisonedError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = Log(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        log.append(6, 2, bytes(30_000))
        try:
            log.sync()
        except PoisonedError:
            sys.exit("the first failure is the failure itself")
        except NativeError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        try:
            log.append(7, 2, b"")
        except PoisonedError as error:
            print(error)
    """
    ended = in_a_process(code, directory)
    assert ended.returncode == 0, ended.stderr
    first, second = ended.stdout.splitlines()
    assert "cannot write" in first
    assert "File too large" in first
    assert "refused, because an earlier operation failed: cannot write" in second
    assert Log(directory).last_index == 5


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1) to mount a small file system")
def test_a_full_disk_is_an_error_of_its_own_and_nothing_is_lost(tmp_path: Path) -> None:
    private = ("unshare", "--user", "--map-root-user", "--mount")
    if subprocess.run([*private, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("user namespaces are not available")
    code = """
        import subprocess, sys
        from jobs._native import DiskFullError, Log
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", sys.argv[1]], check=True)
        log = Log(sys.argv[1], segment_bytes=64 << 10)
        index = 1
        try:
            while True:
                log.append(index, 1, bytes(5_000))
                index += 1
        except DiskFullError as error:
            print(error)
        assert log.last_index == index - 1
        assert log.sync() == index - 1
        log.truncate_prefix(index - 3)
        log.append(index, 1, bytes(5_000))
        log.sync()
        log.close()
        log = Log(sys.argv[1], segment_bytes=64 << 10)
        assert (log.first_index, log.last_index) == (index - 3, index)
    """
    ended = in_a_process(code, str(tmp_path), prefix=private)
    assert ended.returncode == 0, ended.stderr
    assert "no room to make" in ended.stdout
    assert "No space left on device" in ended.stdout


def test_other_threads_run_while_the_log_syncs(directory: str) -> None:
    """Given a thread that gets the GIL only when it is given up, when the log syncs, then that thread gets on."""
    log = Log(directory)
    for index in range(1, 9):
        log.append(index, 1, bytes(4 << 20))
    steps = 0
    stop = threading.Event()
    started = threading.Event()

    def work() -> None:
        nonlocal steps
        while not stop.is_set():
            steps += 1
            started.set()
            os.stat(directory)  # gives the GIL up

    interval_s = sys.getswitchinterval()
    thread = threading.Thread(target=work)
    try:
        sys.setswitchinterval(60)
        thread.start()
        started.wait()
        before = steps
        log.sync()
        after = steps
    finally:
        sys.setswitchinterval(interval_s)
        stop.set()
        thread.join()
    assert after > before + 1


def test_properties_can_be_read_while_another_thread_syncs(directory: str) -> None:
    log = Log(directory)
    for index in range(1, 9):
        log.append(index, 1, bytes(4 << 20))
    syncing = threading.Thread(target=log.sync)
    syncing.start()
    seen = {log.durable_index for _ in range(100)}
    syncing.join()
    assert seen <= {0, 8}
    assert (log.last_index, log.durable_index) == (8, 8)


def test_memory_is_bounded_by_a_few_bytes_an_entry(directory: str) -> None:
    """200,000 entries of 200 bytes are 48 MB on disk; the log may keep 8 bytes of each."""
    code = """
        import resource, sys
        from jobs._native import Log
        log = Log(sys.argv[1])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        payload = bytes(200)
        for index in range(1, 200_001):
            log.append(index, 1, payload)
        log.sync()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    ended = in_a_process(code, directory)
    assert ended.returncode == 0, ended.stderr
    grown_kib = int(ended.stdout)
    assert grown_kib < 20 << 10


def check_all(log: Log, max_bytes: int = 8 << 20) -> int:
    """Verify everything that is on the disk; return how many bytes that was."""
    index, total, read = log.first_index, 0, 1
    while read:
        index, read = log.check(index, max_bytes=max_bytes)
        total += read
    assert index == log.last_index + 1
    return total


def test_what_is_on_the_disk_is_verified_in_bounded_steps(directory: str) -> None:
    # Given a log of several segments, cut at both ends
    log = Log(directory, segment_bytes=SEGMENT_BYTES)
    assert log.check(1) == (1, 0)
    for index in range(1, 400):
        log.append(index, 1, b"x" * 1000)
    log.truncate_suffix(300)
    log.truncate_prefix(50)
    for index in range(300, 320):
        log.append(index, 2, b"y" * 1000)
    log.sync()
    # When all of it is verified, whatever the size of the steps
    total = check_all(log)
    assert total == check_all(log, max_bytes=1) == check_all(log, max_bytes=5_000)
    # Then entries behind a later cut were looked at too, as they are among the others
    assert total > 270 * 1000
    # And one that is not written yet is not
    log.append(320, 2, b"z")
    assert log.check(320) == (320, 0)


def test_damage_on_the_disk_is_found_while_the_log_is_open(directory: str) -> None:
    # Given a log in use, one of whose records the disk has changed
    log = filled(directory, 100)
    path = newest_segment(directory)
    at = path.read_bytes().index(b"entry 57")
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"E")
    # Then that record is named
    with pytest.raises(CorruptError, match=rf"{path.name}: corrupt at byte {at - 40}"):
        check_all(log)
    assert log.check(58)[1] > 0
    log.append(101, 40, b"goes on")
    assert log.sync() == 101
