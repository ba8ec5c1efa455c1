"""How complaints about JSON read."""

from __future__ import annotations

import msgspec
import pytest

from jobs.errors import InvalidRequest
from jobs.invalid import decode_json
from jobs.protocol.model import JobSubmit


def test_a_pattern_is_shown_as_it_is_written_in_the_openapi_document() -> None:
    body = b'{"type":"shell","payload":{"argv":["true"]},"queue":"a b"}'
    with pytest.raises(InvalidRequest) as caught:
        decode_json("the body", body, msgspec.json.Decoder(JobSubmit))
    assert caught.value.field == "$.queue"
    assert caught.value.expected is not None
    assert "\\\\" not in caught.value.expected
