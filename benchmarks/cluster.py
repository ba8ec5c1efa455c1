"""Three members of Jobs beside three members of etcd on this machine, in one run, under the same load; prints ratios.

    python -m benchmarks.cluster [--seconds 5] [--clients 1,16,64,256] [--kills 20] [--through all|leader]

Needs etcd (Debian: apt install etcd-server etcd-client) and cargo, which builds the load (benchmarks/loadgen): a
program whose clients keep one connection each and ask again when they are answered; its own cost an operation is
printed. Both systems sync every write to the same disk before they answer. They are measured by turns, the other one
idle meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from benchmarks.report import show
from jobs.client import Client, shell_job
from jobs.errors import JobsError
from jobs.testing import EmbeddedCluster, EmbeddedNode, free_port

SIZE: Final = 3
VALUE_BYTES: Final = 256
READY_S: Final = 60.0
ENOUGH: Final = 10
"""Accepted writes after which a cluster that lost its leader is taken to be whole again."""
PAUSE_S: Final = 0.005
NEARLY: Final = 100
"""Entries that a member may be behind and count as well, as writes go on."""
LOADGEN: Final = Path(__file__).parent / "loadgen"


class System(Protocol):
    """A cluster of three that can be loaded, and whose leader can be killed."""

    name: str

    def endpoints(self) -> list[str]: ...

    def leader_endpoint(self) -> str: ...

    def kill_leader(self) -> float:
        """Kill whoever leads, and return when, by the monotonic clock."""

    def mend(self) -> None:
        """Start what was killed, and return when all members are well."""


class Etcd:
    """Debian's etcd, as it is configured by default: every write is synced."""

    name = "etcd"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._clients = [f"127.0.0.1:{free_port()}" for _ in range(SIZE)]
        self._peers = [f"http://127.0.0.1:{free_port()}" for _ in range(SIZE)]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * SIZE

    def __enter__(self) -> Etcd:
        for number in range(SIZE):
            self._start(number)
        self._wait()
        return self

    def __exit__(self, *args: object) -> None:
        for process in self._processes:
            if process is not None:
                process.kill()
                process.wait()

    def endpoints(self) -> list[str]:
        return list(self._clients)

    def leader_endpoint(self) -> str:
        return self._clients[self._leader()]

    def kill_leader(self) -> float:
        number = self._leader()
        process = self._processes[number]
        assert process is not None
        killed_s = time.monotonic()
        process.kill()
        process.wait()
        self._processes[number] = None
        return killed_s

    def mend(self) -> None:
        for number, process in enumerate(self._processes):
            if process is None:
                self._start(number)
        self._wait()

    def _start(self, number: int) -> None:
        members = ",".join(f"m{other}={peer}" for other, peer in enumerate(self._peers))
        command = ["etcd", "--name", f"m{number}", "--data-dir", str(self._directory / f"m{number}")]
        command += ["--initial-cluster", members, "--initial-cluster-state", "new", "--logger", "zap"]
        command += ["--log-level", "error"]
        for option, value in (("client", f"http://{self._clients[number]}"), ("peer", self._peers[number])):
            advertise = "advertise-client-urls" if option == "client" else "initial-advertise-peer-urls"
            command += [f"--listen-{option}-urls", value, f"--{advertise}", value]
        with (self._directory / f"m{number}.log").open("ab") as log:
            self._processes[number] = subprocess.Popen(command, stdout=log, stderr=log)

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_S
        while len([one for one in self._status() if one["Status"]["leader"]]) < SIZE:
            if time.monotonic() > deadline:
                raise RuntimeError(f"etcd is not whole within {READY_S:g} s; its logs are in {self._directory}")
            time.sleep(0.05)

    def _leader(self) -> int:
        for one in self._status():
            if one["Status"]["header"]["member_id"] == one["Status"]["leader"]:
                return self._clients.index(one["Endpoint"])
        raise RuntimeError("no member of etcd leads")

    def _status(self) -> list[dict[str, Any]]:
        command = ["etcdctl", "--endpoints", ",".join(self._clients), "endpoint", "status", "-w", "json"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"}
        )
        found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
        return found


class Jobs:
    """Three embedded nodes with their workers, as configured by default."""

    name = "jobs"

    def __init__(self, directory: Path) -> None:
        self._cluster = EmbeddedCluster(directory, SIZE)
        self._killed: EmbeddedNode | None = None

    def __enter__(self) -> Jobs:
        self._cluster.start()
        return self

    def __exit__(self, *args: object) -> None:
        for node in list(self._cluster.running()):
            node.kill()

    def endpoints(self) -> list[str]:
        return [str(node.socket) for node in self._cluster.nodes.values()]

    def leader_endpoint(self) -> str:
        return str(self._cluster.leader().socket)

    def kill_leader(self) -> float:
        self._killed = leader = self._cluster.leader()
        killed_s = time.monotonic()
        leader.kill()
        return killed_s

    def mend(self) -> None:
        assert self._killed is not None
        self._killed.start(wait=False)
        deadline = time.monotonic() + READY_S
        while not self._is_whole():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the cluster is not whole within {READY_S:g} s:\n{self._killed.log_tail()}")
            time.sleep(0.05)

    def _is_whole(self) -> bool:
        with self._cluster.leader().client() as client:
            members = client.cluster.view().members
        return all(one.connected is not False and (one.lag_entries or 0) < NEARLY for one in members)

    def dispatch(self) -> None:
        """Submit a job through a member that runs, as soon as it is taken, and return when it has ended."""
        deadline = time.monotonic() + READY_S
        with Client(str(next(iter(self._cluster.running())).socket), patience_s=0) as client:
            while True:
                try:
                    client.wait(client.submit(shell_job(["true"])).job.id, READY_S)
                    return
                except JobsError:
                    if time.monotonic() > deadline:
                        raise
                time.sleep(PAUSE_S)


class Figures(msgspec.Struct, frozen=True):
    """What the load prints."""

    per_s: float
    p50_ms: float
    p99_ms: float
    failed_clients: int
    own_us: float


def build() -> Path:
    """Build the load and return it."""
    target = LOADGEN.parents[1] / "rust" / "target" / "loadgen"
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--target-dir", str(target)]
    subprocess.run(command, cwd=LOADGEN, check=True)
    return target / "release" / "loadgen"


class Measure:
    """The figures of both systems, side by side."""

    def __init__(self, loadgen: Path, etcd: Etcd, jobs: Jobs, options: argparse.Namespace) -> None:
        self._loadgen = loadgen
        self._etcd = etcd
        self._jobs = jobs
        self._options = options

    def load(self, operation: str, clients: int) -> None:
        """Print rate and latencies of one operation at a number of clients."""
        ours, theirs = (self._load(system, operation, clients) for system in (self._jobs, self._etcd))
        what = {"put": "writes", "get": "linearizable reads"}[operation]
        title = f"{what}, {VALUE_BYTES} B, {clients} clients"
        show(title, f"{ours.per_s:.0f}/s", f"{ours.per_s / theirs.per_s:.2f} × etcd ({theirs.per_s:.0f}/s)")
        for name in ("p50_ms", "p99_ms"):
            mine, other = getattr(ours, name), getattr(theirs, name)
            show(f"— {name[:3]}", f"{mine:.2f} ms", f"{mine / other:.2f} × etcd ({other:.2f} ms)")
        show("— the load's own cost an operation", f"{ours.own_us:.0f} µs", f"for etcd {theirs.own_us:.0f} µs")

    def _load(self, system: System, operation: str, clients: int) -> Figures:
        through = [system.leader_endpoint()] if self._options.through == "leader" else system.endpoints()
        command = [system.name, ",".join(through), operation, str(clients), str(self._options.seconds)]
        done = subprocess.run([self._loadgen, *command, str(VALUE_BYTES)], check=True, capture_output=True)
        figures = msgspec.json.decode(done.stdout, type=Figures)
        if figures.failed_clients:
            raise RuntimeError(f"{figures.failed_clients} clients of {system.name} failed: {done.stderr.decode()}")
        return figures

    def failover(self) -> None:
        """Print how long nobody's write was accepted after the leader was killed."""
        dispatched: list[float] = []
        found: dict[str, list[float]] = {}
        for system in (self._etcd, self._jobs):
            gaps = found[system.name] = []
            with self._probe(system) as accepted:
                for _ in range(self._options.kills):
                    killed_s = system.kill_leader()
                    if isinstance(system, Jobs):
                        system.dispatch()
                        dispatched.append(time.monotonic() - killed_s)
                    gaps.append(first_after(accepted, killed_s) - killed_s)
                    system.mend()
                    writes_flow(accepted, time.monotonic())
        mine, other = found["jobs"], found["etcd"]
        for name, at in (("p50", 50), ("p99", 99)):
            ours_s, theirs_s = percentile(mine, at), percentile(other, at)
            against = f"{ours_s / theirs_s:.2f} × etcd ({theirs_s:.2f} s), {len(mine)} kills each"
            show(f"SIGKILL of the leader → next accepted write, {name}", f"{ours_s:.2f} s", against)
        for name, at in (("p50", 50), ("p99", 99)):
            show(f"SIGKILL of the leader → next job has run, {name}", f"{percentile(dispatched, at):.2f} s")

    @contextlib.contextmanager
    def _probe(self, system: System) -> Iterator[queue.SimpleQueue[tuple[float, float]]]:
        """Write with one client for as long as the context lasts; queue when each accepted write began and ended."""
        accepted: queue.SimpleQueue[tuple[float, float]] = queue.SimpleQueue()
        command = [str(self._loadgen), system.name, ",".join(system.endpoints()), "probe", "-", "86400"]
        with subprocess.Popen([*command, str(VALUE_BYTES)], stdout=subprocess.PIPE, text=True) as process:

            def read() -> None:
                assert process.stdout is not None
                for line in process.stdout:
                    began, ended = line.split()
                    accepted.put((int(began) / 1e9, int(ended) / 1e9))

            reader = threading.Thread(target=read)
            reader.start()
            try:
                yield accepted
            finally:
                process.send_signal(signal.SIGKILL)
                reader.join()


def first_after(accepted: queue.SimpleQueue[tuple[float, float]], since_s: float) -> float:
    """Return when the first write that began later was accepted."""
    while True:
        began_s, ended_s = accepted.get(timeout=READY_S)
        if began_s >= since_s:
            return ended_s


def writes_flow(accepted: queue.SimpleQueue[tuple[float, float]], since_s: float) -> None:
    for _ in range(ENOUGH):
        first_after(accepted, since_s)


def percentile(values: Sequence[float], at: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[at - 1] if len(values) > 1 else values[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="per figure")
    parser.add_argument("--clients", default="1,16,64,256")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--through", choices=("all", "leader"), default="all", help="which members the clients ask")
    options = parser.parse_args()
    for tool in ("etcd", "etcdctl", "cargo"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is needed; on Debian: apt install etcd-server etcd-client cargo")
    loadgen = build()
    with tempfile.TemporaryDirectory(prefix="jobs-bench-") as directory:
        place = Path(directory)
        (place / "etcd").mkdir()
        with Etcd(place / "etcd") as etcd, Jobs(place / "jobs") as jobs:
            measure = Measure(loadgen, etcd, jobs, options)
            for operation in ("put", "get"):
                for clients in options.clients.split(","):
                    measure.load(operation, int(clients))
            if options.kills:
                measure.failover()


if __name__ == "__main__":
    main()
