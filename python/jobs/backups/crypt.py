"""Encryption with age, by pyrage: streams in constant memory, in whose middle nothing can be changed unseen."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from jobs.errors import BackupInvalid, InvalidRequest

if TYPE_CHECKING:  # few processes need it
    from pyrage.x25519 import Identity, Recipient

PIECE_BYTES: Final = 1 << 20
MAX_IDENTITY_BYTES: Final = 1 << 20
_FOR: Final = "$.recipients"


class IdentityError(Exception):
    """Secret keys cannot be read; the text says of which file and why."""


def check_recipients(recipients: Sequence[str]) -> list[str]:
    """Return them in order, each once. Raises InvalidRequest for what is no public key of age."""
    for recipient in recipients:
        _recipient(recipient)
    return sorted(set(recipients))


def mark_of(recipients: Sequence[str]) -> str:
    """Return what tells files for these apart from files for others."""
    return hashlib.sha256("\n".join(sorted(set(recipients))).encode()).hexdigest()[:16]


def read_identities(path: Path, *, private: bool = True) -> list[Identity]:
    """Return the secret keys in a file as `age-keygen` writes it. Raises IdentityError, also when others could read
    it, unless it need not be `private`."""
    from pyrage import IdentityError as AgeError
    from pyrage import x25519

    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(MAX_IDENTITY_BYTES)
    except OSError as error:
        raise IdentityError(f"{path}: {error.strerror}") from error
    if private and stat.S_IMODE(status.st_mode) & 0o077:
        raise IdentityError(f"{path}: others may read it; chmod 600 it")
    found: list[Identity] = []
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            found.append(x25519.Identity.from_str(text))
        except AgeError as error:
            raise IdentityError(
                f"{path}: line {number} is no secret key of age (AGE-SECRET-KEY-1…): {error}"
            ) from error
    if not found:
        raise IdentityError(f"{path}: there is no secret key of age in it")
    return found


class Encryption:
    """What is written to it goes on encrypted, by a thread of its own. `finish` or `abandon` has to be called."""

    def __init__(self, recipients: Sequence[str], write: Callable[[bytes], None]) -> None:
        self._write = write
        self._failure: BaseException | None = None
        reading, self._writing = os.pipe()
        keys = [_recipient(recipient) for recipient in recipients]
        self._thread = threading.Thread(target=self._run, args=(reading, keys), name="age", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Raises what the file that is written to raises."""
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._writing, left) :]
        except BrokenPipeError:
            self._end()
            raise

    def finish(self) -> None:
        """Return when all of it is written; raises as `write`."""
        self._end()

    def abandon(self) -> None:
        """Give it up: what was written is of no use."""
        self._failure = self._failure or InterruptedError("it was given up")
        self._close()

    def _end(self) -> None:
        self._close()
        if self._failure is not None:
            raise self._failure

    def _close(self) -> None:
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1
        self._thread.join()

    def _run(self, reading: int, keys: list[Recipient]) -> None:
        from pyrage import encrypt_io

        with open(reading, "rb", buffering=PIECE_BYTES) as source:
            try:
                encrypt_io(source, _Taking(self._take), keys)  # type: ignore[arg-type]
            except Exception as error:
                self._failure = self._failure or error

    def _take(self, data: bytes) -> None:
        try:
            self._write(data)
        except BaseException as error:
            # The library makes a text of it.
            self._failure = error
            raise


def decrypt(
    source: BinaryIO,
    write: Callable[[bytes], None],
    identities: Sequence[Identity],
    where: str,
) -> None:
    """Write out what was encrypted for one of these. Raises BackupInvalid, which names the file, and what `write`
    raises. What was written of a file that is damaged further on is of no use."""
    from pyrage import DecryptError, decrypt_io

    failure: list[BaseException] = []

    def take(data: bytes) -> None:
        try:
            write(data)
        except BaseException as error:
            failure.append(error)
            raise

    if not identities:
        raise BackupInvalid(
            f"{where}: it is encrypted, and no secret key was given",
            expected="workers.replication.identity_file, or --identity FILE",
        )
    try:
        decrypt_io(source, _Taking(take), list(identities))  # type: ignore[arg-type]
    except (DecryptError, OSError) as error:
        if failure:
            raise failure[0] from error
        if "No matching keys" in str(error):
            raise BackupInvalid(
                f"{where}: none of the secret keys fits: it was encrypted for others",
                expected="the secret key of one of the manifest's recipients",
            ) from error
        raise BackupInvalid(
            f"{where}: it cannot be decrypted, so it is cut short or damaged: {error}",
            expected="another copy of the backup, or an older backup",
        ) from error


class _Taking(io.RawIOBase):
    """A file that hands over what is written."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self._take(piece)
        return len(piece)


def _recipient(text: str) -> Recipient:
    from pyrage import RecipientError, x25519

    try:
        return x25519.Recipient.from_str(text)
    except RecipientError as error:
        raise InvalidRequest(f"{text!r:.80} is no public key of age: {error}", field=_FOR, expected="age1…") from error
