"""The command `jobs-node`: a member of the cluster with its API; with `--embedded DIR` a whole one in a directory."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import pwd
import signal
import sys
import time
from pathlib import Path
from typing import Final, Protocol

import uvloop
from prometheus_client import CollectorRegistry

from jobs import logs
from jobs._native import Log, NativeError, Store, __version__, arm_failpoints
from jobs.api import ApiConfig, ApiServer
from jobs.api.identity import Identities
from jobs.api.scrape import ScrapeServer
from jobs.backups.source import BackupSource
from jobs.blobs import BlobStore
from jobs.blobs.host import BlobHost
from jobs.blobs.output import HostedOutput
from jobs.blobs.part import BlobPart
from jobs.cluster import Cluster, ClusterConfig, ClusterFileError
from jobs.cluster.peers import MAX_FOREIGN
from jobs.config import ConfigError, NodeConfig, check_config, load_config
from jobs.consensus import Consensus, ConsensusConfig, ConsensusError
from jobs.control import ControlConfig, Site
from jobs.control.blobs import BlobConfig
from jobs.control.measures import JobMeasures
from jobs.control.replication import ReplicationConfig
from jobs.control.retention import RetentionConfig
from jobs.control.secrets import SecretsConfig
from jobs.control.tracing import Sink
from jobs.coredumps import forbid_core_dumps
from jobs.embedded import Children
from jobs.errors import MembershipConflict, Unavailable
from jobs.forward.passage import Passage
from jobs.maintenance.compact import Kept
from jobs.maintenance.health import HealthLimits
from jobs.maintenance.operations import MaintenanceConfig
from jobs.maintenance.part import MaintenancePart
from jobs.notify import VARIABLES, Notifier
from jobs.protocol.ids import Revision
from jobs.protocol.model import Health
from jobs.recover import recover
from jobs.replication.answers import Answers
from jobs.replication.part import ReplicationPart
from jobs.restore import Wanted, moment_of, restore, unfinished
from jobs.retention import Limits
from jobs.secrets.exchange import KeyExchange
from jobs.secrets.keyring import KeyFileError, keyring_of
from jobs.secrets.keys import Keys
from jobs.secrets.part import SecretsPart
from jobs.service import BlobOperations, LabelledMetrics, MaintenanceOperations, ReplicationOperations
from jobs.sockets import SocketError, members_of
from jobs.tracing.exporter import Exporter, ExporterConfig, TracingError, read_headers, traces_url
from jobs.workerdoor import WorkerDoor

logger = logging.getLogger("jobs.node")

CANNOT_START: Final = (
    NativeError,
    ConsensusError,
    ClusterFileError,
    MembershipConflict,
    SocketError,
    KeyFileError,
    TracingError,
    OSError,
)
EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 78
"""EX_CONFIG of sysexits.h: starting again will not help."""
STOP_GRACE_S: Final = 5.0
_UNFORMED: Final = "this node belongs to no cluster yet"
_FORM: Final = "jobctl cluster init, or jobctl cluster join TICKET"
STATUS_PERIOD_S: Final = 5.0


class Node:
    """Log, store, consensus, what follows from it, and the two sockets of one process."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._log: Log | None = None
        self._store: Store | None = None
        self._api: ApiServer | None = None
        self.consensus: Consensus | None = None
        self.site: Site | None = None
        self._door: WorkerDoor | None = None
        self._forming: asyncio.Task[None] | None = None
        self._began_s = time.monotonic()
        self.cluster = Cluster(cluster_config(config))
        self._passage: Passage | None = None
        self.blobs: BlobStore | None = None
        self.blob_part: BlobPart | None = None
        """There once the node is alone or in a cluster."""
        self.replication_part: ReplicationPart | None = None
        self._maintenance: MaintenancePart | None = None
        self._output = HostedOutput()
        self._keyring = keyring_of(config.secrets.key_file, config.node.data_dir)
        self._secrets: SecretsPart | None = None
        self._scrape: ScrapeServer | None = None
        self._exporter: Exporter | None = None
        self.failed = asyncio.Event()

    async def start(self) -> None:
        """Open what is on disk, take up the work, then serve.

        Raises NativeError for files that cannot be used, ConsensusError for a log that does not fit its store, and
        SocketError for a socket that cannot be had, and KeyFileError for a file with keys that cannot be used.
        """
        config = self._config
        config.node.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        config.node.run_dir.mkdir(parents=True, exist_ok=True)
        self._log = log = Log(str(config.log_dir), segment_bytes=config.log.segment_bytes)
        self._store = store = Store(str(config.store_dir), max_bytes=2 * config.store.max_bytes)
        for part in (log, store):
            if part.recovered:
                logger.warning("recovered: %s", part.recovered)
        self._exporter = exporter_of(config)
        if self._exporter is not None:
            self._exporter.start()
        self.blobs = await BlobStore.open(config.blobs_dir, min_free_bytes=config.blobs.min_free_bytes)
        self.cluster.is_empty = lambda: store.revision == 0
        self._keyring.load()
        self.cluster.open()
        self._api = ApiServer(self, api_config(config))
        if config.metrics.listen is not None:
            self._scrape = ScrapeServer(self._api.metrics.exposition)
            await self._scrape.start(config.metrics.listen)
        if self.cluster.formed.is_set():
            await self._take_part(log, store)
            await self._api.start(config.api_socket)
            await self.whereabouts.settled()
        else:
            logger.info("this node waits for `jobctl cluster init` or `jobctl cluster join TICKET`")
            await self._api.start(config.api_socket)
            self._forming = asyncio.get_running_loop().create_task(self._take_part_once_formed(log, store))

    async def _take_part_once_formed(self, log: Log, store: Store) -> None:
        await self.cluster.formed.wait()
        try:
            await self._take_part(log, store)
        except Exception as error:
            logger.critical("cannot take part in the cluster", exc_info=error)
            self.failed.set()

    async def _take_part(self, log: Log, store: Store) -> None:
        """Be a member, of a group of one or of several, and let workers in."""
        config, cluster = self._config, self.cluster
        self.consensus = consensus = Consensus(
            cluster.id, log, store, consensus_config(config), network=cluster.peers, alone=cluster.is_founder
        )
        consensus.on_failure = lambda error: self.failed.set()
        answers = Answers()
        if cluster.peers is None:
            secret_keys = Keys(self._keyring)
        else:
            secret_keys = KeyExchange(self._keyring, cluster.peers, consensus)
        watchers = JobMeasures(self.registry), self._exporter
        settings = control_config(config, cluster.cluster_id, answers, secret_keys, *watchers)
        self.site = site = Site(config.node.id, consensus, store, self._output, settings)
        site.on_failure = lambda error: self.failed.set()
        cluster.attach(consensus, store)
        await consensus.start()
        self._door = door = WorkerDoor(config.node.id, worker_uids(config))
        await door.start(config.worker_socket_path, config.worker_socket.mode, config.worker_socket.group)
        assert self._api is not None
        self._secrets = SecretsPart(site, store, secret_keys)
        self._passage = passage = Passage(site, self._api, door)
        if cluster.peers is not None:
            passage.join(cluster.peers, consensus)
            cluster.others = site.others
        assert self.blobs is not None
        self.blob_part = BlobPart(
            self.blobs,
            site,
            consensus,
            store,
            cluster.peers,
            passage.reach,
            max_blob_bytes=config.blobs.max_blob_bytes,
            grace_s=config.blobs.grace_s,
        )
        self._output.give(self.blob_part.host)
        self.replication_part = ReplicationPart(
            site,
            consensus,
            store,
            cluster.peers,
            passage.reach,
            answers,
            self.blob_part.host,
            cluster.cluster_id,
        )
        self._maintenance = MaintenancePart(
            site,
            consensus,
            store,
            log,
            self.blob_part,
            cluster.peers,
            passage.reach,
            directories={"log": config.log_dir, "store": config.store_dir, "blobs": config.blobs_dir},
            secrets=lambda: (*cluster.secrets, *self._keyring.files),
            max_store_bytes=config.store.max_bytes,
            config=maintenance_config(config),
        )

    # --- what the API asks: `service.Backend` -----------------------------------------------------------------------

    @property
    def whereabouts(self) -> Site:
        if self.site is None:
            raise Unavailable(_UNFORMED, expected=_FORM, retry_after_s=1)
        return self.site

    @property
    def blob_operations(self) -> BlobOperations:
        return self._own_blobs().operations

    @property
    def blob_host(self) -> BlobHost:
        return self._own_blobs().host

    @property
    def maintenance_operations(self) -> MaintenanceOperations:
        if self._maintenance is None:
            raise Unavailable(_UNFORMED, expected=_FORM, retry_after_s=1)
        return self._maintenance.operations

    @property
    def replication_operations(self) -> ReplicationOperations:
        if self.replication_part is None:
            raise Unavailable(_UNFORMED, expected=_FORM, retry_after_s=1)
        return self.replication_part.operations

    @property
    def backup_source(self) -> BackupSource:
        part, store = self._own_blobs(), self._store
        assert store is not None, "blobs come after the store"
        return BackupSource(store, part.snapshots, part.catalogue.reached, lambda: self.cluster.belongs_to)

    def _own_blobs(self) -> BlobPart:
        if self.blob_part is None:
            raise Unavailable(_UNFORMED, expected=_FORM, retry_after_s=1)
        return self.blob_part

    def health(self) -> Health:
        if self.site is not None:
            return self.site.health()
        return Health(
            status="starting",
            node=self._config.node.id,
            version=__version__,
            leader=False,
            revision=Revision(0),
            applied_index=0,
            uptime_s=time.monotonic() - self._began_s,
            checks={"consensus": _UNFORMED},
        )

    def metrics(self) -> dict[str, tuple[str, float]]:
        return {
            **self.cluster.metrics(),
            **({} if self.site is None else self.site.metrics()),
            **({} if self.blob_part is None else self.blob_part.metrics()),
            **({} if self.replication_part is None else self.replication_part.metrics()),
            **({} if self._secrets is None else self._secrets.metrics()),
            **({} if self._exporter is None else self._exporter.metrics()),
        }

    def labelled_metrics(self) -> LabelledMetrics:
        return {
            **({} if self.replication_part is None else self.replication_part.operations.metrics()),
            **({} if self._exporter is None else self._exporter.labelled_metrics()),
        }

    @property
    def registry(self) -> CollectorRegistry:
        """Everything that `/metrics` tells."""
        assert self._api is not None, "the node was started"
        return self._api.metrics.registry

    # --- life, continued ----------------------------------------------------------------------------------------------

    def healthy(self) -> bool:
        """Tell whether the watchdog may be fed."""
        return not self.failed.is_set()

    async def stop(self) -> None:
        """Answer what is under way, leave the workers their jobs, close what is on disk; also after half a start."""
        if self.site is not None:
            self.site.on_stopping()
        if self.consensus is not None:
            # First of all: then another has taken up the work while this node still hands requests on.
            await self.consensus.hand_over()
        if self._api is not None:
            await self._api.stop(STOP_GRACE_S)
        if self._forming is not None:
            self._forming.cancel()
        await _stop_each(self.replication_part, self.blob_part, self._secrets)
        if self._passage is not None:
            self._passage.stop()
        await _stop_each(self.site, self._door, self.consensus)
        await self.cluster.close()
        await _stop_each(self._scrape, self._exporter)
        if self.blobs is not None:
            # After the endpoint: then no answer to a peer is under way any more.
            await self.blobs.close()
        self._close_disk()

    def _close_disk(self) -> None:
        if self._store is not None:
            try:
                self._store.close()
            except NativeError as error:
                logger.warning("the store could not be marked as closed: %s", error)
        if self._log is not None:
            self._log.close()


class _Part(Protocol):
    async def stop(self) -> None: ...


async def _stop_each(*parts: _Part | None) -> None:
    """One after the other; those that are not there were never begun."""
    for part in parts:
        if part is not None:
            await part.stop()


def cluster_config(config: NodeConfig) -> ClusterConfig:
    return ClusterConfig(
        name=config.node.id,
        data_dir=config.node.data_dir,
        incoming_dir=config.store_dir,
        listen=config.cluster.listen,
        advertise=config.cluster.advertise,
        moved=config.cluster.moved,
    )


def consensus_config(config: NodeConfig) -> ConsensusConfig:
    return ConsensusConfig(
        heartbeat_s=config.raft.heartbeat_s,
        election_min_s=config.raft.election_min_s,
        election_max_s=config.raft.election_max_s,
        snapshot_log_bytes=config.log.snapshot_log_bytes,
    )


def exporter_of(config: NodeConfig) -> Exporter | None:
    """Return what exports spans, if anything does. Raises TracingError for a file that cannot be used."""
    wanted = config.tracing
    if wanted.otlp_endpoint is None:
        return None
    return Exporter(
        ExporterConfig(
            url=traces_url(wanted.otlp_endpoint),
            headers={} if wanted.headers_file is None else read_headers(wanted.headers_file),
            ca_file=wanted.ca_file,
            resource={"service.name": "jobs", "service.version": __version__, "service.instance.id": config.node.id}
            | wanted.resource,
            version=__version__,
            max_spans=wanted.max_spans,
            interval_s=wanted.interval_s,
        )
    )


def control_config(
    config: NodeConfig,
    cluster: str,
    answers: Answers,
    secret_keys: Keys,
    measures: JobMeasures,
    spans: Sink | None,
) -> ControlConfig:
    return ControlConfig(
        max_pending=config.queue.max_pending,
        worker_lease_s=config.workers.lease_s,
        history_events=config.store.history_events,
        max_store_bytes=config.store.max_bytes,
        max_schedules=config.schedules.max_count,
        max_schedules_per_owner=config.schedules.max_per_owner,
        max_fires_per_minute=config.schedules.max_fires_per_minute,
        retention=retention_config(config),
        is_admin=Identities(config.api.admin_group).is_admin,
        blobs=blob_config(config),
        built_in_schedules=config.maintenance.schedules,
        replication=ReplicationConfig(
            cluster=cluster,
            max_links=config.replication.max_links,
            max_peers=MAX_FOREIGN,
            max_syncs=config.replication.max_syncs,
            max_conflicts=config.replication.max_conflicts,
            problem=answers.problem,
        ),
        secrets=SecretsConfig(max_per_owner=config.secrets.max_per_owner, keys=secret_keys),
        measures=measures,
        spans=spans,
        sample_ratio=config.tracing.sample_ratio,
    )


def blob_config(config: NodeConfig) -> BlobConfig:
    return BlobConfig(
        replicas=config.blobs.replicas,
        grace_ms=int(config.blobs.grace_s * 1_000),
        max_bytes_per_owner=config.blobs.max_bytes_per_owner,
        max_blob_bytes=config.blobs.max_blob_bytes,
    )


def maintenance_config(config: NodeConfig) -> MaintenanceConfig:
    wanted = config.maintenance
    return MaintenanceConfig(
        kept=Kept(age_s=wanted.history_age_s, events=wanted.history_min_events),
        limits=HealthLimits(
            fsync_s=wanted.fsync_warning_s,
            disk_percent=wanted.disk_warning_percent,
            clock_s=wanted.clock_warning_s,
            lag_entries=wanted.lag_warning_entries,
        ),
    )


def worker_uids(config: NodeConfig) -> frozenset[int]:
    """Return who may register workers. Raises SocketError for a user that is not there."""
    settings = config.worker_socket
    named = {uid_of(user) for user in settings.users}
    return frozenset({0, os.geteuid()} | named | members_of(settings.trusted_group))


def retention_config(config: NodeConfig) -> RetentionConfig:
    kept = config.retention
    return RetentionConfig(
        jobs=Limits(
            keep_ms=int(kept.keep_s * 1_000),
            logs_ms=None if kept.logs_s is None else int(kept.logs_s * 1_000),
            max_jobs=kept.max_jobs,
            max_bytes=kept.max_bytes,
        ),
        audit_ms=int(kept.audit_s * 1_000),
        audit_max=kept.audit_max,
        gone_max=kept.gone_max,
    )


def api_config(config: NodeConfig) -> ApiConfig:
    return ApiConfig(
        worker_uids=worker_uids(config),
        mode=config.api.mode,
        group=config.api.group,
        admin_group=config.api.admin_group,
        max_connections=config.api.max_connections,
        max_body_bytes=config.api.max_body_bytes,
        body_timeout_s=config.api.request_timeout_s,
    )


def uid_of(user: str) -> int:
    """Return the uid of a user given by name or number; raises SocketError for an unknown name."""
    if user.isdigit():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError as error:
        raise SocketError(f"worker_socket.users: there is no user {user!r}; create it, or name another") from error


def worker_commands(arguments: argparse.Namespace, config: NodeConfig) -> list[list[str]]:
    """Return the commands of the embedded workers: one of each type."""
    rest = ["--embedded", str(arguments.embedded), "--die-with-parent", str(os.getpid())]
    if arguments.config is not None:
        rest += ["--config", str(arguments.config)]
    return [["jobs.worker", "--type", worker_type, *rest] for worker_type in config.workers.embedded]


async def run(config: NodeConfig, arguments: argparse.Namespace) -> int:
    """Serve until a signal or a failure; return the exit code."""
    loop = asyncio.get_running_loop()
    node = Node(config)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    notifier = Notifier()
    loop.add_signal_handler(signal.SIGHUP, lambda: reload_config(config, arguments, node, notifier))
    children = None
    try:
        with notifier.starting("opening the log and the store"):
            await node.start()
        if arguments.embedded is not None:
            env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
            children = Children(worker_commands(arguments, config), env)
            children.start()
        notifier.ready(status_line(node))
        notifier.start_watchdog(node.healthy)
        logger.info("serving", extra={"socket": str(config.api_socket)})
        await serve_until(stop, node, notifier)
    except CANNOT_START as error:
        logger.critical("cannot start: %s", error)
        return EXIT_FAILED
    finally:
        notifier.stopping("stopping")
        if children is not None:
            await children.stop(STOP_GRACE_S)
        await node.stop()
    return EXIT_FAILED if node.failed.is_set() else 0


def reload_config(running: NodeConfig, arguments: argparse.Namespace, node: Node, notifier: Notifier) -> None:
    """Read the configuration again and take what can be taken without a restart: the section `logging`."""
    notifier.reloading("reading the configuration")
    try:
        fresh = load_config(arguments.config, embedded=arguments.embedded)
    except ConfigError as error:
        logger.error("the configuration is not taken: %s", error)
    else:
        logs.setup(fresh.logging)
        sections = set(NodeConfig.model_fields) - {"logging"}
        waiting = sorted(name for name in sections if getattr(fresh, name) != getattr(running, name))
        if waiting:
            logger.warning("a restart is needed for what changed in: %s", ", ".join(waiting))
        logger.info("configuration read again; the log level is %s", fresh.logging.level)
    notifier.ready(status_line(node))


async def serve_until(stop: asyncio.Event, node: Node, notifier: Notifier) -> None:
    """Report the status now and then until `stop` is set or the node has failed."""
    ends = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(node.failed.wait())]
    try:
        while not stop.is_set() and not node.failed.is_set():
            notifier.status(status_line(node))
            await asyncio.wait(ends, timeout=STATUS_PERIOD_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in ends:
            end.cancel()


def status_line(node: Node) -> str:
    site = node.site
    if site is None or site.control is None:
        return node.health().checks["consensus"]
    value = {name: value for name, (_, value) in site.control.metrics().items()}
    return (
        f"{value['jobs_pending']:.0f} jobs wait, {value['jobs_running']:.0f} run on {value['jobs_workers']:.0f} workers"
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="jobs-node", description=__doc__)
    made.add_argument("--config", type=Path, metavar="FILE", help="configuration (default: /etc/jobs/node.toml)")
    made.add_argument("--embedded", type=Path, metavar="DIR", help="node and workers in one directory, without root")
    commands = made.add_subparsers(dest="command", metavar="COMMAND")
    check = commands.add_parser("check-config", help="say what is wrong with the configuration, and how to mend it")
    check.add_argument("file", type=Path, nargs="?", help="configuration to check")
    alone = commands.add_parser(
        "recover", help="make a stopped node a cluster of its own, when a majority of the disks is lost for good"
    )
    alone.add_argument("--yes", action="store_true", help="do it, and do not only say what that would lose")
    restored = commands.add_parser("restore", help="make a new cluster of a backup, on a node that has nothing yet")
    restored.add_argument("--from", type=Path, required=True, dest="source", metavar="DIR", help="series of backups")
    until = restored.add_mutually_exclusive_group()
    until.add_argument("--revision", type=int, metavar="N", help="as of this one (default: the newest)")
    until.add_argument("--at", type=moment_of, metavar="TIME", help="as of this moment, such as 2026-01-31T14:00:00Z")
    restored.add_argument("--identity", type=Path, metavar="FILE", help="secret key of age, for one that is encrypted")
    restored.add_argument("--yes", action="store_true", help="do it, and do not only say what would be done")
    return made


def main() -> int:
    """Run the command; the process's exit code comes back."""
    arguments = parser().parse_args()
    if arguments.command == "check-config":
        return report_config(arguments.file or arguments.config, arguments.embedded)
    try:
        config = load_config(arguments.config, embedded=arguments.embedded)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    logs.setup(config.logging)
    if arguments.embedded is None:
        # Whatever a node makes is for nobody but itself, and its group. Embedded, its directory is shut.
        os.umask(os.umask(0o077) | 0o027)
    try:
        if armed := arm_failpoints():
            logger.warning("failpoints are armed, for a test: this node is going to fail: %s", armed)
    except ValueError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    if arguments.command == "recover":
        return recover(config, confirmed=arguments.yes)
    if arguments.command == "restore":
        wanted = Wanted(
            directory=arguments.source,
            revision=arguments.revision,
            at_ms=arguments.at,
            identity_file=arguments.identity,
        )
        return restore(config, wanted, confirmed=arguments.yes)
    if problem := unfinished(config.node.data_dir):
        print(problem, file=sys.stderr)
        return EXIT_CONFIG
    forbid_core_dumps()
    settle_memory()
    return uvloop.run(run(config, arguments))


def settle_memory() -> None:
    """Leave what was imported out of garbage collection, and collect less often: a full collection in the middle of
    serving took several milliseconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def report_config(file: Path | None, embedded: Path | None) -> int:
    """Print what is wrong with a configuration, a line each."""
    problems = check_config(file, embedded=embedded)
    for problem in problems:
        print(problem)
    if not problems:
        print("the configuration is valid")
    return EXIT_CONFIG if problems else 0


if __name__ == "__main__":
    sys.exit(main())
