"""Tickets: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.cluster.tickets import PREFIX, Ticket, TicketPeer, decode, encode
from jobs.errors import InvalidRequest

TICKET = Ticket(
    cluster="c" * 32,
    expires_ms=1_000_000,
    secret="ab" * 32,
    peers=[TicketPeer("cd" * 32, ["10.0.0.1:7420", "[fd00::1]:7420"])],
)


def test_a_ticket_says_what_it_was_made_of_and_is_one_word() -> None:
    text = encode(TICKET)
    assert decode(f"  {text}\n", 999_999) == TICKET
    assert text.startswith(PREFIX)
    assert len(text.split()) == 1


def test_an_expired_ticket_is_refused_saying_since_when() -> None:
    with pytest.raises(InvalidRequest, match=r"expired 5 s ago.*jobctl cluster ticket"):
        decode(encode(TICKET), 1_005_000)


def test_a_ticket_of_another_version_is_refused_naming_it() -> None:
    import base64
    import zlib

    body = bytes((9,)) + b"whatever comes"
    text = PREFIX + base64.urlsafe_b64encode(body + zlib.crc32(body).to_bytes(4, "big")).decode().rstrip("=")
    with pytest.raises(InvalidRequest, match="version 9; this build knows 1"):
        decode(text, 0)


@given(cut=st.integers(0, 500), flip=st.integers(0, 500), how=st.integers(1, 63))
def test_a_ticket_that_is_cut_off_or_changed_is_refused(cut: int, flip: int, how: int) -> None:
    text = encode(TICKET)
    kept = text[: cut % len(text)]
    with pytest.raises(InvalidRequest):
        decode(kept, 0)
    place = len(PREFIX) + flip % (len(text) - len(PREFIX) - 1)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = alphabet[(alphabet.index(text[place]) + how) % 64]
    with pytest.raises(InvalidRequest):
        decode(text[:place] + other + text[place + 1 :], 0)


@given(st.text(max_size=200))
def test_text_that_is_no_ticket_is_refused(text: str) -> None:
    for one in (text, PREFIX + text):
        with pytest.raises(InvalidRequest):
            decode(one, 0)
