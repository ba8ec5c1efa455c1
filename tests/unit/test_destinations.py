"""Where jobs may connect to, and what operators allow."""

from __future__ import annotations

import pytest

from jobs.destinations import parse_allowed, parse_destination
from jobs.errors import Forbidden
from jobs.workers.shell import check_destinations


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.7", "no address and port"),
        ("example.org:80", "names are none"),
        ("192.0.2.7:0", "ports go from 1"),
        ("192.0.2.7:65536", "ports go from 1"),
        ("0.0.0.0:80", "one host"),
        ("[::]:80", "one host"),
        ("224.0.0.1:80", "one host"),
        ("[::ffff:127.0.0.1]:80", "one host"),
        ("[192.0.2.7]:80", "brackets"),
        ("192.0.2.300:80", "192.0.2.300"),
        ("192.0.2.7:80 ", "no address and port"),
        ("", "no address and port"),
    ],
)
def test_what_is_no_destination_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_destination(text)


@pytest.mark.parametrize(
    "text", ["10.0.0.0/8", "10.0.0.1/8:80", "fd00::/8:80", "10.0.0.0/8:90-80", "*:80", "10.0.0.0/33:1"]
)
def test_what_is_no_rule_says_why(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_allowed(text)


def test_a_destination_has_to_be_within_a_rule() -> None:
    rules = ["10.0.0.0/8:443", "[fd00::/8]:8000-8999", "192.0.2.7:*"]
    check_destinations(["10.1.2.3:443", "[fd00::1]:8080", "192.0.2.7:22"], rules)
    for text in ("10.1.2.3:80", "11.0.0.1:443", "[fd00::1]:9000", "[fe80::1]:8080", "192.0.2.8:22", "127.0.0.1:443"):
        with pytest.raises(Forbidden, match="the operator of this worker does not allow it"):
            check_destinations([text], rules)
    with pytest.raises(Forbidden):
        check_destinations(["127.0.0.1:22"], [])
