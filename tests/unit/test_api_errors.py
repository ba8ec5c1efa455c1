"""The list of errors in the documentation is the list in the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.errors import error_types

DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"
NODE_ERRORS = {code: kind for code, kind in error_types().items() if kind.__module__ == "jobs.errors"}
"""Without those that clients add for themselves."""
ROW = re.compile(r"^\| `(?P<code>\w+)` \| (?P<status>\d{3}) \| (?P<meaning>.+) \| (?P<action>.+) \|$", re.MULTILINE)


def test_every_code_is_documented_once_with_its_status() -> None:
    rows = ROW.findall(DOCUMENT.read_text())
    documented = {code: int(status) for code, status, _, _ in rows}
    assert len(rows) == len(documented)
    assert documented == {code: kind.status for code, kind in NODE_ERRORS.items()}


@pytest.mark.parametrize("code", sorted(NODE_ERRORS))
def test_every_error_has_a_title_of_its_own(code: str) -> None:
    kind = NODE_ERRORS[code]
    assert kind.code == code
    assert 400 <= kind.status < 600
    assert code == "internal" or kind.title != "Internal error"
