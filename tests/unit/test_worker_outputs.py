"""What is taken of what a job has left: which files its patterns name, and nothing that a hostile job puts there."""

from __future__ import annotations

import os
import socket
import stat
import threading
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.protocol.model import MAX_OUTPUTS
from jobs.workers import outputs
from jobs.workers.outputs import Found, OutputError, TooMuchError

GIB = 1 << 30


@pytest.fixture
def work(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    (tmp_path / "secret").write_text("secret")
    return made


def found(work: Path, *patterns: str, spared: frozenset[str] = frozenset(), max_bytes: int = GIB) -> Found:
    root = os.open(work, os.O_PATH | os.O_DIRECTORY)
    try:
        return outputs.find(root, patterns, spared, max_bytes)
    finally:
        os.close(root)


def paths(work: Path, *patterns: str) -> list[str]:
    return [file.path for file in found(work, *patterns).files]


def content(work: Path, *patterns: str) -> dict[str, bytes]:
    """What is read of each file that the patterns name."""
    root = os.open(work, os.O_PATH | os.O_DIRECTORY)
    taken: dict[str, bytes] = {}
    try:
        for file in outputs.find(root, patterns, frozenset(), GIB).files:
            with outputs.opened(root, file) as handle:
                data = b""
                while len(data) < file.size_bytes:
                    data += outputs.read(handle, file, len(data), 1 << 20)
                outputs.check_unchanged(handle, file)
            taken[file.path] = data
    finally:
        os.close(root)
    return taken


def make(work: Path, *names: str) -> None:
    for name in names:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name)


# --- patterns ---------------------------------------------------------------------------------------------------------


def test_patterns_name_files_as_in_a_shell(work: Path) -> None:
    make(work, "a.csv", "b.csv", "b.txt", ".hidden.csv", "out/a.csv", "out/deep/er/c.csv", "out/.git/d.csv", "x[1].csv")
    assert paths(work, "*.csv") == ["a.csv", "b.csv", "x[1].csv"]
    assert paths(work, "?.csv", "*.csv") == ["a.csv", "b.csv", "x[1].csv"]
    assert paths(work, "[ab].*") == ["a.csv", "b.csv", "b.txt"]
    assert paths(work, "**/*.csv") == ["a.csv", "b.csv", "out/a.csv", "out/deep/er/c.csv", "x[1].csv"]
    assert paths(work, "out/**") == ["out/a.csv", "out/deep/er/c.csv"]
    assert paths(work, "**/er/**") == ["out/deep/er/c.csv"]
    assert paths(work, "out/.git/*") == ["out/.git/d.csv"]
    assert paths(work, ".*") == [".hidden.csv"]
    assert paths(work, "x[[]1].csv") == ["x[1].csv"]
    assert paths(work, "*") == ["a.csv", "b.csv", "b.txt", "x[1].csv"]
    assert paths(work, "none*", "nowhere/*") == []
    assert content(work, "out/a.csv") == {"out/a.csv": b"out/a.csv"}


def test_what_is_named_without_wildcards_has_to_be_there(work: Path) -> None:
    make(work, "out/a")
    for pattern, why in (("b", "output b is not there"), ("out/b", "not there"), ("out", "is a directory"),
                         ("out/a/b", "not there"), ("x" * 255, "not there")):  # fmt: skip
        with pytest.raises(OutputError, match=why):
            found(work, "out/*", pattern)


def test_what_the_job_was_given_as_a_blob_is_spared(work: Path) -> None:
    make(work, "in", "tree/a", "out")
    assert [file.path for file in found(work, "**", spared=frozenset({"in", "tree"})).files] == ["out"]


NAMES = st.text("ab.", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
TREES = st.sets(st.lists(NAMES, min_size=1, max_size=3).map("/".join), max_size=6)
PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "a*", "?b", "[ab]", "**", ".a"]), min_size=1, max_size=3).map(
    "/".join
)


@given(TREES, st.lists(PATTERNS, min_size=1, max_size=3))
def test_what_matches_is_what_the_definition_says(
    tmp_path_factory: pytest.TempPathFactory, tree: set[str], patterns: list[str]
) -> None:
    """Against a plain definition of the patterns, over all files."""
    work = tmp_path_factory.mktemp("work")
    files = {name for name in tree if not any(other.startswith(f"{name}/") for other in tree)}
    make(work, *files)
    wild = [pattern for pattern in patterns if "*" in pattern or "?" in pattern or "[" in pattern]
    assert set(paths(work, *wild)) == {
        name for name in files if any(_matches(p.split("/"), name.split("/")) for p in wild)
    }


def _matches(pattern: list[str], path: list[str]) -> bool:
    if pattern[-1:] == ["**"]:
        pattern = [*pattern, "*"]
    if not pattern or not path:
        return not pattern and not path
    if pattern[0] == "**":
        return _matches(pattern[1:], path) or (not path[0].startswith(".") and _matches(pattern, path[1:]))
    shown = path[0].startswith(".") <= pattern[0].startswith(".")
    return shown and fnmatchcase(path[0], pattern[0]) and _matches(pattern[1:], path[1:])


# --- what a hostile job puts there ------------------------------------------------------------------------------------


def test_no_link_is_followed(work: Path) -> None:
    make(work, "real/a")
    (work / "link").symlink_to("../secret")
    (work / "absolute").symlink_to(work.parent / "secret")
    (work / "directory").symlink_to("..")
    (work / "here").symlink_to("real")
    (work / "proc").symlink_to("/proc/self/root")
    assert paths(work, "**") == ["real/a"]
    assert paths(work, "*/*") == ["real/a"]
    skipped = {one.path: one.why for one in found(work, "*").skipped}
    assert skipped == dict.fromkeys(("absolute", "directory", "here", "link", "proc"), "is a symbolic link")
    for pattern in ("link", "directory/secret", "here/a", "proc/etc/passwd"):
        with pytest.raises(OutputError, match=r"symbolic link|not there"):
            found(work, pattern)


def test_what_is_no_regular_file_with_one_name_is_not_taken(work: Path) -> None:
    make(work, "good")
    os.link(work.parent / "secret", work / "hard")
    os.mkfifo(work / "fifo")
    if os.geteuid() == 0:
        os.mknod(work / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(work / "socket"))
        result = found(work, "*")
    assert [file.path for file in result.files] == ["good"]
    assert {one.path for one in result.skipped} >= {"hard", "fifo", "socket"}
    for name, why in (("hard", "hard links"), ("fifo", "FIFO")):
        with pytest.raises(OutputError, match=why):
            found(work, name)


def test_a_fifo_in_the_place_of_a_file_is_never_opened(work: Path) -> None:
    """Given a file that became a FIFO after it was found: to open that would wait for a writer for ever."""
    make(work, "out")
    root = os.open(work, os.O_PATH | os.O_DIRECTORY)
    (file,) = outputs.find(root, ["out"], frozenset(), GIB).files
    (work / "out").unlink()
    os.mkfifo(work / "out")
    with pytest.raises(OutputError, match="FIFO"), outputs.opened(root, file):
        pass
    os.close(root)


@pytest.mark.parametrize("turn", ["link", "directory link", "other file", "written", "shorter", "hard link"])
def test_what_changes_between_a_look_and_the_end_of_reading_is_refused(work: Path, turn: str) -> None:
    make(work, "d/out", "other")
    root = os.open(work, os.O_PATH | os.O_DIRECTORY)
    (file,) = outputs.find(root, ["d/out"], frozenset(), GIB).files
    path = work / "d" / "out"
    match turn:
        case "link":
            path.unlink()
            path.symlink_to("../../secret")
        case "directory link":
            (work / "d").rename(work / "moved")
            (work / "d").symlink_to("moved")
        case "other file":
            os.replace(work / "other", path)
        case "written":
            path.write_text("ano/t")
        case "shorter":
            path.write_text("")
        case "hard link":
            os.link(path, work / "second")
    with pytest.raises(OutputError), outputs.opened(root, file):
        pass
    os.close(root)


def test_a_file_that_is_swapped_all_the_time_never_gives_another_ones_content(work: Path) -> None:
    """Given somebody who exchanges a file, a link to a secret and a directory for each other as fast as they can."""
    stop = threading.Event()
    path, spare = work / "out", work / "spare"

    def swap() -> None:
        while not stop.is_set():
            for make_one in (
                lambda: spare.write_text("harmless"),
                lambda: spare.symlink_to("../secret"),
                lambda: os.link(work.parent / "secret", spare),
                lambda: os.mkfifo(spare),
            ):
                make_one()
                os.replace(spare, path)

    path.write_text("harmless")
    swapper = threading.Thread(target=swap)
    swapper.start()
    seen: set[bytes] = set()
    try:
        for _ in range(2_000):
            with suppress(OutputError):
                seen |= set(content(work, "out").values())
    finally:
        stop.set()
        swapper.join()
    assert seen <= {b"harmless", b""}  # b"": it was looked at before it was written


def test_a_file_that_grows_or_shrinks_while_it_is_read_is_refused(work: Path) -> None:
    make(work, "out")
    (work / "out").write_bytes(bytes(4 << 20))
    root = os.open(work, os.O_PATH | os.O_DIRECTORY)
    (file,) = outputs.find(root, ["out"], frozenset(), GIB).files
    with outputs.opened(root, file) as handle:
        assert len(outputs.read(handle, file, 0, 1 << 20)) == 1 << 20
        os.truncate(work / "out", 1 << 20)
        with pytest.raises(OutputError, match="shorter"):
            outputs.read(handle, file, 1 << 20, 1 << 20)
        with pytest.raises(OutputError, match="changed"):
            outputs.check_unchanged(handle, file)
    os.close(root)


def test_a_hundred_thousand_files_are_more_than_is_taken(work: Path) -> None:
    for number in range(100_000):
        os.close(os.open(work / f"{number}.log", os.O_CREAT | os.O_WRONLY))
    make(work, "out/one")
    with pytest.raises(TooMuchError, match=f"more than {MAX_OUTPUTS} files"):
        found(work, "*")
    assert paths(work, "*.csv", "out/*") == ["out/one"]
    assert paths(work, "out/one") == ["out/one"]


def test_more_names_than_are_looked_at_end_the_search(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MAX_ENTRIES", 10)
    make(work, *(f"{number}.log" for number in range(11)))
    with pytest.raises(TooMuchError, match="more than 10 files to look at"):
        found(work, "*.csv")


def test_a_sparse_file_of_a_terabyte_is_more_than_is_taken(work: Path) -> None:
    os.close(os.open(work / "sparse", os.O_CREAT | os.O_WRONLY))
    os.truncate(work / "sparse", 1 << 40)
    with pytest.raises(TooMuchError, match="1099511627776 bytes"):
        found(work, "*")


def test_directories_without_end_end_the_search(work: Path) -> None:
    handle = os.open(work, os.O_RDONLY)
    for _ in range(200):
        os.mkdir("d", dir_fd=handle)
        below = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TooMuchError, match="64 directories deep"):
        found(work, "**")
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_names_that_are_no_text_are_told_of(work: Path) -> None:
    os.close(os.open(os.fsencode(work) + b"/\xff\xfe.csv", os.O_CREAT | os.O_WRONLY))
    make(work, "good.csv")
    result = found(work, "*.csv")
    assert [file.path for file in result.files] == ["good.csv"]
    assert [(one.path, one.why) for one in result.skipped] == [
        ("\\xff\\xfe.csv".replace("\\x", "\\udc"), "has a name that is not UTF-8")
    ]


def test_no_descriptor_is_left(work: Path) -> None:
    make(work, *(f"d{number}/f" for number in range(20)))
    (work / "d3" / "f").unlink()
    (work / "d3" / "f").symlink_to("/etc/passwd")
    before = len(os.listdir("/proc/self/fd"))
    content(work, "**")
    with pytest.raises(OutputError):
        content(work, "d3/f")
    assert len(os.listdir("/proc/self/fd")) == before
