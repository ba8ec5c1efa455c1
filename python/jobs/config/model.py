"""The configuration of a node and its workers as one closed, frozen model; docs/config.md is generated from it."""

from __future__ import annotations

import os
import re
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.destinations import parse_allowed
from jobs.rootlabels import ROOT_LABEL, root_labels

ENV_PREFIX: Final = "JOBS_"
ENV_DELIMITER: Final = "__"

MAX_SLOTS: Final = 4_096


def _permissions(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"(0o)?[0-7]{1,4}", value):
        value = int(value, 8)
    if type(value) is not int or not 0 <= value <= 0o777:
        raise ValueError('permission bits are octal, as in "0660" or 0o660')
    return value


def _host_name() -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:63].lstrip("._-")
    return name or "node"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _destinations(text: str) -> str:
    parse_allowed(text)
    return text


def _socket_address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if colon and port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535 and (":" not in host or host[0] == "["):
        try:
            ip_address(host.strip("[]"))
        except ValueError:
            pass
        else:
            return value
    raise ValueError(f"{value!r} is no address and port, as in 10.0.0.1:7420 or [fd00::1]:7420")


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{value!r} is no URL, as in http://localhost:4318 or https://otlp.example.org/v1/traces")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL is shown in logs: put what is secret into headers_file")
    return value


Url: TypeAlias = Annotated[str, AfterValidator(_url)]
SocketAddress: TypeAlias = Annotated[str, AfterValidator(_socket_address)]
Destinations: TypeAlias = Annotated[str, AfterValidator(_destinations)]
Bytes: TypeAlias = Annotated[ByteSize, AfterValidator(int)]
"""A number of bytes, or text such as "64MiB"."""
Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86_400)]
KeepSeconds: TypeAlias = Annotated[float, Field(ge=0, le=315_360_000)]
"""Up to ten years."""
Percent: TypeAlias = Annotated[float, Field(ge=0, le=100)]
FileMode: TypeAlias = Annotated[int, BeforeValidator(_permissions)]
"""Permission bits, as octal text ("0660") or TOML octal (0o660)."""
Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}$")]
RootName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]
SecretName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]
Attribute: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,127}$")]
Label: TypeAlias = Annotated[str, Field(max_length=256)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, hide_input_in_errors=True
    )


class Node(_Section):
    """Who this node is and where it keeps its things."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = Field(default_factory=_host_name)
    """Name of this node, unique in its cluster. By default the host name."""
    data_dir: Path = Path("/var/lib/jobs")
    """What has to survive a restart: the log and the store."""
    run_dir: Path = Path("/run/jobs")
    """What need not: the sockets."""


class Api(_Section):
    """The Unix socket that clients connect to."""

    socket: Path | None = None
    """By default `api.sock` in `node.run_dir`."""
    mode: FileMode = 0o660
    """Permission bits of the socket."""
    group: str | None = None
    """Group that owns the socket, so that its members may connect. By default the node's own group."""
    admin_group: str | None = "jobs-admin"
    """Members see and cancel every job and drain workers, as do root and the node's own user; others see their own."""
    max_connections: Annotated[int, Field(ge=1, le=65_536)] = 4_096
    """Connections at a time; one more is closed at once."""
    max_body_bytes: Annotated[Bytes, Field(ge=1 << 10, le=64 << 20)] = ByteSize(10 << 20)
    """Largest request body; a larger one is answered with 413."""
    request_timeout_s: Seconds = 30.0
    """A request has to arrive within this time, and content of a blob to go on within it; otherwise 408."""


class WorkerSocket(_Section):
    """The Unix socket that workers of this machine connect to."""

    path: Path | None = None
    """By default `worker.sock` in `node.run_dir`."""
    mode: FileMode = 0o660
    """Permission bits of the socket."""
    group: str | None = None
    """Group that owns the socket. By default the node's own group."""
    users: tuple[str, ...] = ()
    """Users, by name or number, that may register workers besides root and the node's own user."""
    trusted_group: str | None = "jobs-workers"
    """Members of this group may, too; where there is none of that name, nobody."""


class Store(_Section):
    """The key-value store."""

    max_bytes: Annotated[Bytes, Field(ge=16 << 20, le=1 << 44)] = ByteSize(32 << 30)
    """Above this nothing new is accepted (507); what is accepted already still finishes."""
    history_events: Annotated[int, Field(ge=10_000, le=1_000_000_000)] = 500_000
    """Changes of keys that reads and watches can go back; older history is dropped."""


class Log(_Section):
    """The replicated write-ahead log."""

    segment_bytes: Annotated[Bytes, Field(ge=1 << 20, le=1 << 30)] = ByteSize(64 << 20)
    """Size of one file of the log, allocated at once."""
    snapshot_log_bytes: Annotated[Bytes, Field(ge=1 << 20, le=1 << 40)] = ByteSize(256 << 20)
    """A log larger than this is cut after a snapshot of the store has been written."""


class Blobs(_Section):
    """Content-addressed blobs."""

    min_free_bytes: Annotated[Bytes, Field(ge=0, le=1 << 44)] = ByteSize(256 << 20)
    """Blobs leave so many bytes of the disk free for everything else there; past that nothing new is taken (507)."""
    replicas: Annotated[int, Field(ge=0, le=16)] = 0
    """Nodes that have a blob for which no other number was asked for; 0: a majority of the voters."""
    grace_s: Annotated[float, Field(ge=1, le=31_536_000)] = 3_600
    """A blob that nothing refers to is kept for so long after it was last added or referred to."""
    max_bytes_per_owner: Annotated[Bytes, Field(ge=0, le=1 << 60)] = ByteSize(1 << 40)
    """What an owner's blobs may come to; settings of the owner win over it."""
    max_blob_bytes: Annotated[Bytes, Field(ge=0, le=1 << 50)] = ByteSize(1 << 40)
    """Of one blob."""


class Maintenance(_Section):
    """What looks after the cluster by itself."""

    schedules: bool = True
    """Make the built-in schedules (`jobs-cleanup` and others) when there are none of their names yet; one that was
    changed or deleted stays as it is."""
    history_age_s: Annotated[float, Field(ge=0, le=315_360_000)] = 86_400.0
    """`compact` keeps the changes of keys of the last so long: watches, reads and syncs can go back as far."""
    history_min_events: Annotated[int, Field(ge=0, le=1_000_000_000)] = 10_000
    """And so many of them in any case."""
    fsync_warning_s: Annotated[float, Field(gt=0, le=60)] = 0.1
    """`health` warns of a disk whose slowest of some syncs takes longer."""
    disk_warning_percent: Annotated[float, Field(gt=0, le=100)] = 80.0
    """`health` warns of a disk, or a store, that is fuller."""
    clock_warning_s: Annotated[float, Field(gt=0, le=3_600)] = 0.5
    """`health` warns of a clock that differs more from the leader's."""
    lag_warning_entries: Annotated[int, Field(ge=1, le=1_000_000_000)] = 10_000
    """`health` warns of a member that is further behind the leader."""


class Replication(_Section):
    """Bounds of what is kept in step with elsewhere."""

    max_links: Annotated[int, Field(ge=0, le=16)] = 8
    """Other clusters that this one speaks with."""
    max_syncs: Annotated[int, Field(ge=0, le=10_000)] = 256
    """Syncs whose target or job is here."""
    max_conflicts: Annotated[int, Field(ge=0, le=1_000_000)] = 10_000
    """Conflicts of one sync that are kept, the newest; all are counted."""


class Queue(_Section):
    """Bounds of what may wait."""

    max_pending: Annotated[int, Field(ge=1, le=100_000_000)] = 2_000_000
    """Jobs that may wait; one more is refused with 429."""


class Schedules(_Section):
    """Bounds of the schedules that make jobs by themselves."""

    max_count: Annotated[int, Field(ge=0, le=1_000_000)] = 10_000
    """Schedules in all; one more is refused with 429."""
    max_per_owner: Annotated[int, Field(ge=0, le=1_000_000)] = 1_000
    """Schedules of one owner."""
    max_fires_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] = 6_000
    """Jobs that all schedules together make in any minute; what comes beyond that waits its turn."""


class Retention(_Section):
    """How long ended jobs are kept, and what else would grow without end. A job can say its own times."""

    keep_s: KeepSeconds = 604_800.0
    """An ended job with everything of it; 7 days."""
    logs_s: KeepSeconds | None = None
    """Its output, which may go earlier. By default it goes with the job."""
    max_jobs: Annotated[int, Field(ge=0, le=1_000_000_000)] = 1_000_000
    """Ended jobs that are kept at most, whatever their times: those go first whose time is nearest."""
    max_bytes: Annotated[Bytes, Field(ge=0, le=1 << 44)] = ByteSize(8 << 30)
    """About what they take in the store at most, with their submissions, results and output."""
    audit_s: KeepSeconds = 7_776_000.0
    """An entry of the audit trail; 90 days."""
    audit_max: Annotated[int, Field(ge=100, le=1_000_000_000)] = 1_000_000
    """Entries of the audit trail that are kept at most."""
    gone_max: Annotated[int, Field(ge=100, le=1_000_000_000)] = 1_000_000
    """Jobs that are no longer kept and are told apart (410) from those that never were (404): the newest so many."""

    @model_validator(mode="after")
    def _ordered(self) -> Retention:
        if self.logs_s is not None and self.logs_s > self.keep_s:
            raise ValueError(f"logs_s must not be greater than keep_s, {self.keep_s:g} s: output goes with its job")
        return self


class Raft(_Section):
    """Times of the consensus between nodes."""

    heartbeat_s: Annotated[float, Field(ge=0.01, le=10)] = 0.1
    """The leader makes itself heard this often."""
    election_min_s: Annotated[float, Field(ge=0.05, le=60)] = 0.5
    """Without a leader for this long at least, a member stands for election."""
    election_max_s: Annotated[float, Field(ge=0.05, le=60)] = 1.0
    """The longest such wait; each is drawn anew between the two."""

    @model_validator(mode="after")
    def _ordered(self) -> Raft:
        if self.election_min_s <= 3 * self.heartbeat_s:
            raise ValueError(f"election_min_s must be more than three times heartbeat_s, {3 * self.heartbeat_s:g} s")
        if self.election_max_s <= self.election_min_s:
            raise ValueError(f"election_max_s must be greater than election_min_s, {self.election_min_s} s")
        return self


class Logging(_Section):
    """The program's own log, on standard error."""

    format: Literal["auto", "json", "console"] = "auto"
    """A JSON object a line, or lines for people; `auto`: on a terminal `console`, under systemd entries of the journal
    with fields of their own, else `json`."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is written."""


class ShellLimits(_Section):
    """What one job may use unless it says otherwise; without a value there is no limit."""

    memory_bytes: Annotated[Bytes, Field(ge=1 << 20, le=1 << 50)] | None = None
    """Memory of all its processes together (per process where there is no cgroup)."""
    pids: Annotated[int, Field(ge=1, le=4_194_304)] | None = 1_024
    """Processes and threads."""
    open_files: Annotated[int, Field(ge=16, le=1 << 20)] = 4_096
    """Open files of each process."""
    file_bytes: Annotated[Bytes, Field(ge=0, le=1 << 50)] | None = None
    """Size of each file it writes."""
    tmp_bytes: Annotated[Bytes, Field(ge=1 << 16, le=1 << 50)] = ByteSize(256 << 20)
    """Size of the memory file system that holds its directory and /tmp."""
    output_bytes: Annotated[Bytes, Field(ge=0, le=1 << 30)] = ByteSize(64 << 20)
    """Standard output and error kept; the rest is counted and dropped."""
    cpu_s: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """Processor time of each process."""
    cpu_milli: Annotated[int, Field(ge=10, le=10_000_000)] | None = None
    """Thousandths of a core of all its processes together. Needs a cgroup with the controller `cpu`."""
    cpu_weight: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Share of the processor against other jobs, where there is a cgroup. By default a tenth of what the job requires
    in `cpu_milli`, and 100, the kernel's own, for one that requires nothing."""
    io_weight: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Share of disks against other jobs, where there is a cgroup and a scheduler of disks that knows shares."""


class ShellCaps(_Section):
    """The most that a job may ask for; one that asks for more fails as `invalid_payload`. Without a value: no cap."""

    memory_bytes: Annotated[Bytes, Field(ge=1 << 20, le=1 << 50)] | None = None
    """Cap of `memory_bytes`."""
    pids: Annotated[int, Field(ge=1, le=4_194_304)] | None = None
    """Cap of `pids`."""
    open_files: Annotated[int, Field(ge=16, le=1 << 20)] | None = None
    """Cap of `open_files`."""
    file_bytes: Annotated[Bytes, Field(ge=0, le=1 << 50)] | None = None
    """Cap of `file_bytes`."""
    tmp_bytes: Annotated[Bytes, Field(ge=1 << 16, le=1 << 50)] | None = None
    """Cap of `tmp_bytes`."""
    output_bytes: Annotated[Bytes, Field(ge=0, le=1 << 30)] | None = None
    """Cap of `output_bytes`."""
    cpu_s: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """Cap of `cpu_s`."""
    cpu_milli: Annotated[int, Field(ge=10, le=10_000_000)] | None = None
    """Cap of `cpu_milli`."""
    cpu_weight: Annotated[int, Field(ge=1, le=10_000)] | None = 1_000
    """Cap of `cpu_weight`; a share that follows from what a job requires is bounded by what the worker has."""
    io_weight: Annotated[int, Field(ge=1, le=10_000)] | None = 1_000
    """Cap of `io_weight`."""


class PressureLimits(_Section):
    """Pressure on the machine above which the worker is given no more jobs, until it is below 0.8 of that again.

    It is `some avg10` of the kernel's PSI: the percentage of the last ten seconds in which something waited. Without a
    value, or where the kernel does not account it, it is not looked at.
    """

    cpu_percent: Percent | None = None
    """For a processor."""
    memory_percent: Percent | None = 20.0
    """For memory. 100 is never exceeded."""
    io_percent: Percent | None = None
    """For input and output."""


class WorkerSettings(_Section):
    """What can be configured of a worker of every type."""

    name: Name | None = None
    """Name of the worker, the same after a restart. By default its type and the node's id, as in `shell-alpha`."""
    slots: Annotated[int, Field(ge=1, le=MAX_SLOTS)] = Field(default_factory=_cores)
    """Jobs at a time. By default one a core."""
    labels: Annotated[dict[Name, Label], Field(max_length=64)] = {}
    """What jobs can require of the worker, such as `gpu = "yes"`."""
    cpu_milli: Annotated[int, Field(ge=0, le=1_000_000_000)] = Field(default_factory=lambda: 1_000 * _cores())
    """Thousandths of a core that jobs can require in all. By default what the machine has."""
    memory_bytes: Annotated[Bytes, Field(ge=0, le=1 << 50)] = Field(default_factory=lambda: ByteSize(_memory_bytes()))
    """Memory that jobs can require in all. By default what the machine has."""
    resources: Annotated[dict[Name, Annotated[int, Field(ge=1, le=1_000_000)]], Field(max_length=16)] = {}
    """Counts of other things that jobs can require in all, such as `gpu = 1`."""
    pressure: PressureLimits = PressureLimits()
    """When the machine has too much to do for more jobs."""
    grace_s: Annotated[float, Field(ge=0, le=3_600)] = 5.0
    """From the polite to the hard end of a job that is ended, unless the job says otherwise."""
    drain_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    """When the worker is stopped, running jobs have this long to finish before they are ended."""

    @property
    def announced(self) -> dict[str, str]:
        """The labels with which the worker registers."""
        return self.labels


class InputSettings(WorkerSettings):
    """What can be configured of a worker whose jobs are given blobs."""

    inputs_dir: Path | None = None
    """Where the blobs are that running jobs are given. By default among the system's temporary files."""
    inputs_bytes: Annotated[Bytes, Field(ge=1 << 20, le=1 << 50)] = ByteSize(10 << 30)
    """What they may take there in all; a job waits until there is room for its own."""

    @model_validator(mode="after")
    def _inputs_absolute(self) -> InputSettings:
        if self.inputs_dir is not None and not self.inputs_dir.is_absolute():
            raise ValueError("inputs_dir must be absolute")
        return self


class Credential(_Section):
    """A secret of this machine's that some users' jobs may have."""

    path: Path | None = None
    """File that holds it. By default the credential of that name that systemd has given the worker's service."""
    users: tuple[str, ...] = ()
    """Names or uids of the owners whose jobs may have it."""

    @model_validator(mode="after")
    def _absolute(self) -> Credential:
        if self.path is not None and not self.path.is_absolute():
            raise ValueError("path must be absolute")
        return self


class ShellWorker(InputSettings):
    """The worker that runs commands (`jobs-worker --type shell`)."""

    sandbox: Literal["strict", "standard", "none"] = "strict"
    """Weakest isolation that is accepted; where it is missing, jobs fail as `sandbox_unavailable`. `none` is no
    isolation, whatever the host has: jobs are ordinary processes of it, and what they run has to be trusted."""
    allow_host_network: bool = False
    """Let jobs ask for the network of the host, with the weaker isolation that this means."""
    allow_connect: tuple[Destinations, ...] = ()
    """What jobs may ask to reach by TCP: networks and ports, such as `10.0.0.0/8:443`, `[fd00::/8]:8000-8999`, or
    `192.0.2.7:*`. By default nothing; 127.0.0.1 here is this machine's, where services may trust whoever comes."""
    read_only_paths: tuple[Path, ...] = ()
    """Paths of the host that jobs see, read-only, besides the system's own."""
    cgroup: Path | None = None
    """Delegated cgroup v2 directory to put jobs in. By default the one that the worker runs in, if it is delegated."""
    uid_base: Annotated[int, Field(ge=1_000, le=0xFFFF_0000)] = 0x7000_0000
    """First of the uids and gids that jobs get when the worker is started as root, or with the capabilities CAP_SETUID
    and CAP_SETGID; nobody but workers of this machine may use them. Another worker's jobs get what `/etc/subuid` and
    `/etc/subgid` give its user, and without that all have the worker's own."""
    uid_count: Annotated[int, Field(ge=3, le=65_536)] = 8_192
    """How many uids and gids there are from `uid_base`: one a slot and one more for each worker of this machine, and
    the last for the root images of all."""
    outputs_bytes: Annotated[Bytes, Field(ge=0, le=1 << 50)] = ByteSize(4 << 30)
    """What the files may have together that one job leaves as blobs."""
    limits: ShellLimits = ShellLimits()
    """Limits of a job that does not ask for others."""
    max_limits: ShellCaps = ShellCaps()
    """The most that a job may ask for."""
    credentials: Annotated[dict[SecretName, Credential], Field(max_length=256)] = {}
    """Secrets of this machine's that jobs may name as `credential:NAME`, each with the `users` whose jobs may, such as
    `deploy = { path = "/etc/jobs/deploy.key", users = ["alice"] }`; without `path` it is what systemd has given the
    worker under that name (`LoadCredential=`)."""
    work_dir: Path | None = None
    """With `sandbox = "none"`: where jobs have their directories; every uid has to be let to it. By default among the
    system's temporary files."""
    roots: Annotated[dict[RootName, Path], Field(max_length=256)] = {}
    """Directories of this machine that jobs may have in place of its programs, each with the name that jobs say
    (`root`), such as `debian = "/srv/roots/debian-12"`: jobs with that one go to workers with the label
    `root:debian=yes`, which follows from this."""
    roots_dir: Path | None = None
    """Where root images that are blobs are kept unpacked. By default in the cache directory of the worker's unit;
    without a unit among the system's temporary files."""
    roots_bytes: Annotated[Bytes, Field(ge=0, le=1 << 50)] = ByteSize(10 << 30)
    """What they may take there in all, and once more while one is unpacked; each file counts 4 KiB more than it holds.
    With 0 no job has any."""

    @model_validator(mode="after")
    def _enough_uids(self) -> ShellWorker:
        if self.slots + 2 > self.uid_count:
            raise ValueError(f"uid_count must be at least {self.slots + 2}: two more than slots")
        if any(not path.is_absolute() for path in self.read_only_paths):
            raise ValueError("read_only_paths must be absolute")
        if self.work_dir is not None and not self.work_dir.is_absolute():
            raise ValueError("work_dir must be absolute")
        if any(not path.is_absolute() for path in (*self.roots.values(), *filter(None, [self.roots_dir]))):
            raise ValueError("roots and roots_dir must be absolute")
        if any(name.startswith(ROOT_LABEL) for name in self.labels):
            raise ValueError(f"labels that begin with {ROOT_LABEL} follow from roots")
        return self

    @property
    def announced(self) -> dict[str, str]:
        """Also which root images it has; at level `none` jobs have no other than the host's."""
        return self.labels if self.sandbox == "none" else self.labels | root_labels(self.roots)


class SqlLimits(_Section):
    """What one query may use unless it says otherwise."""

    max_rows: Annotated[int, Field(ge=0, le=1 << 40)] = 10_000_000
    """Rows of its result."""
    max_bytes: Annotated[Bytes, Field(ge=0, le=1 << 30)] = ByteSize(64 << 20)
    """Bytes of its result in its format."""
    memory_bytes: Annotated[Bytes, Field(ge=1 << 20, le=1 << 50)] = ByteSize(512 << 20)
    """What its operators may hold; beyond that they spill, or the query fails."""
    spill_bytes: Annotated[Bytes, Field(ge=0, le=1 << 50)] = ByteSize(1 << 30)
    """What they may write to disk."""
    timeout_s: Seconds | None = 3_600.0
    """Longest time of a query whose job has no `timeout_s`: nobody may wait any more for one that holds a slot."""


class SqlCaps(_Section):
    """The most that a query may ask for; one that asks for more fails as `invalid_payload`."""

    max_rows: Annotated[int, Field(ge=0, le=1 << 40)] = 100_000_000
    """Cap of `max_rows`."""
    max_bytes: Annotated[Bytes, Field(ge=0, le=1 << 30)] = ByteSize(64 << 20)
    """Cap of `max_bytes`."""
    memory_bytes: Annotated[Bytes, Field(ge=1 << 20, le=1 << 50)] = ByteSize(2 << 30)
    """Cap of `memory_bytes`."""
    spill_bytes: Annotated[Bytes, Field(ge=0, le=1 << 50)] = ByteSize(8 << 30)
    """Cap of `spill_bytes`."""


class SqlWorker(InputSettings):
    """The worker that runs queries (`jobs-worker --type sql`)."""

    slots: Annotated[int, Field(ge=1, le=MAX_SLOTS)] = Field(default_factory=lambda: min(2, _cores()))
    """Queries at a time; each has a process of its own, kept warm, of about 150 MiB. By default 2, or one a core."""
    threads: Annotated[int, Field(ge=1, le=1_024)] = Field(default_factory=_cores)
    """Parts that a query is computed in at a time. By default one a core."""
    spill_dir: Path | None = None
    """Where queries write what they cannot hold. By default among the system's temporary files."""
    allow_files: tuple[Path, ...] = ()
    """Directories whose files queries may read by `read_csv('…')`, `read_json` and `read_parquet`."""
    limits: SqlLimits = SqlLimits()
    """Limits of a query that does not ask for others."""
    max_limits: SqlCaps = SqlCaps()
    """The most that a query may ask for."""

    @model_validator(mode="after")
    def _absolute(self) -> SqlWorker:
        if any(not path.is_absolute() for path in self.allow_files):
            raise ValueError("allow_files must be absolute")
        return self


class BlobWorker(WorkerSettings):
    """The worker that adds, fetches, replicates, collects, verifies and exports blobs (`jobs-worker --type blob`)."""

    slots: Annotated[int, Field(ge=1, le=MAX_SLOTS)] = Field(default_factory=lambda: max(4, 2 * _cores()))
    """Operations at a time: they wait for disks and other nodes. By default two a core, and 4 at least."""
    allow_files: tuple[Path, ...] = ()
    """Directories whose files jobs may add, whoever submits them, and into which they may export."""
    timeout_s: Seconds | None = None
    """Longest time of an operation whose job has no `timeout_s`."""

    @model_validator(mode="after")
    def _absolute(self) -> BlobWorker:
        if any(not path.is_absolute() for path in self.allow_files):
            raise ValueError("allow_files must be absolute")
        return self


class MaintenanceWorker(WorkerSettings):
    """The worker for maintenance (`jobs-worker --type maintenance`)."""

    slots: Annotated[int, Field(ge=1, le=MAX_SLOTS)] = 2
    """Operations at a time: of each kind there is one in the cluster at most."""
    timeout_s: Seconds | None = None
    """Longest time of an operation whose job has no `timeout_s`."""


class ReplicationWorker(WorkerSettings):
    """The worker for syncs, backups and exports (`jobs-worker --type replication`)."""

    slots: Annotated[int, Field(ge=1, le=MAX_SLOTS)] = Field(default_factory=lambda: max(8, 2 * _cores()))
    """Operations at a time: a continuous sync has one for as long as it goes on."""
    allow_files: tuple[Path, ...] = ()
    """Directories below which jobs may write and read backups and exports."""
    identity_file: Path | None = None
    """Secret keys of age, for reading backups that are encrypted."""
    scratch_dir: Path | None = None
    """Where backups are restored aside to prove them, and those for blobs are put together. By default among the
    system's temporary files."""
    timeout_s: Seconds | None = None
    """Longest time of an operation whose job has no `timeout_s`."""

    @model_validator(mode="after")
    def _absolute(self) -> ReplicationWorker:
        if any(not path.is_absolute() for path in self.allow_files):
            raise ValueError("allow_files must be absolute")
        for name in ("identity_file", "scratch_dir"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_absolute():
                raise ValueError(f"{name} must be absolute")
        return self


WorkerType: TypeAlias = Literal["shell", "sql", "blob", "maintenance", "replication"]


class Workers(_Section):
    """Workers, by type."""

    lease_s: Annotated[float, Field(ge=1, le=3_600)] = 10.0
    """Without a sign of life for this long a worker is lost and its jobs are given to others."""
    shell: ShellWorker = ShellWorker()
    """The worker that runs commands."""
    sql: SqlWorker = SqlWorker()
    """The worker that runs queries."""
    blob: BlobWorker = BlobWorker()
    """The worker for blobs."""
    maintenance: MaintenanceWorker = MaintenanceWorker()
    """The worker for maintenance."""
    replication: ReplicationWorker = ReplicationWorker()
    """The worker for syncs, backups and exports."""
    embedded: tuple[WorkerType, ...] = ("shell", "sql", "blob", "maintenance", "replication")
    """Types of the workers that `jobs-node --embedded` starts, one of each."""

    def of(self, worker_type: str) -> WorkerSettings:
        """Return what every worker has, of this type. Raises KeyError for a type that is not there."""
        return {
            "shell": self.shell,
            "sql": self.sql,
            "blob": self.blob,
            "maintenance": self.maintenance,
            "replication": self.replication,
        }[worker_type]


class Cluster(_Section):
    """How other nodes reach this one. Without `listen` the node is alone."""

    listen: Annotated[tuple[SocketAddress, ...], Field(max_length=2)] = ()
    """Addresses and ports (UDP) to listen on, at most one of IPv4 and one of IPv6, such as `10.0.0.1:7420`."""
    advertise: Annotated[tuple[SocketAddress, ...], Field(max_length=8)] = ()
    """Addresses and ports at which others reach this node. By default those of `listen`."""
    moved: Annotated[dict[str, tuple[SocketAddress, ...]], Field(max_length=9)] = {}
    """Where to look for members, by name, besides where they said they are: for when all have moved at once."""

    @model_validator(mode="after")
    def _reachable(self) -> Cluster:
        families = [ip_address(address.rpartition(":")[0].strip("[]")) for address in self.listen]
        if len({family.version for family in families}) < len(families):
            raise ValueError("listen takes one address of IPv4 and one of IPv6 at most")
        if any(family.is_unspecified for family in families) and not self.advertise:
            raise ValueError("advertise has to say at which address others reach this node, as listen takes any")
        if self.advertise and not self.listen:
            raise ValueError("advertise is of no use without listen")
        return self


class Secrets(_Section):
    """What only jobs are given, encrypted with a key that is never in the store."""

    key_file: Path | None = None
    """Secret keys of age that the operator gives every node, the one to use first. By default the credential
    `jobs.secrets-key` if systemd has given it to the node; else nodes make a key and give it to each other, which is in
    `secrets.key` in `node.data_dir`."""
    max_per_owner: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    """Secrets that one owner may have."""

    @model_validator(mode="after")
    def _absolute(self) -> Secrets:
        if self.key_file is not None and not self.key_file.is_absolute():
            raise ValueError("key_file must be absolute")
        return self


class Tracing(_Section):
    """Spans of jobs, sent to a collector of OpenTelemetry. Without `otlp_endpoint` none are made; what jobs are told of
    the trace that they are submitted in is kept and passed on in any case."""

    otlp_endpoint: Url | None = None
    """Where to send them by OTLP/HTTP, such as `http://localhost:4318`; without a path, `/v1/traces` is meant."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the jobs that are recorded of those that were submitted in no trace; in one its own flag decides."""
    headers_file: Path | None = None
    """File of lines `name: value`, read at the start: headers of each export, such as `Authorization`."""
    ca_file: Path | None = None
    """Certificates that the collector's is checked against. By default the system's."""
    resource: Annotated[dict[Attribute, Label], Field(max_length=32)] = {}
    """Attributes that all spans are sent with, such as `"deployment.environment.name" = "production"`."""
    max_spans: Annotated[int, Field(ge=512, le=1_000_000)] = 8_192
    """Spans that may wait to be sent, about 1 KiB each; more are dropped and counted."""
    interval_s: Annotated[float, Field(ge=0.01, le=60)] = 2.0
    """A span waits so long at most for others to be sent with."""


class Metrics(_Section):
    """Metrics for Prometheus, which are at `/metrics` on the API's socket in any case."""

    listen: SocketAddress | None = None
    """Address and port (TCP) where they are served as well, such as `127.0.0.1:7430`: to everybody who can connect."""


class NodeConfig(BaseSettings):
    """Everything that can be configured."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
    )

    node: Node = Node()
    """This node."""
    api: Api = Api()
    """Clients."""
    worker_socket: WorkerSocket = WorkerSocket()
    """Workers of this machine."""
    store: Store = Store()
    """The key-value store."""
    log: Log = Log()
    """The write-ahead log."""
    blobs: Blobs = Blobs()
    """Blobs."""
    maintenance: Maintenance = Maintenance()
    """Maintenance."""
    replication: Replication = Replication()
    """Replication."""
    queue: Queue = Queue()
    """What waits."""
    schedules: Schedules = Schedules()
    """What makes jobs by itself."""
    retention: Retention = Retention()
    """What is kept of jobs that have ended."""
    cluster: Cluster = Cluster()
    """Other nodes."""
    raft: Raft = Raft()
    """Consensus."""
    logging: Logging = Logging()
    """The program's own log."""
    workers: Workers = Workers()
    """Workers by type."""
    secrets: Secrets = Secrets()
    """Secrets."""
    tracing: Tracing = Tracing()
    """Spans of jobs."""
    metrics: Metrics = Metrics()
    """Metrics."""

    @property
    def api_socket(self) -> Path:
        return self.api.socket or self.node.run_dir / "api.sock"

    @property
    def worker_socket_path(self) -> Path:
        return self.worker_socket.path or self.node.run_dir / "worker.sock"

    @property
    def log_dir(self) -> Path:
        return self.node.data_dir / "log"

    @property
    def store_dir(self) -> Path:
        return self.node.data_dir / "store"

    @property
    def blobs_dir(self) -> Path:
        return self.node.data_dir / "blobs"


def embedded_defaults(directory: Path) -> dict[str, Any]:
    """Return what takes the place of the defaults when node and workers live in `directory`."""
    return {
        "node": {"data_dir": directory / "data", "run_dir": directory},
        "workers": {
            "shell": {"inputs_dir": directory / "inputs", "roots_dir": directory / "roots"},
            "sql": {"inputs_dir": directory / "inputs", "spill_dir": directory / "spill"},
            "replication": {"scratch_dir": directory / "scratch"},
        },
    }
