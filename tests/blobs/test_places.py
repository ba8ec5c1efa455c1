"""Files that jobs may add, places that they may write to: what leads elsewhere is refused, nothing is half-written."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.workers.places import Place, PlaceError, Places, Target

DRAFT = ".jobs-0-draft.part"


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    made = tmp_path / "allowed"
    made.mkdir()
    return made


@pytest.fixture
def places(allowed: Path) -> Places:
    return Places([allowed])


def content(place: Place) -> bytes:
    file = place.open()
    try:
        return b"".join(iter(lambda: file.read(3), b""))
    finally:
        file.close()


@contextmanager
def refused(match: str) -> Iterator[None]:
    with pytest.raises(PlaceError, match=match):
        yield


def everything_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_file_below_an_allowed_directory_is_read(allowed: Path, places: Places) -> None:
    (allowed / "sub").mkdir()
    (allowed / "sub" / "file").write_bytes(b"content")
    with places.source(f"{allowed}/sub/file") as place:
        assert (place.is_directory, place.size_bytes, content(place)) == (False, 7, b"content")


def test_nothing_may_be_read_or_written_without_an_allowed_directory(allowed: Path) -> None:
    (allowed / "file").write_bytes(b"x")
    with refused("allow_files"):
        Places([]).source(f"{allowed}/file")
    with refused("allow_files"):
        Places([]).target(f"{allowed}/file", DRAFT)


@pytest.mark.parametrize("path", ["{top}/secret", "{top}/allowed/../secret", "{top}/allowedly/file", "/etc/passwd"])
def test_what_is_not_below_an_allowed_directory_is_refused(tmp_path: Path, places: Places, path: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "allowedly").mkdir()
    (tmp_path / "allowedly" / "file").write_bytes(b"secret")
    with refused("allow_files"):
        places.source(path.format(top=tmp_path))
    with refused("allow_files"):
        places.target(path.format(top=tmp_path), DRAFT)


def test_a_link_is_followed_neither_at_the_end_nor_on_the_way(tmp_path: Path, allowed: Path, places: Places) -> None:
    secret = tmp_path / "outside"
    secret.mkdir()
    (secret / "file").write_bytes(b"secret")
    (allowed / "link").symlink_to(secret / "file")
    (allowed / "way").symlink_to(secret)
    with refused("symbolic link"):
        places.source(f"{allowed}/link")
    with refused("Not a directory|symbolic link"):
        places.source(f"{allowed}/way/file")
    with refused("Not a directory|symbolic link"):
        places.target(f"{allowed}/way/new", DRAFT)
    with refused("symbolic link"), places.source(str(allowed)) as place:
        place.files()


def test_a_link_in_the_place_of_what_was_found_changes_nothing(tmp_path: Path, allowed: Path, places: Places) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (allowed / "file").write_bytes(b"content")
    with places.source(f"{allowed}/file") as place:
        (allowed / "file").unlink()
        (allowed / "file").symlink_to(tmp_path / "secret")
        assert content(place) == b"content"


def test_a_file_of_a_directory_that_became_a_link_is_refused(tmp_path: Path, allowed: Path, places: Places) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (allowed / "file").write_bytes(b"content")
    with places.source(str(allowed)) as place:
        (listed,) = place.files()
        (allowed / "file").unlink()
        (allowed / "file").symlink_to(tmp_path / "secret")
        with refused("symbolic link"):
            place.open_file(listed.name)


def test_what_is_no_regular_file_is_refused_without_being_opened(allowed: Path, places: Places) -> None:
    os.mkfifo(allowed / "fifo")  # opening one would wait for a writer
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{allowed}/socket")
        for name in ("fifo", "socket"):
            with refused("neither a regular file nor a directory"):
                places.source(f"{allowed}/{name}")
        with refused("neither a regular file nor a directory"), places.source(str(allowed)) as place:
            place.files()


def test_a_file_with_another_name_elsewhere_is_refused(tmp_path: Path, allowed: Path, places: Places) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    os.link(tmp_path / "secret", allowed / "mine")
    with refused("2 hard links"):
        places.source(f"{allowed}/mine")


def test_a_file_that_is_not_there_or_may_not_be_read_says_so(allowed: Path, places: Places) -> None:
    with refused(f"cannot read {allowed}/none: No such file"):
        places.source(f"{allowed}/none")
    with refused("cannot read .*: No such file"):
        places.source(f"{allowed}/none/below")


def test_the_allowed_directory_may_itself_be_behind_a_link(tmp_path: Path, allowed: Path) -> None:
    (allowed / "file").write_bytes(b"content")
    (tmp_path / "alias").symlink_to(allowed)
    with Places([tmp_path / "alias"]).source(f"{tmp_path}/alias/file") as place:
        assert content(place) == b"content"


def test_the_files_of_a_directory_are_told_by_name(allowed: Path, places: Places) -> None:
    (allowed / "b").mkdir()
    (allowed / "b" / "deep").mkdir()
    (allowed / "b" / "deep" / "ü").write_bytes(b"12")
    (allowed / "a").write_bytes(b"1")
    (allowed / "empty").mkdir()
    with places.source(str(allowed)) as place:
        assert place.is_directory
        assert [(file.name, file.size_bytes) for file in place.files()] == [("a", 1), ("b/deep/ü", 2)]
        file = place.open_file("b/deep/ü")
        assert file.read(10) == b"12"
        file.close()


def test_a_name_that_is_no_text_is_refused(allowed: Path, places: Places) -> None:
    (allowed / os.fsdecode(b"\xff")).write_bytes(b"")
    with refused("UTF-8"), places.source(str(allowed)) as place:
        place.files()


# --- writing ---------------------------------------------------------------------------------------------------------


def write_file(target: Target, data: bytes) -> None:
    file = target.begin_file()
    try:
        file.write(data)
        target.finish_file(file)
    finally:
        file.close()


def write_member(target: Target, name: str, data: bytes) -> None:
    file = target.begin_member(name)
    file.write(data)
    file.sync()
    file.close()


def test_a_file_is_written_and_replaces_an_old_one(allowed: Path, places: Places) -> None:
    for data in (b"first", b"second"):
        with places.target(f"{allowed}/file", DRAFT) as target:
            write_file(target, data)
        assert (allowed / "file").read_bytes() == data
    assert everything_below(allowed) == {"file"}


def test_a_file_that_was_given_up_leaves_the_old_one(allowed: Path, places: Places) -> None:
    (allowed / "file").write_bytes(b"old")
    with places.target(f"{allowed}/file", DRAFT) as target:
        file = target.begin_file()
        file.write(b"half")
        assert everything_below(allowed) == {"file"}, "not even a killed process leaves a part of a file"
        file.close()
    assert (allowed / "file").read_bytes() == b"old"
    assert everything_below(allowed) == {"file"}


def test_a_file_is_written_where_the_file_system_knows_of_none_without_a_name(
    allowed: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # which nothing can write to: as old kernels understand it
    (allowed / DRAFT).write_bytes(b"what a killed worker left")
    with places.target(f"{allowed}/file", DRAFT) as target:
        write_file(target, b"content")
    with places.target(f"{allowed}/other", DRAFT) as target:
        target.begin_file().close()
        assert everything_below(allowed) == {"file", DRAFT}
    assert everything_below(allowed) == {"file"}
    assert (allowed / "file").read_bytes() == b"content"


def test_a_file_does_not_replace_a_directory_and_a_link_is_replaced_not_followed(
    tmp_path: Path, allowed: Path, places: Places
) -> None:
    (allowed / "directory").mkdir()
    with refused("directory"), places.target(f"{allowed}/directory", DRAFT) as target:
        target.begin_file()
    (tmp_path / "victim").write_bytes(b"precious")
    (allowed / "link").symlink_to(tmp_path / "victim")
    with places.target(f"{allowed}/link", DRAFT) as target:
        write_file(target, b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert (allowed / "link").read_bytes() == b"new"
    assert not (allowed / "link").is_symlink()


def test_the_allowed_directory_itself_cannot_be_written_over(allowed: Path, places: Places) -> None:
    with refused("below which"):
        places.target(str(allowed), DRAFT)


def test_a_directory_appears_whole(allowed: Path, places: Places) -> None:
    with places.target(f"{allowed}/made", DRAFT) as target:
        target.begin_directory()
        write_member(target, "a", b"1")
        write_member(target, "b/deep/c", b"2")
        write_member(target, "b/d", b"3")
        assert not (allowed / "made").exists()
        target.finish_directory()
    assert everything_below(allowed) == {"made", "made/a", "made/b", "made/b/d", "made/b/deep", "made/b/deep/c"}
    assert (allowed / "made" / "b" / "deep" / "c").read_bytes() == b"2"
    assert stat.S_IMODE((allowed / "made" / "a").stat().st_mode) & 0o111 == 0


def test_a_directory_that_was_given_up_leaves_nothing(allowed: Path, places: Places) -> None:
    with places.target(f"{allowed}/made", DRAFT) as target:
        target.begin_directory()
        write_member(target, "b/c", b"2")
    assert everything_below(allowed) == set()


def test_what_a_killed_worker_left_of_a_directory_is_removed_by_the_next_attempt(allowed: Path, places: Places) -> None:
    (allowed / DRAFT / "b").mkdir(parents=True)
    (allowed / DRAFT / "b" / "c").write_bytes(b"half")
    with places.target(f"{allowed}/made", DRAFT) as target:
        target.begin_directory()
        write_member(target, "a", b"1")
        target.finish_directory()
    assert everything_below(allowed) == {"made", "made/a"}


def test_a_directory_takes_the_place_of_nothing(allowed: Path, places: Places) -> None:
    for name, make in (("file", Path.touch), ("directory", Path.mkdir)):
        make(allowed / name)
        with refused("File exists"), places.target(f"{allowed}/{name}", DRAFT) as target:
            target.begin_directory()


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "", "a//b", ".", "a/.", "zero\0", "x" * 256])
def test_a_name_of_a_collection_that_leads_elsewhere_is_refused(allowed: Path, places: Places, name: str) -> None:
    with places.target(f"{allowed}/made", DRAFT) as target:
        target.begin_directory()
        with refused("no name of a file"):
            target.begin_member(name)
    assert everything_below(allowed) == set()


def test_a_link_put_into_a_directory_that_is_being_written_is_not_followed(
    tmp_path: Path, allowed: Path, places: Places
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with places.target(f"{allowed}/made", DRAFT) as target:
        target.begin_directory()
        (allowed / DRAFT / "b").symlink_to(outside)
        with refused("cannot write b/c"):
            target.begin_member("b/c")
        (allowed / DRAFT / "x").symlink_to(outside / "new")
        with refused("cannot write x"):
            target.begin_member("x")
    assert everything_below(outside) == set()
