"""Entries of journald by its own protocol, so that what a line is about can be asked for: `journalctl JOBS_JOB_ID=…`.

One datagram an entry (systemd.io/JOURNAL_NATIVE_PROTOCOL); one too large for that is a sealed memory file, whose
descriptor is sent instead.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

SOCKET: Final = "/run/systemd/journal/socket"
NAMES: Final = {"job": "JOBS_JOB_ID"}
"""Fields whose name here is not their own in capitals behind `JOBS_`."""
_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
PATIENCE_S: Final = 5.0
"""How long a journal that does not read may hold up who logs."""
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class JournalHandler(logging.StreamHandler[TextIO]):
    """Sends entries with their fields to journald; writes the lines of its formatter when that cannot be reached."""

    def __init__(
        self, stream: TextIO, fields_of: Callable[[logging.LogRecord], Mapping[str, Any]], *, path: str = SOCKET
    ) -> None:
        super().__init__(stream)
        self._fields_of = fields_of
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(PATIENCE_S)
        # As for lines on standard error, where systemd gives them the name of the program.
        self._identifier = Path(sys.argv[0]).name

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(encode(self._entry(record)))
        except OSError:
            super().emit(record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def _entry(self, record: logging.LogRecord) -> dict[str, str]:
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
        entry = {
            "MESSAGE": text,
            "PRIORITY": str(priority(record.levelno)),
            "SYSLOG_IDENTIFIER": self._identifier,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName,
            "JOBS_LOGGER": record.name,
        }
        for key, value in self._fields_of(record).items():
            name = NAMES.get(key) or f"JOBS_{key.upper()}"
            if _NAME.fullmatch(name):
                entry.setdefault(name, value if isinstance(value, str) else json.dumps(value, default=str))
        return entry

    def _send(self, datagram: bytes) -> None:
        # To the path each time: journald may have been started anew.
        try:
            self._socket.sendto(datagram, self._path)
        except OSError as error:
            if error.errno not in {errno.EMSGSIZE, errno.ENOBUFS}:
                raise
            self._send_file(datagram)

    def _send_file(self, content: bytes) -> None:
        descriptor = os.memfd_create("journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))
            # `socket.send_fds` of Python 3.11 leaves the address out.
            self._socket.sendmsg([], [rights], 0, self._path)
        finally:
            os.close(descriptor)


def encode(entry: Mapping[str, str]) -> bytes:
    """Return an entry as journald reads it: a value with a line break has its length in front, and cannot end early."""
    parts = []
    for name, value in entry.items():
        data = value.encode("utf-8", "replace")
        if b"\n" in data:
            parts.append(b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), data))
    return b"".join(parts)


_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Least level → syslog priority; what is below is 7, debug."""


def priority(level: int) -> int:
    """Return the syslog priority of a level."""
    return next((number for least, number in _PRIORITIES if level >= least), 7)


def is_journal(stream: TextIO) -> bool:
    """Tell whether the stream goes to journald, which says so with the stream's device and inode."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
