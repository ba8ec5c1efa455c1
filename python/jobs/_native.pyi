"""Types of the Rust extension. Every call that touches a disk or a process releases the GIL."""

from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

__version__: Final[str]

# --- errors (all defined by the extension) -------------------------------------------------------------------------

class NativeError(Exception):
    """Base of the extension's errors; the text names the operation, the object and the cause."""

class CorruptError(NativeError):
    """A file fails its checksum or its format where that cannot be a torn tail; names file and offset."""

class DiskFullError(NativeError):
    """No room: ENOSPC, EDQUOT, or the store's configured size. Nothing was changed."""

class PoisonedError(NativeError):
    """An earlier write or fsync failed, so this object refuses everything; reopen it (which re-reads the disk)."""

class CompactedError(NativeError):
    """The revision asked for is older than what is kept."""

class FutureRevisionError(NativeError):
    """This replica has not reached the revision asked for."""

class NotFoundError(NativeError):
    """There is no such blob here."""

class UnavailableError(NativeError):
    """No provider gave the blob."""

class LimitError(NativeError):
    """A documented limit (key, value, operations) is exceeded; names which and by how much."""

# --- failpoints ----------------------------------------------------------------------------------------------------

def failpoint(name: str) -> None:
    """Pass a failpoint. Nothing happens unless it is armed; then the process may end here, or OSError is raised."""

def failpoints() -> list[tuple[str, bool]]:
    """Names of all failpoints, and whether an error can be armed there."""

def arm_failpoints() -> str | None:
    """Arm what the environment's JOBS_FAILPOINTS says and return it; None without. Raises ValueError."""

# --- log -----------------------------------------------------------------------------------------------------------

class Log:
    """Segmented write-ahead log of Raft entries with term and vote. One writer; a lock file refuses a second."""

    def __init__(self, directory: str, *, segment_bytes: int = 64 << 20) -> None: ...
    @staticmethod
    def on(disk: SimDisk, *, segment_bytes: int = 64 << 10) -> Log:
        """Open the log on a simulated disk; for tests."""
    @property
    def recovered(self) -> str | None:
        """What opening cut from a torn tail, in words; None when the log was whole."""
    @property
    def first_index(self) -> int:
        """Index of the oldest entry; last_index + 1 when the log holds none."""
    @property
    def last_index(self) -> int: ...
    @property
    def durable_index(self) -> int:
        """Last index that an fsync has covered."""
    @property
    def size_bytes(self) -> int:
        """Bytes of all records kept."""
    def append(self, index: int, term: int, payload: bytes) -> None:
        """Add the entry after last_index (any index from 1 on when the log is empty). Not durable before `sync`.

        Raises NativeError for a gap, LimitError beyond 64 MiB, DiskFullError when no further segment can be made."""
    def sync(self) -> int:
        """Make every appended entry durable with one fdatasync; return last_index."""
    def get(self, index: int) -> tuple[bytes, int, int] | None:
        """(payload, index, term), the order that PySyncObj's journal uses."""
    def entries(self, index: int, max_count: int, max_bytes: int) -> list[tuple[bytes, int, int]]:
        """Entries from `index` on; at least one if there is one, whatever its size."""
    def term_at(self, index: int) -> int | None: ...
    def truncate_suffix(self, index: int) -> None:
        """Drop `index` and everything after it, durably."""
    def truncate_prefix(self, index: int) -> None:
        """Drop everything before `index` (whole segments are deleted; the rest is skipped), durably. Beyond the end it
        leaves an empty log that goes on at `index`."""
    def hard_state(self) -> tuple[int, str | None]:
        """(term, voted_for)."""
    def set_hard_state(self, term: int, voted_for: str | None) -> None:
        """Persist and fsync before returning."""
    def check(self, index: int, *, max_bytes: int = 8 << 20) -> tuple[int, int]:
        """Read the records from entry `index` on anew from the disk, of one segment and about `max_bytes` of them, and
        verify their checksums; return the entry to go on with, and how many bytes that was: 0 when the disk has no
        entry from `index` on. Writes go on meanwhile. Raises CorruptError naming file and offset."""
    def close(self) -> None: ...

class SimDisk:
    """A disk in memory for tests, which fails on demand and loses, at a power cut, what was not synced: each sector may
    be there, in part, in an earlier version, or not, and so may each change of names. A seed says everything."""

    def __init__(self, seed: int) -> None: ...
    def cut_power(self) -> None:
        """Lose a part of what was not synced. Logs that are open on the disk fail from now on; open them again."""
    def kill(self) -> None:
        """End only the process: nothing is lost. Logs that are open on the disk fail from now on."""
    def fail(self, operation: str | None, fault: str, *, after: int = 0) -> None:
        """Let one operation (create, allocate, write, sync, rename, remove, sync_directory; None: any) meet a fault
        (short, interrupted, eio, enospc, power_cut) when `after` more of the kind have succeeded."""
    def set_full(self, full: bool) -> None:
        """Leave no room for further files, or give it back."""
    def operations(self) -> dict[str, int]:
        """How often each operation was done since the disk was made or last cut."""

# --- key-value store -----------------------------------------------------------------------------------------------

KeyValue = tuple[bytes, bytes, int, int, int, int]
"""(key, value, version, create_revision, mod_revision, lease)"""
Event = tuple[int, bytes, bytes | None, int, int, int]
"""(revision, key, value or None for a delete, version, create_revision, lease)"""
Piece = tuple[bytes, bytes, int, int]
"""(last key, digest, rows, bytes of their keys and values)"""

class Store:
    """MVCC key-value store on LMDB with the applied Raft index in the same transaction.

    A command is `encode_command`'s bytes. Revisions grow by one for each transaction that changes something.
    """

    def __init__(
        self,
        directory: str,
        *,
        max_bytes: int = 64 << 30,
        boot_id: str | None = None,
        generation_requests: int = 250_000,
    ) -> None:
        """Open for writing (one process at a time). After an unclean end of the operating system (not merely of the
        process) the LMDB files are not trusted: the newest valid snapshot in `directory` is restored instead.

        `boot_id` takes the place of the kernel's, for tests of what a power cut leaves. `generation_requests` is how
        many request ids are remembered at least, and half of how many at most; replicas must agree on it, so it is
        another than the default only in tests.
        """
    @property
    def recovered(self) -> str | None: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def applied_term(self) -> int: ...
    @property
    def revision(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...
    @property
    def history_events(self) -> int:
        """Changes that history holds, with those that are still to be given back."""
    @property
    def max_history_events(self) -> int:
        """Bound of them; 0 for none."""
    @property
    def snapshot_index(self) -> int:
        """Raft index of the newest durable snapshot file; the log must be kept from the entry after it."""
    @property
    def snapshot_term(self) -> int:
        """Raft term of that entry."""
    def snapshot_path(self) -> str | None:
        """That file; None without one. A newer snapshot deletes it, but who has it open can go on reading."""
    def install(self, path: str) -> None:
        """Take the content of another member's snapshot file in place of what is here: all or nothing, also at a kill
        or a power cut at any moment, and durable when this returns. The file (on the store's file system) is verified
        whole first, and moved into place as the store's newest snapshot; the log has to go on at the entry after it.

        Raises CorruptError, DiskFullError (both states need room at once), and NativeError unless the snapshot is
        ahead of `applied_index`; nothing has changed then. Watchers of revisions that are gone get CompactedError."""
    def apply(self, entries: list[tuple[int, int, bytes]]) -> list[bytes]:
        """Apply (index, term, command) in order in one LMDB transaction; an entry at or below applied_index is
        skipped with b"". An empty command only advances the index. Returns one `decode_results` input an entry."""
    def get(self, key: bytes, revision: int = 0) -> KeyValue | None: ...
    def range(
        self,
        start: bytes,
        end: bytes,
        *,
        limit: int,
        revision: int = 0,
        reverse: bool = False,
        keys_only: bool = False,
        max_bytes: int = 8 << 20,
    ) -> tuple[list[KeyValue], bool]:
        """Keys in [start, end) and whether there are more. `end` b"" means: only the key `start`."""
    def count(self, start: bytes, end: bytes, *, limit: int) -> int: ...
    def events(
        self, after_revision: int, prefixes: list[bytes], *, limit: int, max_bytes: int = 4 << 20
    ) -> tuple[list[Event], int]:
        """Events with a greater revision on keys with one of the prefixes, whole revisions only (at least one), and
        the revision up to which everything was looked at. Raises CompactedError."""
    def digests(
        self,
        start: bytes,
        end: bytes,
        *,
        cursor: bytes = b"",
        revision: int = 0,
        strip: int = 0,
        content_only: bool = False,
        rows: int = 4096,
        limit: int = 1024,
        max_rows: int = 200_000,
    ) -> tuple[list[Piece], bytes]:
        """BLAKE3 digests of the pieces of [start, end) at a revision, 0 for the newest, and the cursor to go on with:
        b"" at the end of the range.

        A piece ends behind a key whose hash says so, of `rows` rows (a power of two) on average, or at the end of the
        range: ends depend on keys alone, and those of larger pieces are among those of smaller ones. The first `strip`
        bytes of keys do not count; with `content_only` neither do versions, revisions and leases. A call looks at
        `max_rows` keys or 64 MiB at most. It may stop in the middle of a piece, which the cursor then carries: give it
        with the same arguments, and the same revision unless nothing is written meanwhile. A piece is told once it is
        whole; to go on behind a piece without a cursor, start at its last key with b"\\0" added.

        Raises CompactedError, FutureRevisionError, ValueError for a cursor that is none."""
    def recall(self, request_id: bytes) -> bytes | None:
        """What a transaction with this request id did, as the results of a command with it alone; None unless that is
        remembered."""
    def leases(self) -> list[tuple[int, int]]:
        """(id, ttl_ms) of every lease."""
    def lease_keys(self, lease: int) -> list[bytes]: ...
    def snapshot(self) -> int:
        """Write a durable snapshot file (checksummed, renamed into place) of a consistent view, delete older ones,
        return its Raft index. May run on another thread while `apply` goes on."""
    def state_hash(self) -> bytes:
        """BLAKE3 of everything at the current revision; equal on replicas that applied the same entries."""
    def used_bytes(self) -> int: ...
    def file_bytes(self) -> tuple[int, int]:
        """Bytes of the data file on the disk, and bytes in it that hold nothing."""
    def check_rows(self, cursor: bytes = b"", *, max_rows: int = 50_000) -> tuple[int, int, bytes, list[str]]:
        """Verify the checksums of the next rows, of every kind: how many there were, their bytes, the cursor to go on
        with (b"" at the end), and in words what is wrong with those that are not what was written. A call looks at
        64 MiB at most and tells of 100 damaged rows at most. What is written meanwhile may be seen or not."""
    def begin_compaction(self, on_bytes: Callable[[int], object] | None = None) -> Compaction:
        """Copy what the store holds now, into full pages, to a file beside its own; `apply` may go on meanwhile on
        another thread. `on_bytes` is called now and then with how many bytes of rows are copied; what it raises ends
        the copy.

        Raises DiskFullError unless there is ample room, CorruptError for a damaged row, NativeError when there is a
        copy already. Nothing is left of the copy then."""
    @staticmethod
    def check_snapshot_file(path: str) -> int:
        """Read a snapshot file whole and return its number of rows. Raises CorruptError."""
    @staticmethod
    def snapshot_revision(path: str) -> int:
        """Read a snapshot file whole and return the revision that it is of. Raises CorruptError."""
    def close(self) -> None: ...

class Compaction:
    """A compact copy of a store, which is to follow it and take its place."""

    @property
    def applied_index(self) -> int:
        """Entry that the copy stands at."""
    def apply(self, entries: list[tuple[int, int, bytes]]) -> None:
        """Apply (index, term, command) in order: what the store has applied, from after `applied_index` on."""
    def finish(self) -> bool:
        """Let the copy be the store's data file, unless it stands elsewhere than the store: then nothing has changed,
        and the answer is False; for good once a snapshot was taken in. Takes moments. Who reads the former file goes on
        with it, and in another process looks at the new one with the next snapshot."""
    def close(self) -> None:
        """Remove what is not the store's data file: the copy, or the file whose place it has taken."""

class StoreReader:
    """Read-only view for other processes, of the directory of a live or closed Store."""

    def __init__(self, directory: str) -> None: ...
    def snapshot_revision(self) -> int: ...
    def get(self, key: bytes) -> KeyValue | None: ...
    def range(
        self, start: bytes, end: bytes, *, limit: int, reverse: bool = False, max_bytes: int = 8 << 20
    ) -> tuple[list[KeyValue], bool, int]:
        """Rows, whether there are more, and the revision they are of."""
    def close(self) -> None: ...

class MemoryStore:
    """The same state machine over memory; no files. Methods as in `Store`."""

    def __init__(self, *, generation_requests: int = 250_000) -> None: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def applied_term(self) -> int: ...
    @property
    def revision(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...
    @property
    def history_events(self) -> int:
        """Changes that history holds, with those that are still to be given back."""
    @property
    def max_history_events(self) -> int:
        """Bound of them; 0 for none."""
    def apply(self, entries: list[tuple[int, int, bytes]]) -> list[bytes]: ...
    def export(self) -> bytes:
        """Return everything in the form of a snapshot file."""
    def install(self, data: bytes) -> None:
        """Take a snapshot's content in place of what is here, as `Store.install` does."""
    def get(self, key: bytes, revision: int = 0) -> KeyValue | None: ...
    def range(
        self,
        start: bytes,
        end: bytes,
        *,
        limit: int,
        revision: int = 0,
        reverse: bool = False,
        keys_only: bool = False,
        max_bytes: int = 8 << 20,
    ) -> tuple[list[KeyValue], bool]: ...
    def count(self, start: bytes, end: bytes, *, limit: int) -> int: ...
    def events(
        self, after_revision: int, prefixes: list[bytes], *, limit: int, max_bytes: int = 4 << 20
    ) -> tuple[list[Event], int]: ...
    def digests(
        self,
        start: bytes,
        end: bytes,
        *,
        cursor: bytes = b"",
        revision: int = 0,
        strip: int = 0,
        content_only: bool = False,
        rows: int = 4096,
        limit: int = 1024,
        max_rows: int = 200_000,
    ) -> tuple[list[Piece], bytes]: ...
    def recall(self, request_id: bytes) -> bytes | None: ...
    def leases(self) -> list[tuple[int, int]]: ...
    def lease_keys(self, lease: int) -> list[bytes]: ...
    def state_hash(self) -> bytes: ...
    def used_bytes(self) -> int: ...

# --- SQL -----------------------------------------------------------------------------------------------------------

SQL_TABLES: Final[tuple[str, ...]]
"""Names of the tables of records, for `SqlSnapshot.table`."""

class SqlError(ValueError):
    """A text is no SQL, or too much of it."""

    line: int
    """From 1 on; 0 where it is not known."""
    column: int

class SqlSnapshot:
    """One revision of a store's directory, for queries, while another process may be writing. Thread-safe.

    As long as one is open, the writer cannot use the pages again that it may see: close it when the query is done.
    Several can be open in one process, but none beside a `Store` or a `StoreReader` of the same directory."""

    def __init__(self, directory: str, *, revision: int = 0) -> None:
        """See the store as of a revision, 0 for the newest. Raises CompactedError and FutureRevisionError."""
    @property
    def revision(self) -> int: ...
    @property
    def bytes_read(self) -> int:
        """Bytes that scans have looked at: of keys, and of values as far as they were needed."""
    @property
    def rows_read(self) -> int:
        """Keys that scans have looked at."""
    @property
    def rows_expected(self) -> int:
        """About how many keys there are in the scans that have begun."""
    def get(self, key: bytes) -> bytes | None:
        """The value of any key: who may read it is the caller's to decide."""
    def scan(self, prefix: bytes, *, limit: int) -> list[tuple[bytes, bytes, int]]:
        """(key, value, mod_revision) of the first keys with a prefix; as `get`."""
    def table(self, name: str, *, owner: int | None) -> SqlTable:
        """A table as the user with a uid sees it, or with None an administrator, who sees everything."""
    def user_table(self, definition_json: str, *, owner: int | None) -> SqlTable:
        """A table over values under `/data/` (docs/sql.md). Raises ValueError, which says what is wrong with it."""
    def know_leases(self, at_ms: int, ends_ms: dict[int, int]) -> None:
        """Be told when leases run out, as it was known at a moment: `kv.expires_at` is NULL without."""
    def close(self) -> None:
        """Let go of the store. Scans that run fail at their next step, a few milliseconds later; again: nothing."""

class SqlTable:
    """A table for `datafusion.SessionContext.register_table`."""

    @property
    def schema(self) -> SqlSchema: ...
    def __datafusion_table_provider__(self, session: object) -> object: ...

class SqlSchema:
    """For `pyarrow.schema`."""

    def __arrow_c_schema__(self) -> object: ...

def sql_parse(text: str) -> list[dict[str, Any]]:
    """The statements of a text, by DataFusion's parser. Raises SqlError. Every one has `kind`, its `text`, the `tables`
    and `table_functions` that it names, and its `parameters` (`$1`). By kind it also has:

    query, show             nothing
    explain                 analyze, inner (a statement)
    insert                  target, columns, source (text of a query), overwrite
    create_table_as         target, query (text), or_replace, if_not_exists
    create_external_table   name, columns (name, type, nullable), format (in capitals), locations, options,
                            partition_columns, or_replace, if_not_exists
    drop_table              name, if_exists
    other                   what (its first words)

    Names are as the engine looks for them: in small letters unless quoted, parts joined by dots."""

def sql_record_fields() -> list[tuple[str, list[str], list[str]]]:
    """(table, fields of the record behind it in order, those of them that have no column); for tests."""

# --- sandbox -------------------------------------------------------------------------------------------------------

def launcher_program() -> bytes:
    """The launcher, an executable file: `jobs-launcher CONTROL_FD NAME` (see `jobs.workers.sandbox.Launcher`)."""

def give_up_capabilities() -> None:
    """Give up every capability of this thread, and of those that it starts; root keeps its own. Raises RuntimeError."""

def sandbox_probe() -> list[tuple[str, bool, bool, str]]:
    """What the sandbox needs of this host: (feature, present, required by level `strict`, why or how, in words)."""

def confine(*, identity: int | None, memory_bytes: int, file_bytes: int, cpu_s: int) -> None:
    """Leave this process, of one thread, nothing but its working directory, which becomes its root, and what is open.

    `identity` is the uid and gid to become, for a process of root's. It ends with the thread that has started it.
    Raises RuntimeError; then it must not go on.
    """

# --- transport -----------------------------------------------------------------------------------------------------

NetEvent = tuple[str, str, int, bytes, str, str, int]
"""(what, peer, number, body, text, detail, extra); what each `what` means by the others:

up               messages to the peer are sent from now on. text: its name
down             messages to the peer are dropped from now on. detail: why
refused          somebody was refused. peer: what is known of them; text: kind (a counter `refused_KIND` counts all of
                 them, or `by_peer`: the peer refused this node); detail: why; extra: left out since the last one told
message          body
request          number; body; extra: milliseconds that the caller waits
request_gone     nobody waits for the answer any more. number; detail: why
answer           to an own request. number; body
failure          of an own request. number; text: unreachable, refused, timeout, too_large, closed, or failed;
                 detail: why; extra: 1 when it may have been carried out
stream           a peer opened a stream. number; body: its header
stream_data      number; body
stream_end       the peer has finished its side. number
stream_writable  there is room again for what is written. number
stream_closed    both sides have finished, and all that was written has reached the peer. number
stream_broken    over before its end. number; text: unreachable, refused, busy (so far the peer's application knows
                 nothing of it), reset (by the peer), stalled, closed (the connection is lost); detail: why
"""

class UnknownPeerError(NativeError):
    """The peer is not on the allowlist."""

class Endpoint:
    """A node's endpoint for the other nodes of its cluster: QUIC between keys that know each other.

    No call waits for the network and nothing calls back: what comes is taken with `receive`, and the descriptor of
    `fileno` is readable while something waits. Thread-safe."""

    def __init__(
        self, key_file: str, *, bind: list[str], cluster: str, node: str, limits: dict[str, int] | None = None
    ) -> None:
        """Bind (IP:PORT, at most one of IPv4 and one of IPv6) and take connections from the first `set_peers` on.

        The key file is made when it is absent, and refused when others could use it. Limits: rust/net/src/config.rs."""
    @staticmethod
    def generate_key() -> tuple[str, str]:
        """Make a key that is in no file; return the secret, as a key file has it, and its endpoint id."""

    @property
    def id(self) -> str:
        """Public key, in hexadecimal."""
    @property
    def addresses(self) -> list[str]:
        """What is bound."""
    def fileno(self) -> int: ...
    def receive(self, max_count: int = 1024) -> list[NetEvent]: ...
    def set_peers(
        self,
        peers: list[tuple[str, list[str]]],
        guests: list[str] = ...,
        foreign: list[tuple[str, str, list[str]]] = ...,
    ) -> None:
        """Replace the allowlist: (id, addresses). Who is not on it any more is cut off before this returns.

        Those among them who are guests have no connections for blobs. Foreign peers, (id, cluster, addresses), are of
        another cluster: they have neither messages nor blobs, and are dialled when something is asked of them."""
    def peers(self) -> list[tuple[str, str, bool, int, int]]:
        """(id, name, up, bytes of messages that wait, requests not answered)."""
    def counters(self) -> dict[str, int]: ...
    def send(self, peer: str, message: bytes) -> bool:
        """Send after the messages before it. False: dropped, since the peer is not up or its queue is full."""
    def send_urgent(self, peer: str, message: bytes) -> bool:
        """Send at most 1 KiB before all that waits to be sent, in no order with it. False: dropped."""
    def request(self, peer: str, body: bytes, wait_ms: int) -> int:
        """Begin a request; one event with its number follows, `answer` or `failure`. LimitError: nothing was done."""
    def cancel(self, number: int) -> bool | None:
        """Give up a request; no event follows. Whether it may have been carried out; None when it has ended."""
    def respond(self, number: int, answer: bytes) -> bool:
        """False when nobody waits any more. LimitError when it is too long; it can then be declined."""
    def decline(self, number: int, reason: str, *, maybe_done: bool = False) -> bool: ...
    def stream_open(self, peer: str, header: bytes) -> int:
        """Open a stream; its number. It can be written to at once."""
    def stream_write(self, number: int, data: bytes) -> bool:
        """False: there is no room, give it again after `stream_writable`. At most 64 KiB always fit in the end."""
    def stream_finish(self, number: int) -> None:
        """Nothing more is written; the peer's side goes on."""
    def stream_consumed(self, number: int, size_bytes: int) -> None:
        """So many bytes that came were used: there is room for more. Nothing once the stream is over."""
    def stream_reset(self, number: int) -> bool:
        """Give it up, both ways; no event follows. False: it is over."""
    def close(self) -> None:
        """Close all connections and join all threads; again: nothing. Waits up to 4 s for peers."""

class Blake3:
    """A BLAKE3 hash that is fed in parts."""

    def __init__(self) -> None: ...
    def update(self, data: bytes) -> None: ...
    def digest(self) -> bytes:
        """Of what was fed so far."""

# --- blobs -----------------------------------------------------------------------------------------------------------

BlobEvent: TypeAlias = tuple[int, str, int, int, int, int, str, list[tuple[str, int, str]]]
"""(fetch, what, bytes, bytes of all, blobs, blobs of all, text, providers). What: progress; done; or a kind of error,
with its text. Providers: (id, verified bytes that came from it, why it was left behind or "")."""

class Blobs:
    """A node's blobs: files named by their BLAKE3 hashes (64 digits 0-9a-f), and their exchange with members.

    Calls wait for the disk, the ones about fetches apart: what becomes of these is taken with `receive`, and the
    descriptor of `fileno` is readable while something waits. What is read is verified; what is added is on the disk
    when its hash is told. Thread-safe."""

    def __init__(self, directory: str, *, min_free_bytes: int | None = None) -> None:
        """Open the store, made when it is absent; one process at a time. Blobs leave so many bytes of the disk free."""
    def join(self, endpoint: Endpoint) -> None:
        """Serve the members that the endpoint knows, and fetch from them."""
    def add(self) -> BlobWriter:
        """Begin a blob. DiskFullError when there is no room."""
    def open(self, blob: str) -> BlobReader:
        """Hold a blob open: it is not deleted. NotFoundError; CorruptError when it was damaged, and was put aside."""
    def stat(self, blob: str) -> tuple[int, int] | None:
        """(bytes, when it last came in ms of Unix time)."""
    def page(self, after: str | None = None, *, max_count: int = 1_000) -> list[tuple[str, int, int]]:
        """(hash, bytes, when it last came), in the order of the hashes."""
    def delete(self, blob: str, *, min_age_ms: int = 0) -> tuple[Literal["deleted", "missing", "held", "recent"], int]:
        """Delete unless it is read or fetched (held), or came within this time (recent); bytes freed."""
    def verify(self, blob: str) -> Literal["sound", "mended", "damaged", "missing"]:
        """Hash it anew; put it aside when it is damaged, so that a fetch mends it."""
    def partials(self) -> list[tuple[str, int, int, int]]:
        """(hash, bytes of the whole, bytes on the disk, when something last came) of unfinished fetches."""
    def discard_partials(self, *, min_age_ms: int = 0) -> int:
        """Remove those to which nothing has come within this time; bytes freed."""
    def usage(self) -> dict[str, int]:
        """blobs, bytes, tree_bytes, partial_bytes, quarantined, damages (since the start), free_bytes (that blobs may
        still use), disk_bytes."""
    def fetch(
        self,
        blob: str,
        providers: list[str],
        *,
        children: bool = False,
        max_bytes: int = ...,
        stall_ms: int = 10_000,
        min_bytes_per_s: int = ...,
        window_ms: int = 10_000,
    ) -> int:
        """Begin to fetch from these, the best first, and the blobs whose hashes it holds if `children`; its number.

        A provider from which nothing comes for `stall_ms` is left behind, and one slower than this within a window
        while there are others. LimitError: too many are under way."""
    def cancel(self, number: int) -> bool:
        """Give up a fetch; no event follows. False: it has ended."""
    def fileno(self) -> int: ...
    def receive(self) -> list[BlobEvent]: ...
    def close(self) -> None:
        """End all fetches and answers and join the threads; again: nothing."""

class BlobWriter:
    """A blob that comes. Nothing of it is kept unless `finish` returns."""

    def write(self, data: bytes) -> None: ...
    def finish(self) -> tuple[str, int, bool]:
        """(hash, bytes, whether it was here before). It is on the disk."""
    def abandon(self) -> None: ...

class BlobReader:
    """A blob that is held open."""

    @property
    def size(self) -> int: ...
    def read(self, offset: int, max_bytes: int) -> bytes:
        """At most 4 MiB; b"" at the end. CorruptError: they do not match the hash, and the blob was put aside."""
    def close(self) -> None: ...
