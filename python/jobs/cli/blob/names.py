"""How commands name blobs: by hash or by tag."""

from __future__ import annotations

import os
import re
from typing import Final

from jobs.client import Client

_HASH: Final = re.compile("[0-9a-f]{64}")
NAMED: Final = "its hash, or a tag"


def hash_of(client: Client, text: str) -> str:
    """Return the hash that is named; raises NotFound for a tag that is not there."""
    return text if _HASH.fullmatch(text) else client.blobs.tag(text).hash


def own_tag(blob: str) -> str:
    """Return the tag with which a user keeps a blob that has no other name."""
    return f"put/{os.geteuid()}/{blob[:16]}"
