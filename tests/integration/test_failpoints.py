"""Real nodes are killed, and their disks fail, at each failpoint under the load of clients: what was acknowledged is
there afterwards, nothing is there twice, and the node serves again.

Every day a few points; with JOBS_TEST_SCALE above 1 all of them.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import pytest

from jobs import Client, JobState, Reason, Retry, shell_job
from jobs._native import failpoints
from jobs.errors import JobsError
from jobs.testing import EmbeddedCluster, EmbeddedNode, NodeFailed
from tests.support import waiting

ALL: Final = int(os.environ.get("JOBS_TEST_SCALE", "1")) > 1
PATIENCE_S: Final = 60.0
until = partial(waiting.until, timeout_s=PATIENCE_S)
SMALL_LOG: Final = {"JOBS_LOG__SEGMENT_BYTES": "1MiB", "JOBS_LOG__SNAPSHOT_LOG_BYTES": "1MiB"}
VALUE: Final = "x" * (32 << 10)
"""So large that a segment and a snapshot take some forty of them."""
AGAIN: Final = Retry(max_attempts=5, delay_s=0)
EVERY_DAY: Final = {
    ("alone", "log.sync.after", "kill@30"),
    ("alone", "store.apply.commit.before", "kill@30"),
    ("alone", "log.sync.before", "error:EIO@30"),
    ("starting", "log.repair.sync.before", "kill"),
    ("founding", "cluster.file.rename.before", "kill"),
    ("founding", "cluster.file.write.before", "error:ENOSPC"),
    ("leading", "consensus.results.before", "kill@20"),
    ("catching up", "store.install.rename.after", "kill"),
}

# What happens where: kills at a pass of the point, and errors where something can fail.
TRIALS: Final[dict[str, dict[str, list[str]]]] = {
    # A node that is no cluster's, while clients write.
    "alone": {
        "log.write.before": ["kill@30", "error:EIO@30", "error:ENOSPC@30"],
        "log.sync.before": ["kill@30", "error:EIO@30"],
        "log.sync.after": ["kill@30", "error:EIO@30"],
        "log.directory.sync.before": ["kill", "error:EIO"],
        "log.directory.sync.after": ["kill", "error:EIO"],
        "log.segment.create.before": ["kill", "error:EIO", "error:ENOSPC"],
        "log.segment.sync.before": ["kill", "error:EIO", "error:ENOSPC"],
        "log.segment.rename.before": ["kill", "error:EIO"],
        "log.segment.rename.after": ["kill", "error:EIO"],
        "log.segment.remove.before": ["kill", "error:EIO"],
        "log.segment.remove.after": ["kill", "error:EIO"],
        "store.apply.before": ["kill@30", "error:EIO@30", "error:ENOSPC@30"],
        "store.apply.commit.before": ["kill@30", "error:EIO@30", "error:ENOSPC@30"],
        "store.apply.commit.after": ["kill@30", "delay:200ms@30"],
        "store.replace.sync.before": ["kill@2", "error:EIO@2", "error:ENOSPC@2"],
        "store.replace.rename.before": ["kill@2", "error:EIO@2"],
        "store.replace.rename.after": ["kill@2", "error:EIO@2"],
        "store.directory.sync.before": ["kill@2", "error:EIO@2"],
        "store.directory.sync.after": ["kill@2", "error:EIO@2"],
        "store.snapshot.before": ["kill", "error:EIO"],
        "store.snapshot.remove.before": ["kill", "error:EIO"],
        "consensus.propose.before": ["kill@20"],
        "consensus.sync.before": ["kill@20"],
        "consensus.sync.after": ["kill@20"],
        "consensus.apply.before": ["kill@20"],
        "consensus.apply.after": ["kill@20"],
        "consensus.results.before": ["kill@20"],
        "consensus.cut.before": ["kill"],
        "consensus.cut.after": ["kill"],
    },
    # One that starts on what a kill has left.
    "starting": {
        "log.repair.before": ["kill", "error:EIO"],
        "log.repair.sync.before": ["kill", "error:EIO"],
        "store.replace.sync.before": ["kill", "error:ENOSPC"],
        "store.replace.rename.before": ["kill", "error:EIO"],
        "store.replace.rename.after": ["kill", "error:EIO"],
        "store.directory.sync.before": ["kill", "error:EIO"],
        "store.directory.sync.after": ["kill", "error:EIO"],
        "consensus.term.persist.before": ["kill"],
        "consensus.term.persist.after": ["kill"],
    },
    # One whose operating system went down with the store open.
    "after a power cut": {
        "store.restore.sync.before": ["kill", "error:EIO"],
        "store.restore.rename.before": ["kill", "error:EIO"],
        "store.restore.rename.after": ["kill", "error:EIO"],
    },
    "stopping": {
        "store.close.sync.before": ["kill", "error:EIO"],
        "store.close.sync.after": ["kill"],
    },
    # One that founds a cluster.
    "founding": {
        "net.key.sync.before": ["kill", "error:EIO"],
        "net.key.link.before": ["kill", "error:EIO"],
        "net.key.link.after": ["kill"],
        "net.key.directory.sync.before": ["kill", "error:EIO"],
        "cluster.file.write.before": ["kill", "error:ENOSPC"],
        "cluster.file.sync.before": ["kill", "error:EIO"],
        "cluster.file.rename.before": ["kill", "error:EIO"],
        "cluster.file.rename.after": ["kill"],
        "cluster.file.directory.sync.after": ["kill"],
    },
    # One of three that follows, or leads, while clients of all three write.
    "following": {
        "net.message.send.before": ["kill@20"],
        "net.message.send.after": ["kill@20"],
        "net.message.receive.after": ["kill@20"],
        "net.request.send.before": ["kill@5"],
        "net.request.send.after": ["kill@5"],
        "consensus.receive.before": ["kill@20"],
        "consensus.appended.send.before": ["kill@20"],
        "consensus.appended.send.after": ["kill@20"],
        "store.apply.commit.after": ["kill@20"],
    },
    "leading": {
        "net.request.receive.after": ["kill@5"],
        "net.answer.send.before": ["kill@5"],
        "net.answer.send.after": ["kill@5"],
        "consensus.append.send.before": ["kill@20"],
        "consensus.append.send.after": ["kill@20"],
        "log.sync.after": ["kill@20", "error:EIO@20"],
        "store.apply.commit.after": ["kill@20"],
        "consensus.results.before": ["kill@20"],
    },
    # One that is asked for its vote by another; that stands for election; that hands over.
    "voting": {
        "consensus.voted.send.before": ["kill"],
        "consensus.voted.send.after": ["kill"],
    },
    "standing": {
        "consensus.vote.send.before": ["kill"],
        "consensus.vote.send.after": ["kill"],
    },
    "handing over": {
        "consensus.timeoutnow.send.before": ["kill"],
        "consensus.timeoutnow.send.after": ["kill"],
    },
    # One that lacks what is cut from the others' logs, and one that helps it.
    "catching up": {
        "transfer.chunk.receive.before": ["kill@2", "error:EIO@2"],
        "transfer.chunk.receive.after": ["kill@2", "error:ENOSPC@2"],
        "transfer.sync.before": ["kill", "error:EIO"],
        "transfer.rename.before": ["kill", "error:EIO"],
        "transfer.rename.after": ["kill"],
        "transfer.directory.sync.after": ["kill"],
        "transfer.kept.send.before": ["kill"],
        "consensus.install.before": ["kill"],
        "consensus.install.after": ["kill"],
        "consensus.restart.before": ["kill"],
        "consensus.restart.dropped": ["kill"],
        "consensus.restart.empty": ["kill"],
        "consensus.restart.after": ["kill"],
        "store.install.before": ["kill", "error:ENOSPC"],
        "store.install.sync.before": ["kill", "error:EIO"],
        "store.install.rename.before": ["kill", "error:EIO"],
        "store.install.rename.after": ["kill"],
        "store.install.commit.before": ["kill", "error:EIO"],
        "store.install.commit.after": ["kill"],
    },
    "going on with a snapshot": {
        "store.install.finish.before": ["kill", "error:EIO"],
    },
    "helping": {
        "transfer.offer.before": ["kill"],
        "transfer.chunk.send.before": ["kill@2", "error:EIO@2"],
        "consensus.snapshot.send.before": ["kill"],
        "consensus.snapshot.send.after": ["kill"],
    },
}
ELSEWHERE: Final = {
    "blobs.": "tried on a store of blobs alone, by tests/blobs/test_faults.py",
    "store.compact.": "tried on a store alone, by tests/integration/test_compaction.py",
}
NOT_REACHED: Final[dict[str, str]] = {
    name: reason for name, _ in failpoints() for prefix, reason in ELSEWHERE.items() if name.startswith(prefix)
}
"""Points that no trial reaches, with the reason."""
IN_CLUSTER: Final = (
    "following",
    "leading",
    "voting",
    "standing",
    "handing over",
    "catching up",
    "going on with a snapshot",
    "helping",
)


def trials(*scenes: str) -> list[object]:
    """Return the trials of these scenes that are to be run: kills first, then errors."""
    chosen = [
        (scene, point, action)
        for scene in scenes
        for point, actions in TRIALS[scene].items()
        for action in actions
        if ALL or (scene, point, action) in EVERY_DAY
    ]
    chosen.sort(key=lambda trial: not trial[2].startswith("kill"))
    return [pytest.param(*trial, id="-".join(trial).replace(" ", "_")) for trial in chosen]


class Load(threading.Thread):
    """A client that sets each key once, and now and then submits a job, until it is told to stop or, without patience,
    fails; keeps what was acknowledged."""

    lanes = count()

    def __init__(self, node: EmbeddedNode, patience_s: float = 0) -> None:
        super().__init__(daemon=True)
        self._client = Client(str(node.socket), patience_s=patience_s)
        self._lane = next(self.lanes)
        self._over = threading.Event()
        self.keys: list[str] = []
        self.jobs: list[str] = []
        self.failure: JobsError | None = None
        self.start()

    def run(self) -> None:
        try:
            for number in count():
                if self._over.is_set():
                    return
                key = f"/data/{self._lane}/{number}"
                self._client.kv.put(key, VALUE)
                self.keys.append(key)
                if number % 20 == 10:
                    self.jobs.append(self._client.submit(shell_job(["true"], labels={"of": key}, retry=AGAIN)).job.id)
        except JobsError as error:
            self.failure = error

    def stop(self) -> None:
        self._over.set()
        self.join(2 * PATIENCE_S)
        assert not self.is_alive()


class Kept:
    """What was acknowledged so far."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._jobs: set[str] = set()

    def add(self, *loads: Load) -> None:
        for load in loads:
            load.stop()
            self._keys.update(load.keys)
            self._jobs.update(load.jobs)

    def check(self, client: Client) -> None:
        """All of it is there, once; then it is deleted, so that the next trial begins with little."""
        found = {kv.key: kv.version for kv in client.kv.scan("/data/", keys_only=True)}
        assert self._keys - found.keys() == set()
        assert {key: version for key, version in found.items() if version != 1} == {}
        for job in self._jobs:
            ended = client.wait(job, PATIENCE_S)
            assert ended.state is JobState.COMPLETED or ended.reason is Reason.WORKER_LOST
        per_key = Counter(job.labels["of"] for job in client.list() if "of" in job.labels)
        assert {key: jobs for key, jobs in per_key.items() if jobs > 1} == {}
        client.kv.delete("/data/", prefix=True)
        self._keys.clear()
        self._jobs.clear()


class Fault:
    """One point armed with one action, and the report of what came of it."""

    def __init__(self, report: Path, point: str, action: str) -> None:
        self.point = point
        self.kills = action.startswith("kill")
        self.report = report
        self.env = {"JOBS_FAILPOINTS": f"report={report};{point}={action}"}

    @property
    def has_fired(self) -> bool:
        return self.report.exists() and f"fired {self.point}\n" in self.report.read_text()

    def wait(self, node: EmbeddedNode) -> None:
        """Return when it has happened: a kill has ended the node; after an error it has ended, or serves."""
        until(lambda: self.has_fired, otherwise=f"{self.point} is not reached")
        if self.kills:
            assert node.wait_for_end() == -signal.SIGKILL
        elif node.is_running:
            until(
                lambda: has_ended_or_accepts(node),
                otherwise="after an error the node neither ends nor accepts anything",
            )


def has_ended_or_accepts(node: EmbeddedNode) -> bool:
    try:
        assert node.wait_for_end(0.1) == 1
    except NodeFailed:
        try:
            with Client(str(node.socket), patience_s=0) as client:
                client.kv.put("/data/after", "x")
                client.kv.delete("/data/after")
        except JobsError:
            return False
    return True


def start_into(fault: Fault, node: EmbeddedNode) -> None:
    """Start a node that may end before it answers."""
    try:
        node.start(wait=False, env=fault.env)
    except NodeFailed:
        if not fault.has_fired:
            raise


def kill(node: EmbeddedNode) -> None:
    if node.is_running:
        node.kill()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture
def fault(reports: Path, point: str, action: str, request: pytest.FixtureRequest) -> Fault:
    return Fault(reports / re.sub(r"\W+", "-", request.node.name), point, action)


# --- a node alone ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedNode, Kept]]:
    node = EmbeddedNode(tmp_path_factory.mktemp("lone") / "node", env=SMALL_LOG)
    yield node, Kept()
    kill(node)


@pytest.mark.parametrize(("scene", "point", "action"), trials("alone", "starting", "after a power cut", "stopping"))
def test_a_node_alone(lone: tuple[EmbeddedNode, Kept], scene: str, fault: Fault) -> None:
    node, kept = lone
    kill(node)
    # Given a node with acknowledged writes that was killed
    if scene != "alone":
        node.start()
        loads = [Load(node) for _ in range(2)]
        until(
            lambda: any(node.directory.rglob("snapshot-*.snap")) and all(load.keys for load in loads),
            otherwise="no snapshot",
        )
        if scene != "stopping":
            node.kill()
        kept.add(*loads)
    if scene == "after a power cut":
        (marker,) = node.directory.rglob("OPEN")
        marker.write_text("1 another-boot open\n")
    # When it comes to the point
    if scene == "stopping":
        node.stop()
        node.start(env=fault.env)
        assert node.stop() in ((-signal.SIGKILL,) if fault.kills else (0, 1))
        assert fault.has_fired
    elif scene == "alone":
        node.start(env=fault.env)
        loads = [Load(node) for _ in range(3)]
        fault.wait(node)
        kill(node)
        kept.add(*loads)
    else:
        start_into(fault, node)
        if node.is_running:
            fault.wait(node)
        kill(node)
    # Then it serves again with all that it had acknowledged
    node.start()
    with node.client() as client:
        kept.check(client)


@pytest.mark.parametrize(("scene", "point", "action"), trials("founding"))
def test_a_node_that_founds_a_cluster(tmp_path: Path, scene: str, fault: Fault) -> None:
    node = EmbeddedCluster(tmp_path, 1, env=SMALL_LOG).nodes["n1"]
    try:
        # When a node fails while it founds a cluster
        start_into(fault, node)
        with Client(str(node.socket), patience_s=0) as client, pytest.raises(JobsError):
            client.cluster.init()
        assert fault.has_fired
        if fault.kills:
            assert node.wait_for_end() == -signal.SIGKILL
            node.start(wait=False)
        # Then it has founded one, or can, and none but one
        with node.client() as client:
            if client.cluster.view().state == "unformed":
                client.cluster.init()
            node.wait_until_it_serves()
            client.kv.put("/data/k", "v")
            former = client.cluster.view()
        node.kill()
        node.start()
        with node.client() as client:
            view = client.cluster.view()
            assert (view.id, view.cluster) == (former.id, former.cluster)
            assert client.kv.get("/data/k") is not None
    finally:
        kill(node)


# --- one of three ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedCluster, Kept]]:
    with EmbeddedCluster(tmp_path_factory.mktemp("three"), env=SMALL_LOG) as cluster:
        yield cluster, Kept()


@pytest.fixture
def whole(three: tuple[EmbeddedCluster, Kept]) -> EmbeddedCluster:
    """The cluster with all of its nodes serving, whatever the trial before has left."""
    cluster, _ = three
    for node in cluster.nodes.values():
        if node.is_running and not node.is_alive:
            node.kill()
        if not node.is_running:
            node.start(wait=False)
    for node in cluster.nodes.values():
        node.wait_until_it_serves()
    return cluster


def let_lead(node: EmbeddedNode, name: str, fault: Fault | None = None) -> None:
    """Let a node lead, however often that has to be asked for, or until it comes to its point."""

    def leads() -> bool:
        if fault is not None and fault.has_fired:
            return True
        try:
            with Client(str(node.socket), patience_s=0) as client:
                health = client.health()
                if health.leader and health.status == "ok":
                    return True
                client.cluster.transfer(name)
        except JobsError:
            pass
        return False

    until(leads, otherwise=f"{name} does not lead")


def write_until_snapshots(nodes: list[EmbeddedNode], kept: Kept) -> None:
    """Write until the logs are cut behind new snapshots."""

    def snapshots() -> list[set[Path]]:
        return [set(node.directory.rglob("snapshot-*.snap")) for node in nodes]

    before = snapshots()
    loads = [Load(node, PATIENCE_S) for node in nodes]
    until(
        lambda: all(now and not now & old for now, old in zip(snapshots(), before, strict=True)),
        otherwise="no snapshot is taken",
    )
    kept.add(*loads)
    assert [load.failure for load in loads] == [None for _ in loads]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("scene", "point", "action"), trials(*IN_CLUSTER))
def test_one_of_three(whole: EmbeddedCluster, three: tuple[EmbeddedCluster, Kept], scene: str, fault: Fault) -> None:
    cluster, (_, kept) = whole, three
    victim, other, third = cluster.nodes.values()
    let_lead(other, "n2")
    victim.kill()
    patient: list[Load] = []
    impatient: list[Load] = []
    # Given a cluster, one node of which has the point armed, when it comes to the point
    if scene in ("catching up", "going on with a snapshot"):
        lag_and_come_back(cluster, kept, fault, twice=scene == "going on with a snapshot")
    else:
        start_into(fault, victim)
        if scene in ("following", "leading"):
            patient = [Load(node, PATIENCE_S) for node in (other, third)]
            impatient = [Load(victim)]
        act(cluster, kept, scene, fault)
    if victim.is_running:
        fault.wait(victim)
    # Then the clients of the others notice nothing,
    kept.add(*patient, *impatient)
    assert [load.failure for load in patient] == [None for _ in patient]
    # and once it is back, everything acknowledged is there and nothing twice, by way of it as well
    kill(victim)
    victim.start(wait=False)
    for node in cluster.nodes.values():
        node.wait_until_it_serves()
    with victim.client() as client:
        kept.check(client)


def act(cluster: EmbeddedCluster, kept: Kept, scene: str, fault: Fault) -> None:
    """Bring the first node to its point."""
    victim, other, third = cluster.nodes.values()
    match scene:
        case "leading" | "standing":
            let_lead(victim, "n1", fault)
        case "voting":
            let_lead(third, "n3")
        case "handing over":
            let_lead(victim, "n1")
            let_lead(other, "n2")
        case "helping":
            # Perhaps the third still lacks something since the trial before: then it comes to the point at once.
            let_lead(victim, "n1", fault)
            if fault.has_fired:
                return
            third.kill()
            for _ in range(2):
                write_until_snapshots([victim, other], kept)
            third.start(wait=False)


def lag_and_come_back(cluster: EmbeddedCluster, kept: Kept, fault: Fault, *, twice: bool) -> None:
    """Cut the others' logs while the first node is away; `twice`: it was killed before, too, taking in a snapshot."""
    victim, *others = cluster.nodes.values()
    for _ in range(2):
        write_until_snapshots(others, kept)
    if twice:
        before = Fault(fault.report.with_suffix(".before"), "store.install.rename.after", "kill")
        start_into(before, victim)
        before.wait(victim)
    start_into(fault, victim)


# --- which there are --------------------------------------------------------------------------------------------------


def test_each_failpoint_is_in_one_place_of_the_source_and_in_a_trial() -> None:
    root = Path(__file__).parents[2]
    listed = dict(
        re.findall(r'^    (\w+) = "([a-z.]+)" \w+,$', (root / "rust/failpoint/src/points.rs").read_text(), re.M)
    )
    assert sorted(listed.values()) == sorted(name for name, _ in failpoints())
    rust = "".join(file.read_text() for file in (root / "rust").glob("*/src/**/*.rs") if file.parts[-3] != "failpoint")
    python = "".join(file.read_text() for file in (root / "python/jobs").rglob("*.py"))
    for point, name in listed.items():
        places = (
            python.count(f'"{name}"') if point.startswith("Python") else len(re.findall(rf"Point::{point}\b", rust))
        )
        assert places == 1, f"{name} is in {places} places"
    assert set(re.findall(r'failpoint\("([^"]+)"\)', python)) <= set(listed.values())
    tried = {point for points in TRIALS.values() for point in points}
    assert tried | NOT_REACHED.keys() == set(listed.values())
    assert tried & NOT_REACHED.keys() == set()
    fails = {name for name, can_fail in failpoints() if can_fail}
    with_error = {
        point
        for points in TRIALS.values()
        for point, actions in points.items()
        if any("error" in one for one in actions)
    }
    assert with_error == fails - NOT_REACHED.keys()


def test_nothing_is_armed_without_the_variable_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    node = EmbeddedNode(tmp_path / "node")
    with pytest.raises(NodeFailed, match=r"ended with 78[\s\S]*no failpoint is named nowhere"):
        node.start(env={"JOBS_FAILPOINTS": "nowhere=kill"})
    pid = node.start(wait=False, env={"JOBS_FAILPOINTS": "log.sync.after=kill@1000000"}).pid
    with node:
        assert node.pid == pid, "a node that runs is not started once more"
        assert "failpoints are armed" in node.log_file.read_text()
    node.log_file.unlink()
    with node.start(wait=False):
        assert "failpoints are armed" not in node.log_file.read_text()


def test_the_failpoints_of_the_trials_were_reached(
    reports: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last test: it tells what the trials of this run came to."""
    text = "".join(file.read_text() for file in reports.iterdir())
    fired = set(re.findall(r"^fired (\S+)$", text, re.M))
    names = {name for name, _ in failpoints()}
    trials = (item for item in request.session.items if item.path == request.path and hasattr(item, "callspec"))
    chosen = {trial.callspec.params.get("point") for trial in trials}
    with capsys.disabled():
        print(f"\nfailpoints reached: {len(fired)} of {len(names)}")
        for name in sorted(names - fired if ALL else NOT_REACHED):
            print(f"  not reached: {name}: {NOT_REACHED.get(name, 'no trial of this run came to it')}")
        if not ALL:
            print("  the others: with JOBS_TEST_SCALE above 1, as in make test-faults")
    assert chosen & names <= fired <= names
