"""Bytes in JSON and back: the one place that knows how `Content` carries them."""

from __future__ import annotations

import base64
import binascii

from jobs.errors import InvalidRequest
from jobs.protocol.model import Content


def content_of(data: bytes) -> Content:
    """Return bytes as text where they are UTF-8, else as base64."""
    try:
        return Content(text=data.decode())
    except UnicodeDecodeError:
        return Content(base64=base64.b64encode(data).decode())


def content_bytes(content: Content, where: str) -> bytes:
    """Return the bytes of a content; raise InvalidRequest unless exactly one form is given and valid."""
    if (content.text is None) == (content.base64 is None):
        raise InvalidRequest("neither or both of text and base64 are given", field=where, expected="exactly one")
    if content.text is not None:
        try:
            return content.text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"not valid Unicode: {error}", field=f"{where}.text", expected="text without surrogates"
            ) from error
    assert content.base64 is not None
    try:
        return base64.b64decode(content.base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"not base64: {error}", field=f"{where}.base64", expected="RFC 4648 base64") from error
