"""Secrets: values that only their owner's jobs are given, and that nobody can read back."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from jobs.protocol.model.base import Given, Model
from jobs.protocol.model.submission import Content

MAX_SECRET_BYTES: Final = 64 << 10
"""Of one value."""


class SecretPut(Given, frozen=True):
    """A value to be kept."""

    value: Content
    """At most 64 KiB."""

    def __repr__(self) -> str:
        return "SecretPut(***)"


class SecretView(Model, frozen=True):
    """What is told of a secret: everything but its value."""

    name: str
    owner: int
    """Whose jobs are given it."""
    size_bytes: int
    version: int
    """How often it was set since it was last made."""
    created_ms: int
    updated_ms: int


class SecretPage(Model, frozen=True):
    secrets: list[SecretView]
    next_cursor: str | None


class SecretKeyView(Model, frozen=True):
    """The key with which the cluster encrypts secrets; there is one from the first secret on."""

    fingerprint: str | None
    created_ms: int | None
    secrets: int
    """All there are, of all owners."""
    to_rewrite: int
    """Those that are still encrypted with a former key."""
    present: bool
    """Whether the node that leads has it."""


class SecretKeyRotate(Given, frozen=True):
    """How secrets are to be encrypted anew."""

    forget_lost: bool = False
    """Delete the secrets whose key no node has any more, instead of refusing."""


class SecretKeyRotated(Model, frozen=True):
    """What came of it."""

    fingerprint: str
    rewritten: int
    """Secrets that were encrypted anew."""
    forgotten: int
    """Secrets that were deleted, as no node has their key any more."""


class SecretValue(Struct, frozen=True, array_like=True):
    """A value on its way to a job, which stands in no text that is made of it."""

    data: Annotated[bytes, Meta(max_length=MAX_SECRET_BYTES)]

    def __repr__(self) -> str:
        return "SecretValue(***)"
