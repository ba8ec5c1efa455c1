"""What the types alone cannot say of a submission: pure checks that name the field and what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

import msgspec
from msgspec.structs import replace

from jobs.content import content_bytes
from jobs.destinations import parse_destination
from jobs.errors import Forbidden, InvalidRequest, PayloadTooLarge
from jobs.protocol.ids import MAX_TASKS, is_job_id
from jobs.protocol.model import (
    CREDENTIAL,
    MAX_ITEM_BYTES,
    MAX_OUTPUT_PATH_BYTES,
    AddFrom,
    ArraySpec,
    BlobAdd,
    BlobExport,
    BlobFetch,
    BlobGc,
    BlobJob,
    BlobPayload,
    BlobReplicate,
    BlobVerify,
    Content,
    InputFile,
    JobSubmit,
    MaintenanceCleanup,
    MaintenanceCompact,
    MaintenanceHealth,
    MaintenanceJob,
    MaintenanceMetrics,
    MaintenancePayload,
    MaintenanceVerify,
    ReplicationJob,
    ReplicationPayload,
    ReplicationRestore,
    ReplicationSync,
    ReplicationVerify,
    RootImage,
    ShellJob,
    ShellPayload,
    SqlJob,
    SqlPayload,
    tag_of,
)
from jobs.protocol.model.base import MAX_LABELS
from jobs.protocol.model.maintenance import SOLE_KEY

MAX_SPEC_BYTES: Final = (1 << 20) - 1
"""A job as submitted is one value of the store, less its version byte."""
MAX_ARGV_BYTES: Final = 128 << 10
"""The kernel's limit for one argument (MAX_ARG_STRLEN); the sum has to fit a quarter of the stack as well."""
MAX_LIST_BYTES: Final = 32 << 20
"""Of all items of an array together, each with an end of line: one transaction stores them."""
_CHUNK_BYTES: Final = 32 << 10
_MAX_CHUNKS: Final = 400
REFERENCE_OPERATIONS: Final = 2
"""What it takes to store that something refers to a blob."""
MAX_OUTPUT_DEPTH: Final = 64
JOB_DIR: Final = PurePosixPath("/work")
NODE_DIR: Final = PurePosixPath(".jobs")
"""Below the job's directory: what the node adds."""
MAX_PATH_BYTES: Final = 4_095
MAX_NAME_BYTES: Final = 255
"""The kernel's limits for a path, and for each of its parts."""
_encode_lines: Final = msgspec.json.Encoder().encode_lines


def check_job(job: JobSubmit, where: str = "$") -> None:
    """Raise InvalidRequest when the job could never run as it is."""
    if isinstance(job, SqlJob):
        _check_no_command(job, "a query", where)
        check_sql(job.payload, f"{where}.payload")
    elif isinstance(job, BlobJob):
        _check_no_command(job, "an operation on blobs", where)
        check_blob(job.payload, f"{where}.payload")
    elif isinstance(job, MaintenanceJob):
        _check_no_command(job, "an operation of maintenance", where)
        check_maintenance(job.payload, f"{where}.payload")
    elif isinstance(job, ReplicationJob):
        _check_no_command(job, "an operation of replication", where)
        check_replication(job.payload, f"{where}.payload")
    else:
        check_shell(job.payload, f"{where}.payload")
        _check_root_label(job, where)
    if job.array is not None:
        _check_array(job, job.array, f"{where}.array")
    kept = job.retention
    if kept.keep_s is not None and kept.logs_s is not None and kept.logs_s > kept.keep_s:
        raise InvalidRequest(
            f"the output is to be kept for {kept.logs_s:g} s, the job only for {kept.keep_s:g} s",
            field=f"{where}.retention.logs_s",
            expected="no more than keep_s: output goes with its job",
        )
    key = job.concurrency_key
    if key is not None and key.startswith(SOLE_KEY) and not isinstance(job, MaintenanceJob):
        raise InvalidRequest(
            f"keys that begin with {SOLE_KEY} are those of jobs of type maintenance",
            field=f"{where}.concurrency_key",
            expected="another one",
        )
    if job.deadline_ms is not None and job.not_before_ms is not None and job.deadline_ms <= job.not_before_ms:
        raise InvalidRequest(
            "the deadline has passed when the job may run", field=f"{where}.deadline_ms", expected="after not_before_ms"
        )
    if job.ref is not None and is_job_id(job.ref):
        raise InvalidRequest(f"{job.ref!r} is a job's id", field=f"{where}.ref", expected="a name that is none")


def _check_root_label(job: ShellJob, where: str) -> None:
    if isinstance(job.payload.root, str) and len(job.requires.labels) == MAX_LABELS:
        raise InvalidRequest(
            f"{MAX_LABELS} labels and a root image by name, which is one more",
            field=f"{where}.requires.labels",
            expected=f"at most {MAX_LABELS - 1}",
        )


def _check_array(job: JobSubmit, array: ArraySpec, where: str) -> None:
    if sum(given is not None for given in (array.range, array.lines, array.items)) != 1:
        raise InvalidRequest("none or several of range, lines and items are given", field=where, expected="exactly one")
    if not 1 <= array_size(array) <= MAX_TASKS:
        raise InvalidRequest(
            f"the range has {array_size(array)} numbers", field=f"{where}.range", expected=f"1 to {MAX_TASKS}"
        )
    if array.max_running is not None and job.concurrency_key is not None:
        raise InvalidRequest(
            "the job has a concurrency key, whose limit holds for its tasks",
            field=f"{where}.max_running",
            expected="either this or concurrency_key",
        )


def array_size(array: ArraySpec) -> int:
    """Return how many tasks an array has."""
    if array.range is not None:
        return len(range(array.range.start, array.range.stop, array.range.step))
    return len(array.lines or array.items or ())


def array_items(array: ArraySpec, where: str = "$.array") -> bytes | None:
    """Return the items of a list, one a line; None for a range.

    Raises InvalidRequest for one that no task can be given, PayloadTooLarge for too much in all.

    All of them are looked at together, as a million of them one by one would hold up the node.
    """
    if array.lines is not None:
        try:
            data = "\n".join(array.lines).encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"not valid Unicode: {error}", field=f"{where}.lines", expected="UTF-8") from error
        name, count = f"{where}.lines", len(array.lines)
    elif array.items is not None:
        data = _encode_lines(array.items)[:-1]
        name, count = f"{where}.items", len(array.items)
    else:
        return None
    if b"\x00" in data or data.count(b"\n") != count - 1:
        wrong = next(n for n, line in enumerate(array.lines or ()) if "\n" in line or "\x00" in line)
        raise InvalidRequest(
            "the line holds an end of line or a zero byte", field=f"{name}[{wrong}]", expected="neither of them"
        )
    if len(data) > MAX_LIST_BYTES:
        raise PayloadTooLarge(
            f"the list has {len(data)} bytes", field=name, expected=f"at most {MAX_LIST_BYTES} bytes in all"
        )
    start = _too_long(data)
    if start is not None:
        index = data.count(b"\n", 0, start)
        raise InvalidRequest(
            f"the item has more than {MAX_ITEM_BYTES} bytes",
            field=f"{name}[{index}]",
            expected=f"at most {MAX_ITEM_BYTES} bytes",
        )
    return data


def _too_long(listed: bytes) -> int | None:
    """Return where the first item begins that is too long, if there is one; steps from end to end of many items."""
    start = 0
    while len(listed) - start > MAX_ITEM_BYTES:
        end = listed.rfind(b"\n", start, start + MAX_ITEM_BYTES + 1)
        if end < 0:
            return start
        start = end + 1
    return None


def check_deadline(job: JobSubmit, now_ms: int, where: str = "$") -> None:
    """Raise InvalidRequest when the job would fail at once because its deadline has passed."""
    if job.deadline_ms is not None and job.deadline_ms <= now_ms:
        raise InvalidRequest("the deadline has passed", field=f"{where}.deadline_ms", expected=f"after {now_ms}")


def operations_of(job: JobSubmit) -> int:
    """Return how many operations of a transaction storing the job takes at most."""
    timer = job.not_before_ms is not None or job.deadline_ms is not None
    # Spec, state, place in the queue, idempotency key; for a parent an edge, and a change of one that is there already;
    # for a blob the reference to it, and when it was made.
    count = 4 + timer + (job.unique_key is not None) + bool(job.depends_on) + 2 * len(job.depends_on)
    count += REFERENCE_OPERATIONS * len(named_blobs(job))
    if job.array is not None:
        # Its place among those that go on, what makes its tasks, and a list: two chunks together are more than full.
        listed = array_items(job.array) or b""
        count += 3 + 2 * len(listed) // item_chunk_bytes(len(listed))
    return count


def item_chunk_bytes(list_bytes: int) -> int:
    """Return how much of a list one value of the store holds, unless a single item is larger."""
    return max(_CHUNK_BYTES, -(-list_bytes // _MAX_CHUNKS))


def without_list(job: JobSubmit) -> JobSubmit:
    """Return the job as it is stored: the list that an array is made from stands in chunks of its own."""
    return job if job.array is None else replace(job, array=replace(job.array, lines=None, items=None))


def check_spec_size(size_bytes: int, where: str = "$") -> None:
    """Raise PayloadTooLarge when the encoded job does not fit the store."""
    if size_bytes > MAX_SPEC_BYTES:
        raise PayloadTooLarge(
            f"the job takes {size_bytes} bytes as JSON",
            field=where,
            expected=f"at most {MAX_SPEC_BYTES} bytes, files and stdin included",
        )


def check_shell(payload: ShellPayload, where: str) -> None:
    """Raise InvalidRequest when a shell job's payload could never run as it is."""
    if (payload.argv is None) == (payload.script is None):
        raise InvalidRequest("neither or both of argv and script are given", field=where, expected="exactly one")
    for index, argument in enumerate(payload.argv or ()):
        _check_text(argument, f"{where}.argv[{index}]")
    if payload.argv is not None and not payload.argv[0]:
        raise InvalidRequest("the command is empty", field=f"{where}.argv[0]", expected="a program's name or path")
    for name, value in payload.env.items():
        if not name or "=" in name:
            raise InvalidRequest(
                f"{name!r} is no name of a variable", field=f"{where}.env", expected="a name without ="
            )
        _check_text(name, f"{where}.env")
        _check_text(value, f"{where}.env[{name!r}]")
    if payload.cwd is not None:
        _check_text(payload.cwd, f"{where}.cwd")
        if ".." in PurePosixPath(payload.cwd).parts:
            raise InvalidRequest("the directory holds ..", field=f"{where}.cwd", expected="a path without ..")
    if payload.stdin is not None:
        content_bytes(payload.stdin, f"{where}.stdin")
    _check_connect(payload, where)
    _check_files(payload, where)
    for index, pattern in enumerate(payload.outputs):
        _check_output(pattern, f"{where}.outputs[{index}]")


def _check_connect(payload: ShellPayload, where: str) -> None:
    if payload.connect and payload.network == "host":
        raise InvalidRequest(
            "the network of the host reaches everything", field=f"{where}.connect", expected="none beside network: host"
        )
    seen = set()
    for index, text in enumerate(payload.connect):
        try:
            destination = parse_destination(text)
        except ValueError as error:
            raise InvalidRequest(str(error), field=f"{where}.connect[{index}]", expected="ADDRESS:PORT") from error
        if destination in seen:
            raise InvalidRequest(f"{text} is there twice", field=f"{where}.connect[{index}]", expected="each once")
        seen.add(destination)


def _check_file(file: InputFile, field: str) -> None:
    if file.blob is None:
        content_bytes(file, field)
    elif file.text is not None or file.base64 is not None:
        raise InvalidRequest("both a blob and a content are given", field=field, expected="exactly one")


def _check_output(pattern: str, where: str) -> None:
    parts = pattern.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidRequest(
            f"{pattern!r} names no file of the job's", field=where, expected=f"a relative path below {JOB_DIR}"
        )
    if parts[0] == str(NODE_DIR):
        raise InvalidRequest(f"{NODE_DIR} holds what the node adds", field=where, expected="another path")
    if len(parts) > MAX_OUTPUT_DEPTH:
        raise InvalidRequest(
            f"the path has {len(parts)} parts", field=where, expected=f"at most {MAX_OUTPUT_DEPTH} directories"
        )
    if any("**" in part and part != "**" for part in parts):
        raise InvalidRequest("** stands beside something else", field=where, expected="** between two slashes")
    if _check_text(pattern, where) > MAX_OUTPUT_PATH_BYTES or any(len(part.encode()) > 255 for part in parts):
        raise InvalidRequest(
            "the path is too long", field=where, expected=f"at most 255 bytes a part, {MAX_OUTPUT_PATH_BYTES} in all"
        )


def named_blobs(job: JobSubmit, where: str = "$") -> dict[str, str]:
    """Return the blobs that a job names and that are to stay for it, each with the field that names it first."""
    found: dict[str, str] = {}
    if isinstance(job, BlobJob):
        match job.payload:
            # One that waits for others may name what these are to add; what is only looked at is not kept.
            case BlobFetch(hash=str(blob)) | BlobReplicate(hash=blob) | BlobExport(hash=blob) if not job.depends_on:
                found[blob] = f"{where}.payload.hash"
        return found
    if isinstance(job, MaintenanceJob | ReplicationJob):
        return found
    if isinstance(job, ShellJob):
        if isinstance(job.payload.root, RootImage):
            found[job.payload.root.blob] = f"{where}.payload.root.blob"
        files = {f"[{path!r}]": file for path, file in job.payload.files.items()}
    else:
        files = {f"[{name!r}].content": file.content for name, file in job.payload.files.items()}
    for place, file in files.items():
        if file.blob is not None:
            found.setdefault(file.blob, f"{where}.payload.files{place}.blob")
    return found


def named_secrets(job: JobSubmit, where: str = "$") -> dict[str, str]:
    """Return the secrets of its owner's that a job names, each with the field that names it first."""
    found: dict[str, str] = {}
    if isinstance(job, ShellJob):
        for file, name in job.payload.secrets.items():
            if not name.startswith(CREDENTIAL):
                found.setdefault(name, f"{where}.payload.secrets[{file!r}]")
    return found


def _check_no_command(job: SqlJob | BlobJob | MaintenanceJob | ReplicationJob, what: str, where: str) -> None:
    """Raise InvalidRequest for what only a command can have."""
    if job.array is not None:
        raise InvalidRequest(f"{what} has no tasks", field=f"{where}.array", expected="a job of type shell")
    if job.heartbeat_s is not None:
        raise InvalidRequest(
            f"{what} does not tell that it is alive", field=f"{where}.heartbeat_s", expected="timeout_s"
        )


def check_sql(payload: SqlPayload, where: str) -> None:
    """Raise InvalidRequest when a query's payload could never run as it is."""
    if not payload.sql.strip():
        raise InvalidRequest("the statement is empty", field=f"{where}.sql", expected="a statement of SQL")
    _check_unicode(payload.sql, f"{where}.sql")
    if "\x00" in payload.sql:
        raise InvalidRequest(
            "the statement holds a zero byte", field=f"{where}.sql", expected="text without zero bytes"
        )
    if payload.revision is not None and payload.consistency == "stale":
        raise InvalidRequest(
            "a revision says what is read", field=f"{where}.consistency", expected="no stale beside it"
        )
    given = payload.parameters
    for name, value in given.items() if isinstance(given, dict) else enumerate(given):
        field = f"{where}.parameters[{name!r}]"
        if isinstance(value, str):
            _check_unicode(value, field)
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            raise InvalidRequest(f"{value} is too large", field=field, expected="an integer of 64 bits, or text")
    seen: dict[str, str] = {}
    for name, file in payload.files.items():
        field = f"{where}.files[{name!r}]"
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise InvalidRequest(f"{name} and {other} are one name to SQL", field=field, expected="different names")
        _check_file(file.content, f"{field}.content")


def check_blob(payload: BlobPayload, where: str) -> None:
    """Raise InvalidRequest when an operation on blobs could never be carried out as it is."""
    match payload:
        case BlobAdd(source=source):
            _check_source(source, f"{where}.source")
        case BlobFetch(hash=blob, ticket=ticket, providers=providers):
            if (blob is None) == (ticket is None):
                raise InvalidRequest(
                    "neither or both of hash and ticket are given", field=where, expected="exactly one"
                )
            if ticket is not None:
                from jobs.blobs.tickets import decode_ticket  # the package has more than commands should load

                decode_ticket(ticket, f"{where}.ticket")
            _check_distinct(providers, f"{where}.providers")
        case BlobReplicate(replicas=replicas, nodes=nodes):
            if (replicas is None) == (not nodes):
                raise InvalidRequest(
                    "neither or both of replicas and nodes are given", field=where, expected="exactly one"
                )
            _check_distinct(nodes, f"{where}.nodes")
        case BlobExport(file=file):
            _check_path(file, f"{where}.file")
        case _:
            pass


def check_maintenance(payload: MaintenancePayload, where: str) -> None:
    """Raise InvalidRequest when an operation of maintenance could never be carried out as it is."""
    match payload:
        case MaintenanceCompact(parts=parts, nodes=nodes) | MaintenanceVerify(parts=parts, nodes=nodes):
            _check_distinct(parts, f"{where}.parts")
            _check_distinct(nodes, f"{where}.nodes")
        case MaintenanceCleanup(parts=parts):
            _check_distinct(parts, f"{where}.parts")
        case MaintenanceHealth(nodes=nodes):
            _check_distinct(nodes, f"{where}.nodes")
        case MaintenanceMetrics(from_ms=from_ms, to_ms=to_ms):
            if from_ms is not None and to_ms is not None and to_ms <= from_ms:
                raise InvalidRequest("it ends before it begins", field=f"{where}.to_ms", expected="later than from_ms")


def check_replication(payload: ReplicationPayload, where: str) -> None:
    """Raise InvalidRequest when an operation of replication could never be carried out as it is."""
    match payload:
        case ReplicationSync() | ReplicationVerify():
            _check_ends(payload, where)
        case _:
            if (payload.directory is None) == (payload.tag is None):
                raise InvalidRequest(
                    "neither or both of directory and tag are given", field=where, expected="exactly one"
                )
            if payload.directory is not None:
                _check_path(payload.directory, f"{where}.directory")
    if isinstance(payload, ReplicationRestore) and payload.revision is not None and payload.at_ms is not None:
        raise InvalidRequest("both revision and at_ms are given", field=f"{where}.at_ms", expected="one at most")


def _check_ends(payload: ReplicationSync | ReplicationVerify, where: str) -> None:
    if (payload.prefix is None) == (payload.tags is None):
        raise InvalidRequest("neither or both of prefix and tags are given", field=where, expected="exactly one")
    if payload.source is not None and payload.source == payload.target:
        raise InvalidRequest(
            "both sides are the same cluster", field=f"{where}.target", expected="another one, or none: this cluster"
        )
    if payload.tags is not None and payload.target_prefix is not None:
        raise InvalidRequest("tags keep their names", field=f"{where}.target_prefix", expected="none with tags")
    if payload.source is None and payload.target is None:
        prefix, target = payload.prefix, payload.target_prefix
        if prefix is None or target is None:
            raise InvalidRequest(
                "within one cluster there is nothing to do", field=where, expected="prefix and target_prefix"
            )
        if prefix.startswith(target) or target.startswith(prefix):
            raise InvalidRequest(
                f"{target} and {prefix} overlap", field=f"{where}.target_prefix", expected="a range apart"
            )


def check_allowed(job: JobSubmit, where: str, *, admin: bool) -> None:
    """Raise Forbidden for what only administrators may have done."""
    if not admin and isinstance(job, MaintenanceJob | ReplicationJob):
        raise Forbidden(
            f"only administrators may submit jobs of type {tag_of(job)}",
            field=f"{where}.type",
            expected="a member of the admin group",
        )
    if admin or not isinstance(job, BlobJob):
        return
    match job.payload:
        case BlobGc():
            what = "collect what nothing refers to"
        case BlobVerify(hash=None):
            what = "have all blobs verified"
        case BlobAdd(source=AddFrom(snapshot=True)):
            what = "add a snapshot of the store"
        case _:
            return
    raise Forbidden(f"only administrators may {what}", field=f"{where}.payload", expected="a member of the admin group")


def _check_source(source: AddFrom, where: str) -> None:
    given = (source.text, source.base64, source.file, source.job, source.snapshot or None)
    if sum(one is not None for one in given) != 1:
        raise InvalidRequest(
            "none or several of text, base64, file, job and snapshot are given", field=where, expected="exactly one"
        )
    if source.stream != "stdout" and source.job is None:
        raise InvalidRequest("there is no job whose output it is", field=f"{where}.stream", expected="job beside it")
    if source.file is not None:
        _check_path(source.file, f"{where}.file")
    elif source.job is not None:
        if not is_job_id(source.job):
            raise InvalidRequest(
                f"{source.job!r:.200} is no job id", field=f"{where}.job", expected="a UUIDv7 in lower case"
            )
    elif not source.snapshot:
        content_bytes(Content(text=source.text, base64=source.base64), where)


def _check_path(path: str, where: str) -> None:
    """Raise InvalidRequest for what names no file or directory of a worker's machine."""
    parts = PurePosixPath(path).parts
    if parts[:1] != ("/",) or len(parts) < 2 or ".." in parts:
        raise InvalidRequest(f"{path!r:.200} is no place", field=where, expected="an absolute path, without ..")
    size = _check_text(path, where)
    if size > MAX_PATH_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        raise InvalidRequest(
            "the path is too long",
            field=where,
            expected=f"at most {MAX_NAME_BYTES} bytes a part, {MAX_PATH_BYTES} in all",
        )


def _check_distinct(names: Sequence[str], where: str) -> None:
    if len(set(names)) < len(names):
        raise InvalidRequest("something is named twice", field=where, expected="each once")


def _check_files(payload: ShellPayload, where: str) -> None:
    seen: set[PurePosixPath] = set()
    for name, content in payload.files.items():
        field = f"{where}.files[{name!r}]"
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or not path.parts or name.endswith("/"):
            raise InvalidRequest(
                f"{name!r} is no place for a file", field=field, expected=f"a relative path below {JOB_DIR}, without .."
            )
        if path.parts[0] == str(NODE_DIR):
            raise InvalidRequest(f"{NODE_DIR} is kept for what the node adds", field=field, expected="another path")
        _check_text(name, field)
        if any(len(part.encode()) > 255 for part in path.parts) or len(name.encode()) > 1024:
            raise InvalidRequest("the path is too long", field=field, expected="at most 255 bytes a part, 1024 in all")
        if path in seen:
            raise InvalidRequest(f"{path} is given twice", field=field, expected="each file once")
        seen.add(path)
        _check_file(content, field)
    for path in seen:
        blocker = next((parent for parent in path.parents if parent in seen), None)
        if blocker is not None:
            raise InvalidRequest(
                f"{blocker} is a file, so {path} cannot be below it", field=f"{where}.files", expected="other paths"
            )


def _check_text(text: str, where: str) -> int:
    """Return how many bytes the text has in UTF-8."""
    if "\x00" in text:
        raise InvalidRequest("the text holds a zero byte", field=where, expected="text without zero bytes")
    size = _check_unicode(text, where)
    if size >= MAX_ARGV_BYTES:
        raise InvalidRequest(f"the text has {size} bytes", field=where, expected=f"less than {MAX_ARGV_BYTES} bytes")
    return size


def _check_unicode(text: str, where: str) -> int:
    """Return how many bytes the text has in UTF-8."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"not valid Unicode: {error}", field=where, expected="text without surrogates") from error
