"""Backups beside etcd's snapshots, on equal data and one machine, in one run: full, proven, encrypted, incremental, and
made a node again; prints MB/s of keys and values, and ratios.

    python -m benchmarks.backup [--keys 200000] [--value-bytes 500]

Needs etcd (Debian: apt install etcd-server etcd-client). Both are one member; the other one is stopped meanwhile.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyrage import x25519

from benchmarks.report import show
from jobs import Client
from jobs.content import content_of
from jobs.protocol.model import KvOp, KvPut
from jobs.testing import EmbeddedNode, free_port

MIB = 1 << 20
TXN_OPS = 100
READY_S = 30.0
ETCD_ENV = {"ETCDCTL_API": "3", "PATH": os.environ["PATH"]}


def rows(options: argparse.Namespace, salt: int = 0, share: float = 1.0) -> Iterator[list[tuple[str, bytes]]]:
    """Keys and values, some at a time: the same for both. Values do not compress."""
    chance = random.Random(salt)
    batch: list[tuple[str, bytes]] = []
    for number in range(int(options.keys * share)):
        batch.append((f"/data/bench/{number:09d}", chance.randbytes(options.value_bytes)))
        if len(batch) == TXN_OPS:
            yield batch
            batch = []
    if batch:
        yield batch


def timed(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


# --- Jobs ------------------------------------------------------------------------------------------------------------


def fill(client: Client, options: argparse.Namespace, salt: int = 0, share: float = 1.0) -> None:
    for batch in rows(options, salt, share):
        client.kv.txn(then=[KvOp(put=KvPut(key=key, value=content_of(value))) for key, value in batch])


def measure_jobs(directory: Path, options: argparse.Namespace) -> dict[str, float]:
    place = directory / "place"
    place.mkdir()
    secret = x25519.Identity.generate()
    env = {"JOBS_WORKERS__REPLICATION__ALLOW_FILES": f'["{place}"]'}
    found: dict[str, float] = {}
    with EmbeddedNode(directory / "node", types=("replication",), env=env) as node, node.client() as client:
        fill(client, options)

        def backup(name: str, **options: object) -> float:
            return timed(lambda: client.replication.backup(directory=str(place / name), **options))  # type: ignore[arg-type]

        backup("warm", prove=False)
        found["full"] = min(backup(f"full-{turn}", prove=False) for turn in range(3))
        found["proven"] = backup("proven", prove=True)
        found["encrypted"] = backup("encrypted", prove=False, recipients=[str(secret.to_public())])
        found["full_bytes"] = (place / "full-0" / "000001-full" / "snapshot").stat().st_size
        fill(client, options, salt=1, share=0.01)
        found["incremental"] = backup("full-0", prove=False)
        found["incremental_bytes"] = (place / "full-0" / "000002-incremental" / "changes").stat().st_size
        found["prove"] = timed(lambda: client.replication.prove(directory=str(place / "full-0")))
    command = [sys.executable, "-m", "jobs.node", "--embedded", str(directory / "new"), "restore", "--yes"]
    command += ["--from", str(place / "full-1")]
    found["restore"] = timed(lambda: subprocess.run(command, check=True, capture_output=True))
    found["idle"] = timed(lambda: subprocess.run([*command[:5], "check-config"], capture_output=True))
    return found


# --- etcd ------------------------------------------------------------------------------------------------------------


@contextmanager
def etcd(directory: Path) -> Iterator[str]:
    client, peer = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command = [
        "etcd",
        "--data-dir",
        str(directory / "etcd"),
        "--log-level",
        "error",
        "--quota-backend-bytes",
        str(8 << 30),
    ]
    for option, address in (("client", client), ("peer", peer)):
        advertise = "advertise-client-urls" if option == "client" else "initial-advertise-peer-urls"
        command += [f"--listen-{option}-urls", f"http://{address}", f"--{advertise}", f"http://{address}"]
    command += ["--initial-cluster", f"default=http://{peer}"]
    with (directory / "etcd.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + READY_S
        health = ["etcdctl", "--endpoints", client, "endpoint", "health"]
        while subprocess.run(health, capture_output=True, env=ETCD_ENV).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError(f"etcd does not serve within {READY_S:g} s")
            time.sleep(0.1)
        yield client
    finally:
        process.terminate()
        process.wait()


def fill_etcd(address: str, options: argparse.Namespace) -> None:
    connection = http.client.HTTPConnection(address)
    for batch in rows(options):
        puts = [
            {"requestPut": {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value).decode()}}
            for key, value in batch
        ]
        connection.request("POST", "/v3/kv/txn", json.dumps({"success": puts}))
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"etcd: {body!r:.300}")
    connection.close()


def measure_etcd(directory: Path, options: argparse.Namespace) -> dict[str, float]:
    found: dict[str, float] = {}
    file = directory / "etcd.snapshot"
    with etcd(directory) as address:
        fill_etcd(address, options)
        save = ["etcdctl", "--endpoints", address, "snapshot", "save", str(file)]

        def once() -> float:
            file.unlink(missing_ok=True)
            return timed(lambda: subprocess.run(save, check=True, capture_output=True, env=ETCD_ENV))

        once()
        found["full"] = min(once() for _ in range(3))
        found["full_bytes"] = file.stat().st_size
    restore = ["etcdctl", "snapshot", "restore", str(file), "--data-dir", str(directory / "etcd-new")]
    found["restore"] = timed(lambda: subprocess.run(restore, check=True, capture_output=True, env=ETCD_ENV))
    return found


def main() -> None:
    parsing = argparse.ArgumentParser(description=__doc__)
    parsing.add_argument("--keys", type=int, default=200_000)
    parsing.add_argument("--value-bytes", type=int, default=500)
    parsing.add_argument("--directory", type=Path, help="where the data is put (default: among temporary files)")
    options = parsing.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="jobs-bench-backup-", dir=options.directory))
    try:
        theirs = measure_etcd(directory, options)
        ours = measure_jobs(directory, options)
    finally:
        shutil.rmtree(directory)
    mib = options.keys * (options.value_bytes + len("/data/bench/") + 9) / MIB

    def line(name: str, took_s: float, against: str) -> None:
        show(f"{name}, {mib:.0f} MiB", f"{mib / took_s:.0f} MiB/s", against)

    line("etcdctl snapshot save", theirs["full"], f"{theirs['full_bytes'] / MIB:.0f} MiB on the disk")
    ratio = theirs["full"] / ours["full"]
    line(
        "full backup, not proven",
        ours["full"],
        f"{ratio:.2f} of etcd's; {ours['full_bytes'] / MIB:.0f} MiB on the disk",
    )
    line(
        "full backup, proven", ours["proven"], f"{theirs['full'] / ours['proven']:.2f} of etcd's, which proves nothing"
    )
    line(
        "full backup, encrypted", ours["encrypted"], f"{theirs['full'] / ours['encrypted']:.2f} of etcd's, which cannot"
    )
    share = ours["incremental_bytes"] / ours["full_bytes"]
    show("incremental backup of 1 % changed", f"{ours['incremental']:.2f} s", f"{share:.1%} of a full one's bytes")
    line("etcdctl snapshot restore", theirs["restore"], "")
    restored_s = ours["restore"]
    line(
        "jobs-node restore",
        restored_s,
        f"{theirs['restore'] / restored_s:.2f} of etcd's; {ours['idle']:.1f} s is Python",
    )
    line("prove: a full one and an incremental one", ours["prove"], "restored, compared at both")


if __name__ == "__main__":
    main()
