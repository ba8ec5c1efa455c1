"""What a request is known by."""

from __future__ import annotations

import pytest

from jobs.errors import InvalidRequest
from jobs.protocol.ids import uuid7
from jobs.requestid import request_id

ID = "01890a5d-ac96-774b-bcce-b302099a8057"


def test_the_same_request_is_known_and_any_other_is_not() -> None:
    known = request_id(ID, 1000, "POST", "/v1/kv:put", b"{}")
    assert known == request_id(ID.upper(), 1000, "POST", "/v1/kv:put", b"{}")
    others = {
        request_id(uuid7(1, 2), 1000, "POST", "/v1/kv:put", b"{}"),
        request_id(ID, 1001, "POST", "/v1/kv:put", b"{}"),
        request_id(ID, 1000, "DELETE", "/v1/kv:put", b"{}"),
        request_id(ID, 1000, "POST", "/v1/kv:delete", b"{}"),
        request_id(ID, 1000, "POST", "/v1/kv:put", b"{ }"),
    }
    assert len(others) == 5
    assert known not in others


def test_ids_made_one_after_the_other_lie_side_by_side() -> None:
    made = [request_id(uuid7(unix_ms, 7), 0, "POST", "/", b"") for unix_ms in range(1_000, 1_300)]
    assert made == sorted(made)
    assert {len(one) for one in made} == {16}


@pytest.mark.parametrize("text", ["", "7", ID[:-1], ID + "0", ID.replace("-", ""), ID.replace("a", "g"), f"{{{ID}}}"])
def test_what_is_no_uuid_is_refused_by_the_header_s_name(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_id(text, 0, "POST", "/", b"")
    assert caught.value.field == "Jobs-Request-Id"
