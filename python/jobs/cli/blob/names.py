"""How commands name blobs: by hash or by tag."""

from __future__ import annotations

import os
import re
from typing import Final

from jobs.cli.command import UsageError
from jobs.client import Client
from jobs.errors import NotFound

_HASH: Final = re.compile("[0-9a-f]{64}")
_MEANT_AS_HASH: Final = re.compile("[0-9A-Fa-f]{32,}")
"""Nobody calls a tag so, though it would be one."""
NAMED: Final = "its hash, or a tag"


def hash_of(client: Client, text: str) -> str:
    """Return the hash that is named. Raises UsageError for what is no name, NotFound for a tag that is not there."""
    if _HASH.fullmatch(text):
        return text
    try:
        return client.blobs.tag(checked_tag(text)).hash
    except NotFound:
        if not _MEANT_AS_HASH.fullmatch(text):
            raise
    raise UsageError(f"{text!r} is no hash of a blob, which has 64 digits 0-9 and a-f, and no tag")


def checked_tag(text: str) -> str:
    """Return what names a tag. Raises UsageError where nothing does, as where a variable of a script is not set."""
    if not text:
        raise UsageError("an empty word names no blob and no tag")
    return text


def own_tag(blob: str) -> str:
    """Return the tag with which a user keeps a blob that has no other name."""
    return f"put/{os.geteuid()}/{blob[:16]}"
