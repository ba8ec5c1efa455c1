"""The file that says which cluster a node belongs to: written once, when it founds or joins one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from jobs.durable import Points, replace_private

FILE_NAME: Final = "cluster.json"
VERSION: Final = 1
_POINTS: Final = Points(
    "cluster.file.write.before",
    "cluster.file.sync.before",
    "cluster.file.rename.before",
    "cluster.file.rename.after",
    "cluster.file.directory.sync.after",
)


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
    """Write the file: all of it or none, durable when this returns: a node that forgets its cluster founds another.

    Raises OSError.
    """
    replace_private(data_dir / FILE_NAME, msgspec.json.format(msgspec.json.encode(belonging)) + b"\n", _POINTS)
