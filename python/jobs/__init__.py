"""Jobs: a distributed job execution framework. `from jobs import Client, AsyncClient`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.client import (
        AsyncClient,
        Client,
        ConnectionFailed,
        OperationFailed,
        QueryFailed,
        QueryResult,
        SubmitProgress,
        blob_job,
        replication_job,
        shell_job,
        sql_job,
    )
    from jobs.errors import JobsError
    from jobs.protocol.model import (
        AddFrom,
        ArrayRange,
        ArraySpec,
        BlobAdd,
        BlobExport,
        BlobFetch,
        BlobGc,
        BlobJob,
        BlobList,
        BlobReplicate,
        BlobResult,
        BlobStat,
        BlobVerify,
        Content,
        InputFile,
        JobState,
        JobView,
        Limits,
        LinkScopes,
        Reason,
        ReplicationBackup,
        ReplicationExport,
        ReplicationImport,
        ReplicationJob,
        ReplicationProve,
        ReplicationRestore,
        ReplicationResult,
        ReplicationSync,
        ReplicationVerify,
        Requires,
        Retention,
        Retry,
        Schedule,
        ShellJob,
        ShellPayload,
        SqlFile,
        SqlJob,
        SqlLimits,
        SqlPayload,
        Stream,
        Throttle,
    )

__all__ = [
    "AddFrom",
    "ArrayRange",
    "ArraySpec",
    "AsyncClient",
    "BlobAdd",
    "BlobExport",
    "BlobFetch",
    "BlobGc",
    "BlobJob",
    "BlobList",
    "BlobReplicate",
    "BlobResult",
    "BlobStat",
    "BlobVerify",
    "Client",
    "ConnectionFailed",
    "Content",
    "InputFile",
    "JobState",
    "JobView",
    "JobsError",
    "Limits",
    "LinkScopes",
    "OperationFailed",
    "QueryFailed",
    "QueryResult",
    "Reason",
    "ReplicationBackup",
    "ReplicationExport",
    "ReplicationImport",
    "ReplicationJob",
    "ReplicationProve",
    "ReplicationRestore",
    "ReplicationResult",
    "ReplicationSync",
    "ReplicationVerify",
    "Requires",
    "Retention",
    "Retry",
    "Schedule",
    "ShellJob",
    "ShellPayload",
    "SqlFile",
    "SqlJob",
    "SqlLimits",
    "SqlPayload",
    "Stream",
    "SubmitProgress",
    "Throttle",
    "blob_job",
    "replication_job",
    "shell_job",
    "sql_job",
]

_HOMES = {
    "jobs.client": (
        "AsyncClient",
        "Client",
        "ConnectionFailed",
        "OperationFailed",
        "QueryFailed",
        "QueryResult",
        "SubmitProgress",
        "blob_job",
        "replication_job",
        "shell_job",
        "sql_job",
    ),
    "jobs.errors": ("JobsError",),
}


def __getattr__(name: str) -> object:
    """Load what is asked for, and nothing else: `import jobs` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    home = next((home for home, names in _HOMES.items() if name in names), "jobs.protocol.model")
    return getattr(importlib.import_module(home), name)
