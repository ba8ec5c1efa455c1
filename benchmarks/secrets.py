"""What secrets cost in the sandbox: starts, and output that is looked through, with and without them, in one run.

    python benchmarks/secrets.py [--seconds 2] [--rounds 3] [--json]

Each figure with a secret stands beside the same without one, taken in turns. `token` is a secret of 40 bytes, `key` one
of 4 KiB in lines as a private key, `large` one of 64 KiB. Of the output the limit keeps 1 MiB: `text` has nothing of a
secret, `worst` begins again and again like one.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import select
import statistics
import sys
import time

from jobs.protocol.ids import Attempt, JobId
from jobs.workers.sandbox import Ack, Configure, Exited, JobLimits, Launcher, Output, Spawn

OUTPUT_MIB = 128
TOKEN = base64.b64encode(os.urandom(30))
KEY = base64.encodebytes(os.urandom(3_000))
LARGE = base64.b64encode(os.urandom(48 << 10))
WORST = b"a" * 4_000 + b"b"
TEXT = "yes 'the quick brown fox jumps over the lazy dog, and then again'"
STARTS: dict[str, dict[str, bytes]] = {"none": {}, "token": {"s": TOKEN}, "key": {"s": KEY}, "large": {"s": LARGE}}
OUTPUTS: dict[str, tuple[str, dict[str, bytes]]] = {
    "text_none": (TEXT, {}),
    "text_token": (TEXT, {"s": TOKEN}),
    "text_key": (TEXT, {"s": KEY}),
    "worst_none": ("head -c 1G /dev/zero | tr '\\0' a", {}),
    "worst_key": ("head -c 1G /dev/zero | tr '\\0' a", {"s": WORST}),
}


class Jobs:
    """Runs one job at a time."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._count = 0

    def run(self, script: str, secrets: dict[str, bytes], limits: JobLimits) -> Exited:
        self._count += 1
        spawn = Spawn(job=JobId(str(self._count)), attempt=Attempt(1), script=script, secrets=secrets, limits=limits)
        waits = self._launcher.send([spawn])
        while True:
            select.select([self._launcher], [self._launcher] if waits else [], [])
            waits = self._launcher.flush()
            for event in self._launcher.receive():
                if isinstance(event, Output):
                    size = sum(len(data) for _, data in event.segments)
                    self._launcher.send([Ack(job=event.job, attempt=event.attempt, count=size)])
                elif isinstance(event, Exited):
                    return event


def start_ms(jobs: Jobs, secrets: dict[str, bytes], seconds: float) -> float:
    """Return the median time of a job that does nothing."""
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        if jobs.run("exit 0", secrets, JobLimits()).outcome.reason is not None:
            raise RuntimeError("a job failed")
        times.append(1_000 * (time.perf_counter() - began))
    return statistics.median(times)


def output_mib_per_s(jobs: Jobs, script: str, secrets: dict[str, bytes]) -> float:
    """Return how fast output is read."""
    script = f"({script}) | head -c {OUTPUT_MIB << 20}"
    outcome = jobs.run(script, secrets, JobLimits(output_bytes=1 << 20)).outcome
    return OUTPUT_MIB / outcome.wall_s


def measure(seconds: float, rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    launcher = Launcher.start(Configure(slots=1))
    try:
        jobs = Jobs(launcher)
        start_ms(jobs, {}, 0.3)
        for _ in range(rounds):
            for name, secrets in STARTS.items():
                found.setdefault(f"start_{name}_ms", []).append(start_ms(jobs, secrets, seconds / rounds))
            for name, (script, secrets) in OUTPUTS.items():
                found.setdefault(f"output_{name}_mib_per_s", []).append(output_mib_per_s(jobs, script, secrets))
    finally:
        launcher.close()
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each kind of start")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.seconds, options.rounds)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value:12,.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
