"""Listening Unix sockets: given by the service manager, or made with the right owner and mode from the first moment."""

from __future__ import annotations

import asyncio
import errno
import grp
import os
import pwd
import resource
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

LISTEN_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
"""By which a service manager tells a process of sockets that it is given, from this number on (sd_listen_fds(3))."""
LISTEN_FDS_START: Final = 3
MAX_PATH_BYTES: Final = 107
"""sun_path less its final zero byte."""
BACKLOG: Final = 1_024


class SocketError(Exception):
    """The socket cannot be had; the text names it, the cause, and what would help."""


class Listener(NamedTuple):
    """A socket that listens."""

    socket: socket.socket
    is_own: bool
    """Made by this process: its path goes with it. Another stays, and clients that connect wait for the next life."""


def listen(path: Path, mode: int, group: str | None) -> Listener:
    """Return the socket at `path` that the service manager has given this process, or a new one. Raises SocketError."""
    for number in range(LISTEN_FDS_START, LISTEN_FDS_START + _given_count()):
        given = _listening_at(number, path)
        if given is not None:
            return Listener(given, is_own=False)
    return Listener(listen_unix(path, mode, group), is_own=True)


def _given_count() -> int:
    """Return how many sockets this process was given: what its parent was given is none of its own."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return 0
    count = os.environ.get("LISTEN_FDS", "")
    return int(count) if count.isdigit() else 0


def _listening_at(number: int, path: Path) -> socket.socket | None:
    """Return a copy of a descriptor that is a Unix socket which listens at a path."""
    try:
        given = socket.socket(fileno=os.dup(number))
    except OSError:
        return None
    is_it = (
        given.family == socket.AF_UNIX
        and given.type == socket.SOCK_STREAM
        and given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        and given.getsockname() == str(path)
    )
    if not is_it:
        given.close()
        return None
    given.setblocking(False)
    return given


def listen_unix(path: Path, mode: int, group: str | None) -> socket.socket:
    """Return a socket that listens at `path` with this mode and group, in place of one that nobody serves any more.

    It is made under another name with no permissions and renamed when it is right, so nobody can connect before.
    Raises SocketError when another process serves there, or the path, the group or the permissions do not allow it.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES - 4:
        raise SocketError(f"socket {path}: the path is longer than {MAX_PATH_BYTES - 4} bytes; use a shorter one")
    _refuse_live(path)
    gid = -1 if group is None else _gid(path, group)
    temporary = path.with_name(f"{path.name}.new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        temporary.unlink(missing_ok=True)
        before = os.umask(0o777)
        try:
            listener.bind(str(temporary))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
        os.chown(temporary, -1, gid)
        temporary.chmod(mode)
        temporary.rename(path)
    except OSError as error:
        listener.close()
        raise SocketError(f"socket {path}: {error.strerror}") from error
    return listener


def reserve_descriptors(wanted: int, reserve: int) -> int:
    """Raise this process's soft limit of descriptors for `wanted` connections beside `reserve` others.

    Returns how many connections there may be: fewer than wanted where the hard limit does not allow them, since one
    too many would take the descriptor of a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + reserve
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return max(1, needed - reserve)


def peer_credentials(transport: asyncio.Transport) -> tuple[int, int, int]:
    """Return (pid, uid, gid) of the process that connected, as the kernel recorded them."""
    sock = transport.get_extra_info("socket")
    with socket.socket(fileno=os.dup(sock.fileno())) as duplicate:
        data = duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", data)
    return pid, uid, gid


def _refuse_live(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketError(f"socket {path}: something that is not a socket is there; remove it or use another path")
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketError(f"socket {path}: {error.strerror}") from error
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                return
    raise SocketError(f"socket {path}: another process serves it; stop that one, or use another path")


def members_of(group: str | None) -> set[int]:
    """Return the uids of a group's members; nobody's where there is no such group."""
    if group is None:
        return set()
    try:
        found = grp.getgrnam(group)
    except KeyError:
        return set()
    members = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == found.gr_gid}
    for name in found.gr_mem:
        with suppress(KeyError):  # who is named there need not exist
            members.add(pwd.getpwnam(name).pw_uid)
    return members


def _gid(path: Path, group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise SocketError(f"socket {path}: there is no group {group!r}; create it, or configure another") from error
