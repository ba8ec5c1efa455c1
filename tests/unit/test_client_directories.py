"""Files that are written by names that somebody else chose, and directories as they are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.client.directories import Landing, scan, target_file, write_all
from jobs.client.downloads import Download
from jobs.client.failures import SourceFailed, TargetFailed
from jobs.client.sources import Source
from jobs.errors import InternalError


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/../b", "/etc/passwd", "a//b", "a/", "./a", "a\0b"])
def test_a_name_that_would_be_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with Landing(tmp_path / "in") as landing, pytest.raises(TargetFailed), landing.file(name) as file:
        write_all(file, b"x")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_fails_leaves_no_part(tmp_path: Path) -> None:
    with Landing(tmp_path) as landing:
        with pytest.raises(TypeError), landing.file("a/b") as file:
            write_all(file, "no bytes")  # type: ignore[arg-type]
        (tmp_path / "a/b").mkdir()
        with pytest.raises(TargetFailed, match="directory"), landing.file("a/b") as file:
            write_all(file, b"x")
        (tmp_path / "c").write_bytes(b"")
        with pytest.raises(TargetFailed, match="no directory"), landing.file("c/d") as file:
            write_all(file, b"x")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["a", "a/b", "c"]


def test_a_link_to_a_target_keeps_naming_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    for data in (b"first", b"second"):
        with target_file(tmp_path / "link") as file:
            write_all(file, data)
        assert (tmp_path / "target").read_bytes() == data
    assert (tmp_path / "link").is_symlink()
    with target_file(Path("/dev/null")) as file:
        write_all(file, b"x")
    assert Path("/dev/null").is_char_device()


def test_a_directory_is_read_in_order_and_refused_with_what_is_no_file(tmp_path: Path) -> None:
    for name in ("b", "a/c", "a/b", "a.b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert [(found.name, found.size_bytes) for found in scan(tmp_path)] == [
        ("a.b", 3), ("a/b", 3), ("a/c", 3), ("b", 1),
    ]  # fmt: skip
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceFailed, match="pipe is neither"):
        scan(tmp_path)
    assert len(scan(tmp_path, skip_others=True)) == 4
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))).write_bytes(b"")
    with pytest.raises(SourceFailed, match="no UTF-8"):
        scan(tmp_path, skip_others=True)
    with pytest.raises(SourceFailed, match="No such file"):
        scan(tmp_path / "absent")


def test_a_download_asks_for_what_has_not_come() -> None:
    seen: list[tuple[int, int | None]] = []
    download = Download("ab", start=10, on_bytes=lambda done, total: seen.append((done, total)))
    assert download.request().headers == {"Range": "bytes=10-"}
    download.on_head(206, {"content-length": "90"})
    download.on_data(bytes(50))
    assert (download.is_complete, download.request().headers) == (False, {"Range": "bytes=60-99"})
    with pytest.raises(InternalError):
        download.on_head(200, {"content-length": "100"})
    download.on_head(206, {"content-length": "40"})
    download.on_data(bytes(40))
    assert (download.is_complete, seen) == (True, [(50, 90), (90, 90)])
    whole = Download("ab", path="a b/ü")
    assert (whole.request().headers, whole.request().target) == ({}, "/v1/blobs/ab?path=a+b%2F%C3%BC")
    whole.on_head(200, {"Content-Length": "0"})
    assert whole.is_complete
    with pytest.raises(InternalError):
        Download("ab").on_head(200, {})


def test_what_cannot_be_read_again_is_known(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    reader, writer = os.pipe()
    os.close(writer)
    with open(reader, "rb") as pipe, (tmp_path / "file").open("rb") as file:
        file.seek(2)
        for given, size, again in (
            (b"123", 3, True),
            (tmp_path / "file", 5, True),
            (file, 3, True),
            (pipe, None, False),
        ):
            source = Source(given)
            for _ in range(2 if again else 1):
                assert source.may_be_sent
                with source.open() as opened:
                    assert opened.size_bytes == size
                    while opened.read():
                        pass
            assert source.may_be_sent is again
