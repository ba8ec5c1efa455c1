"""What the operations of this worker are given, besides what is wanted of them."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from jobs.protocol.ids import JobId
from jobs.workers.nodeapi import NodeApi
from jobs.workers.places import Places
from jobs.workers.task import Report


class Task(Struct, frozen=True, kw_only=True):
    """One attempt of a job, which may be begun again at any time."""

    node: NodeApi
    """Asked for the job's owner, who is an administrator."""
    places: Places
    """Where backups and exports may be on this machine."""
    report: Report
    job: JobId
    identity_file: Path | None
    """Secret keys of age, if there are any."""
    scratch_dir: Path | None
    """Where something can be put together; None: among the system's temporary files."""
