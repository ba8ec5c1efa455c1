"""Why an image is not unpacked."""

from __future__ import annotations


class ImageError(Exception):
    """What is wrong with it, or cannot be done with it."""


def shown(name: bytes | str) -> str:
    """Return a name as it is shown to people, if it is not endless."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return ascii(text[:200])[1:-1]
