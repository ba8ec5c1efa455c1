"""How long a member takes to serve again after 1,000,000 applied writes: killed, and after a power cut.

    python -m benchmarks.restart [--writes 1000000]

A child process writes (one key-value put a transaction, in the bounded commands that consensus makes of them) and is
killed with SIGKILL. The first figure opens what it left, as a restart does. The second takes the boot for another one,
so the store is not trusted: the newest snapshot is restored and the rest of the log is applied again.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs._native import Log, Store
from jobs.consensus import Consensus
from jobs.store import Put, Txn

LOT = 10_000


async def write(directory: Path, writes: int) -> None:
    """Write, say so, and wait to be killed."""
    consensus = Consensus("one", Log(str(directory / "log")), Store(str(directory / "store")))
    await consensus.start()
    for first in range(0, writes, LOT):
        lot = [Txn(then=(Put(b"/data/%09d" % number, b"v" * 100),)) for number in range(first, first + LOT)]
        await asyncio.gather(*(consensus.propose(txn) for txn in lot))
    print("written", flush=True)
    await asyncio.get_running_loop().create_future()


async def restart(directory: Path, boot_id: str | None) -> tuple[float, int]:
    """Return the seconds until the member leads and has applied everything, and its revision."""
    began = time.perf_counter()
    log, store = Log(str(directory / "log")), Store(str(directory / "store"), boot_id=boot_id)
    consensus = Consensus("one", log, store)
    await consensus.start()
    spent, revision = time.perf_counter() - began, store.revision
    await consensus.stop()
    store.close()
    log.close()
    return spent, revision


def measure(writes: int) -> tuple[float, float]:
    """Return the seconds after SIGKILL and after a power cut."""
    with tempfile.TemporaryDirectory(prefix="jobs-restart-") as name:
        directory = Path(name)
        command = [sys.executable, "-m", "benchmarks.restart", "--writes", str(writes), "--into", name]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"written\n"
            child.kill()
        killed, revision = asyncio.run(restart(directory, None))
        assert revision == writes, f"{writes - revision} acknowledged writes lost"
        marker = directory / "store" / "OPEN"
        marker.write_text(marker.read_text().replace("closed", "open"))
        cut, revision = asyncio.run(restart(directory, "another-boot"))
        assert revision == writes, f"{writes - revision} acknowledged writes lost"
        return killed, cut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writes", type=int, default=1_000_000)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.into is not None:
        asyncio.run(write(options.into, options.writes))
        return
    killed, cut = measure(options.writes)
    print(f"restart after {options.writes:,} writes: {killed:.2f} s after SIGKILL, {cut:.2f} s after a power cut")


if __name__ == "__main__":
    main()
