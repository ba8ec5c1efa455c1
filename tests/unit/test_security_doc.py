"""docs/security.md: every wall names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`((?:\.\./\w+/)?test_\w+\.py)(?:::(test_\w+))?`")


def test_every_test_that_the_page_names_is_there() -> None:
    text = (ROOT / "docs/security.md").read_text()
    named = NAMED.findall(text)
    assert len(named) > 40
    for file, name in named:
        path = ROOT / "tests/sandbox" / file
        assert path.exists(), file
        if name:
            assert f"def {name}(" in path.read_text(), f"{file}::{name}"


def test_every_row_of_the_table_names_one() -> None:
    text = (ROOT / "docs/security.md").read_text()
    table = text.partition("## What stops what")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| a job tries")]
    assert len(rows) > 25
    assert not [row for row in rows if not NAMED.search(row)]
