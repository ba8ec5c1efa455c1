"""The file that says which cluster a node belongs to: written once, when it founds or joins one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from jobs._native import failpoint
from jobs.durable import sync_directory

FILE_NAME: Final = "cluster.json"
VERSION: Final = 1


class ClusterFileError(Exception):
    """The file cannot be used; the text says why and what to do."""


class Belonging(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which cluster, and whom to know before the store tells."""

    version: int = VERSION
    cluster: str
    founder: bool
    """This node is a group of its own until its store knows the members."""
    peers: dict[str, list[str]] = {}
    """Members at the time of joining: addresses by id."""


def load(data_dir: Path) -> Belonging | None:
    """Return what the file says; None without one. Raises ClusterFileError."""
    path = data_dir / FILE_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClusterFileError(f"{path}: {error.strerror}") from error
    try:
        version = msgspec.json.decode(data, type=dict).get("version")
        if version != VERSION:
            raise ClusterFileError(f"{path} is of version {version}; this build knows {VERSION}")
        return msgspec.json.decode(data, type=Belonging)
    except msgspec.MsgspecError as error:
        raise ClusterFileError(f"{path} is damaged: {error}; restore it, or let the node join anew") from error


def save(data_dir: Path, belonging: Belonging) -> None:
    """Write the file: all of it or none, durable when this returns."""
    draft = data_dir / f"{FILE_NAME}.new"
    failpoint("cluster.file.write.before")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, msgspec.json.format(msgspec.json.encode(belonging)) + b"\n")
        failpoint("cluster.file.sync.before")
        os.fsync(descriptor)  # its content before its name
    finally:
        os.close(descriptor)
    failpoint("cluster.file.rename.before")
    draft.rename(data_dir / FILE_NAME)
    failpoint("cluster.file.rename.after")
    sync_directory(data_dir)  # a node that forgets its cluster would found another one
    failpoint("cluster.file.directory.sync.after")
