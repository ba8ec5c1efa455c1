"""Secrets of this machine's that its operator lets some users' jobs have: files, or what systemd gave the worker."""

from __future__ import annotations

import pwd
from collections.abc import Mapping
from pathlib import Path

from jobs.config import Credential
from jobs.credentials import credentials_directory
from jobs.protocol.model import CREDENTIAL, MAX_SECRET_BYTES, Reason, ShellPayload
from jobs.protocol.wire import Assignment
from jobs.workers.executor import NotStarted


def secrets_of(
    assignment: Assignment, payload: ShellPayload, credentials: Mapping[str, Credential]
) -> dict[str, bytes]:
    """Return what an attempt finds below /run/secrets. Raises NotStarted for what it cannot be given."""
    if assignment.lacking is not None:
        raise NotStarted(assignment.lacking.reason, assignment.lacking.message)
    found: dict[str, bytes] = {}
    for file, name in payload.secrets.items():
        if name.startswith(CREDENTIAL):
            found[file] = _credential(name.removeprefix(CREDENTIAL), assignment.owner, credentials)
        elif file in assignment.secrets:
            found[file] = assignment.secrets[file].data
        else:
            raise NotStarted(Reason.INVALID_PAYLOAD, f"secret {name!r} did not come with the job")
    return found


def _credential(name: str, owner: int, credentials: Mapping[str, Credential]) -> bytes:
    """Return a credential as it is now."""
    known = credentials.get(name)
    # The same words for both: who may not use it need not learn that it is there.
    if known is None or not any(_is(user, owner) for user in known.users):
        raise NotStarted(
            Reason.INVALID_PAYLOAD, f"credential {name!r}: this worker has none of that name for uid {owner}"
        )
    path = known.path or _given(name)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise NotStarted(Reason.SPAWN_FAILED, f"credential {name!r}: {path}: {error.strerror}") from error
    if len(data) > MAX_SECRET_BYTES:
        raise NotStarted(Reason.SPAWN_FAILED, f"credential {name!r}: {path} has more than {MAX_SECRET_BYTES} bytes")
    return data


def _given(name: str) -> Path:
    """Return where systemd has put a credential of this service. Raises NotStarted."""
    directory = credentials_directory()
    if directory is None:
        raise NotStarted(
            Reason.SPAWN_FAILED, f"credential {name!r} has no path, and the service manager gave this worker none"
        )
    return directory / name


def _is(user: str, uid: int) -> bool:
    if user.isascii() and user.isdigit():
        return int(user) == uid
    try:
        return pwd.getpwnam(user).pw_uid == uid
    except KeyError:
        return False
