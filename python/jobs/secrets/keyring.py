"""The secret keys that a node has, in a file beside its store and never in it, and what is done with them: age (X25519,
ChaCha20-Poly1305), by pyrage.

What is encrypted names its owner and itself, so that it is of no use under another name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from jobs.backups.crypt import IdentityError, read_identities
from jobs.credentials import credentials_directory
from jobs.durable import replace_private

if TYPE_CHECKING:  # few processes need it
    from pyrage.x25519 import Identity

FILE: Final = "secrets.key"
"""In the node's data directory, unless the operator gives another."""
CREDENTIAL: Final = "jobs.secrets-key"
"""The credential of the node's service that takes its place."""
MAX_KEYS: Final = 16
"""Of one node: the one that is in use, and those that a rotation is about to retire."""


class KeyFileError(Exception):
    """The file with the keys cannot be used; the text says which and why."""


class Unreadable(Exception):
    """Something cannot be decrypted: its key is not here, or it is damaged."""


class SecretKey(Struct, frozen=True, kw_only=True):
    """One key."""

    fingerprint: str
    recipient: str
    """Its public half, by which everybody may encrypt."""
    identity: str
    """Its secret half, as text."""

    def __repr__(self) -> str:
        return f"SecretKey({self.fingerprint})"


class _Sealed(Struct, frozen=True, array_like=True):
    """What is encrypted."""

    owner: int
    name: str
    value: bytes


class Keyring:
    """The keys in a file, by their fingerprints. One that the operator provides is only read."""

    def __init__(self, path: Path | None = None, *, is_provided: bool = False) -> None:
        """Without a file keys are kept in memory only."""
        self.path = path
        self.is_provided = is_provided
        self._keys: dict[str, SecretKey] = {}
        self._first: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that nobody but this node's user may read, and that are this node's own."""
        return () if self.path is None or self.is_provided or not self.path.exists() else (self.path,)

    @property
    def held(self) -> frozenset[str]:
        """Fingerprints of the keys that are here."""
        return frozenset(self._keys)

    def get(self, fingerprint: str) -> SecretKey | None:
        return self._keys.get(fingerprint)

    def load(self) -> None:
        """Read the file. Raises KeyFileError."""
        if self.path is None:
            return
        if not self.is_provided and not self.path.exists():
            return
        try:
            # What a service manager hands over has the rights that it chose.
            found = [
                _key_of(identity) for identity in read_identities(self.path, private=not _is_credential(self.path))
            ]
        except IdentityError as error:
            raise KeyFileError(f"the key of secrets: {error}") from error
        self._keys |= {key.fingerprint: key for key in found}
        self._first = found[0].fingerprint

    def provided(self) -> SecretKey | None:
        """Return the key that the operator wants to be used: the first of the file as it is now.

        Raises KeyFileError.
        """
        if not self.is_provided:
            return None
        self.load()
        return None if self._first is None else self._keys[self._first]

    def add(self, key: SecretKey) -> None:
        """Have a key, durably where the file is this node's own. Raises KeyFileError."""
        if key.fingerprint in self._keys:
            return
        if len(self._keys) >= MAX_KEYS:
            raise KeyFileError(f"this node has {MAX_KEYS} keys of secrets already")
        self._write({**self._keys, key.fingerprint: key})

    def forget(self, fingerprints: Sequence[str]) -> None:
        """Have these no more: nothing is encrypted with them. Raises KeyFileError."""
        kept = {name: key for name, key in self._keys.items() if name not in fingerprints}
        if kept != self._keys and not self.is_provided:
            self._write(kept)

    def _write(self, keys: dict[str, SecretKey]) -> None:
        if self.path is not None and not self.is_provided:
            text = "".join(f"# fingerprint: {key.fingerprint}\n{key.identity}\n" for key in keys.values())
            try:
                replace_private(self.path, text.encode())
            except OSError as error:
                raise KeyFileError(f"the key of secrets cannot be written to {self.path}: {error.strerror}") from error
        self._keys = keys

    # --- what is done with them -----------------------------------------------------------------------------------

    def open(self, fingerprint: str, sealed: bytes, owner: int, name: str) -> bytes:
        """Return the value. Raises Unreadable."""
        from pyrage import DecryptError, decrypt, x25519

        key = self._keys.get(fingerprint)
        if key is None:
            raise Unreadable(f"the key of secrets {fingerprint} is not on this node")
        try:
            found = msgspec.msgpack.decode(decrypt(sealed, [x25519.Identity.from_str(key.identity)]), type=_Sealed)
        except (DecryptError, msgspec.MsgspecError) as error:
            raise Unreadable(f"secret {name!r} of uid {owner} is damaged: {error}") from error
        if (found.owner, found.name) != (owner, name):
            raise Unreadable(f"secret {name!r} of uid {owner} is not what its place says")
        return found.value


def keyring_of(configured: Path | None, data_dir: Path) -> Keyring:
    """Return the keys of a node: of the file that is configured, of the credential that systemd has given it, or of a
    file of its own."""
    given = credentials_directory()
    if configured is None and given is not None and _is_there(given / CREDENTIAL):
        configured = given / CREDENTIAL
    return Keyring(configured or data_dir / FILE, is_provided=configured is not None)


def _is_there(path: Path) -> bool:
    """Tell whether there is a file, or it cannot be told: then reading it says why."""
    try:
        return path.exists()
    except OSError:
        return True


def seal(recipient: str, owner: int, name: str, value: bytes) -> bytes:
    """Return the value encrypted for a key."""
    from pyrage import encrypt, x25519

    return encrypt(msgspec.msgpack.encode(_Sealed(owner, name, value)), [x25519.Recipient.from_str(recipient)])


def generate() -> SecretKey:
    """Return a new key."""
    from pyrage import x25519

    return _key_of(x25519.Identity.generate())


def parse(identity: str) -> SecretKey:
    """Return the key of which this is the secret half. Raises KeyFileError."""
    from pyrage import IdentityError as AgeError
    from pyrage import x25519

    try:
        return _key_of(x25519.Identity.from_str(identity))
    except AgeError as error:
        raise KeyFileError(f"that is no secret key of age: {error}") from error


def fingerprint_of(recipient: str) -> str:
    """Return by what a key is named."""
    return hashlib.sha256(recipient.encode()).hexdigest()[:16]


def _key_of(identity: Identity) -> SecretKey:
    recipient = str(identity.to_public())
    return SecretKey(fingerprint=fingerprint_of(recipient), recipient=recipient, identity=str(identity))


def _is_credential(path: Path) -> bool:
    given = credentials_directory()
    return given is not None and path.is_relative_to(given)
