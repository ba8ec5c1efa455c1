"""kill -9 of a process that appends and syncs as fast as it can: nothing that it acknowledged may be lost.

This file is also the program of the process that is killed (`write`) and of the one that looks afterwards (`check`).
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

from jobs._native import Log

SEGMENT_BYTES = 1 << 20
ACK = struct.Struct("<QQ")
"""(last durable index, durable term of the hard state)"""
MAX_RUN_S = 0.08
KEPT_ENTRIES = 5_000


def payload(index: int) -> bytes:
    """Return the one payload that entry `index` can have: 0 to some 6,000 bytes, some much longer."""
    block = hashlib.blake2b(index.to_bytes(8, "little")).digest()
    size = int.from_bytes(block[:2], "little") % (200_000 if index % 500 == 0 else 6_000 if index % 10 == 0 else 300)
    return (block * (size // len(block) + 1))[:size]


def term_of(index: int) -> int:
    return 1 + index // 1000


def write(directory: str, seed: int) -> None:
    """Append and sync for ever; write every acknowledgement to standard output when the sync has returned."""
    rng = random.Random(seed)
    log = Log(directory, segment_bytes=SEGMENT_BYTES)
    while True:
        for _ in range(rng.choice((1, 1, 1, 5, 100))):
            index = log.last_index + 1
            log.append(index, term_of(index), payload(index))
        if rng.random() < 0.1:
            term = log.hard_state()[0] + 1
            log.set_hard_state(term, f"node-{term}")
        log.sync()
        os.write(1, ACK.pack(log.durable_index, log.hard_state()[0]))
        if log.last_index - log.first_index > 2 * KEPT_ENTRIES:
            log.truncate_prefix(log.last_index - KEPT_ENTRIES)


def check(directory: str, acked_index: int, acked_term: int) -> None:
    """Open the log, compare every entry, and fail if an acknowledged one is missing."""
    log = Log(directory, segment_bytes=SEGMENT_BYTES)
    term, vote = log.hard_state()
    assert term >= acked_term, f"term {acked_term} was acknowledged, {term} is there"
    assert vote == (f"node-{term}" if term else None)
    assert log.last_index >= acked_index, f"entry {acked_index} was acknowledged, the last is {log.last_index}"
    index = log.first_index
    while entries := log.entries(index, 1000, 1 << 20):
        for entry in entries:
            assert entry == (payload(index), index, term_of(index)), f"entry {index} is wrong"
            index += 1
    assert index == log.last_index + 1, f"entry {index} cannot be read"
    print(log.last_index, log.recovered or "whole")


def test_no_acknowledged_entry_is_lost_by_kill_9(tmp_path: Path) -> None:
    seed = int(os.environ.get("JOBS_TEST_SEED", random.randrange(2**32)))
    kills = 20 * int(os.environ.get("JOBS_TEST_SCALE", "1"))
    print(f"replay with JOBS_TEST_SEED={seed} (the kernel's timing is not in it)")
    rng = random.Random(seed)
    acked = (0, 0)
    acknowledgements = 0
    for _ in range(kills):
        # given a process that has acknowledged something since it started
        writer = subprocess.Popen(
            [sys.executable, __file__, "write", str(tmp_path), str(rng.randrange(2**32))], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        acks_fd = writer.stdout.fileno()
        received = bytearray(os.read(acks_fd, ACK.size))
        assert received, "the writer ended by itself"

        # when it is killed at a random moment
        killed_at = time.monotonic() + rng.uniform(0, MAX_RUN_S)
        while (left_s := killed_at - time.monotonic()) > 0:
            if select.select([acks_fd], [], [], left_s)[0]:
                received += os.read(acks_fd, 1 << 16)
        writer.send_signal(signal.SIGKILL)
        while more := os.read(acks_fd, 1 << 16):
            received += more
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
        acks = list(ACK.iter_unpack(received[: len(received) // ACK.size * ACK.size]))
        assert acks[0] > acked
        acknowledgements += len(acks)
        acked = acks[-1]

        # then a fresh process finds every entry it acknowledged, each with its own content
        checker = subprocess.run(
            [sys.executable, __file__, "check", str(tmp_path), *map(str, acked)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert checker.returncode == 0, f"seed {seed}: {checker.stderr}"
    print(f"{kills} kills, {acknowledgements} acknowledgements, {acked[0]} entries, 0 lost")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], int(sys.argv[3]))
    else:
        check(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
