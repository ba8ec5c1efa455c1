"""Which subordinate ids a worker's user has, by the files of subuid(5) and subgid(5)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.workers.ids import Subordinate, subordinate_ids

NOBODY = 65534


def found(tmp_path: Path, subuid: str | None, subgid: str | None, uid: int = NOBODY) -> Subordinate | None:
    for name, text in (("subuid", subuid), ("subgid", subgid)):
        if text is not None:
            (tmp_path / name).write_text(text)
    return subordinate_ids(uid, subuid=tmp_path / "subuid", subgid=tmp_path / "subgid")


def test_ranges_are_found_by_name_and_by_number(tmp_path: Path) -> None:
    ids = found(tmp_path, "alice:100000:65536\nnobody:300000:1000\n", "65534:500000:2000\n")
    assert ids == Subordinate(uid=300_000, gid=500_000, count=1000)
    assert [ids.has(uid) for uid in (299_999, 300_000, 300_999, 301_000)] == [False, True, True, False]


def test_the_largest_of_several_ranges_is_taken(tmp_path: Path) -> None:
    ids = found(tmp_path, "nobody:1:10\nnobody:1000:500\nnobody:9000:20\n", "nobody:7:500\n")
    assert ids == Subordinate(uid=1000, gid=7, count=500)


@pytest.mark.parametrize(
    ("subuid", "subgid"),
    [
        (None, None),
        ("nobody:1:10\n", None),
        ("nobody:1:10\n", "alice:1:10\n"),
        ("nobody:x:10\nnobody:1\nnobody:-1:10\n\n:::\n", "nobody:1:10\n"),
    ],
)
def test_without_both_there_are_none(tmp_path: Path, subuid: str | None, subgid: str | None) -> None:
    assert found(tmp_path, subuid, subgid) is None


def test_root_needs_none_and_an_unknown_user_is_known_by_number(tmp_path: Path) -> None:
    assert found(tmp_path, "root:1:10\n", "root:1:10\n", uid=0) is None
    stranger = 4_000_000_123
    assert found(tmp_path, f"{stranger}:1:10\n", f"{stranger}:1:10\n", uid=stranger)
    if os.geteuid() == 0:
        assert subordinate_ids() is None
