"""What workers have left is found and deleted; what is in use, young, or somebody else's stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from jobs.config import Workers
from jobs.workers.maintenance import leftovers
from jobs.workers.maintenance.leftovers import GRACE_S, Leftover, Place, candidates, places, remove
from jobs.workers.scratch import scratch
from tests.support.users import let_others_in

TAG = "jobs:0123456789"
CGROUPS = Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")
A_PAGE = 4_096


def left(place: Path, name: str = "jobs-inputs-0123456789-abcdefgh") -> Path:
    """Make what a life has left: a directory with a file in one below it."""
    made = place / name
    (made / "shown").mkdir(parents=True)
    (made / "shown" / "file").write_bytes(bytes(A_PAGE))
    return made


def later_s() -> float:
    """Return a time at which what is made now is old."""
    return time.time() + GRACE_S + 60


def sweep(directory: Path, now_s: float | None = None, *, dry_run: bool = False) -> list[Leftover]:
    now_s = later_s() if now_s is None else now_s
    place = Place("directory", directory)
    found = [remove(place, name, now_s, dry_run=dry_run) for name in candidates(place)]
    return [one for one in found if one is not None]


def test_what_a_life_has_left_goes(tmp_path: Path) -> None:
    made = left(tmp_path)
    assert sweep(tmp_path) == [Leftover(kind="directory", path=str(made), bytes=A_PAGE)]
    assert not made.exists()


def test_a_dry_run_tells_and_deletes_nothing(tmp_path: Path) -> None:
    made = left(tmp_path)
    assert sweep(tmp_path, dry_run=True) == [Leftover(kind="directory", path=str(made), bytes=A_PAGE)]
    assert (made / "shown" / "file").exists()


def test_what_is_young_stays(tmp_path: Path) -> None:
    made = left(tmp_path)
    assert sweep(tmp_path, time.time()) == []
    assert made.exists()


@pytest.mark.parametrize(
    "name", ["jobs-inputs-0123456789-abcdefgh.old", "jobs-other-0123456789-abcdefgh", "my-jobs-sql-0123456789-abcdefgh"]
)
def test_what_others_may_have_made_is_not_looked_at(tmp_path: Path, name: str) -> None:
    left(tmp_path, name)
    assert candidates(Place("directory", tmp_path)) == []


def test_a_link_and_a_file_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_bytes(b"1")
    (tmp_path / "jobs-sql-0123456789-abcdefgh").symlink_to(elsewhere)
    (tmp_path / "jobs-sql-0123456789-bcdefghi").write_bytes(b"2")
    made = left(tmp_path)
    (made / "shown" / "link").symlink_to(elsewhere)
    assert [one.stays for one in sweep(tmp_path)] == ["", "it is no directory", "it is no directory"]
    assert (elsewhere / "kept").exists()
    assert not made.exists()


def test_a_directory_is_in_use_until_its_process_ends_however_that_is(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from jobs.workers.scratch import scratch\n"
        f"print(scratch('sql', Path({str(tmp_path)!r}), {TAG!r}), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as worker:
        assert worker.stdout is not None
        made = Path(worker.stdout.readline().strip())
        assert made.parent == tmp_path
        assert sweep(tmp_path) == []
        worker.kill()
    assert made.exists()
    assert [one.path for one in sweep(tmp_path)] == [str(made)]
    assert not made.exists()


def test_a_new_life_deletes_what_the_last_one_has_left(tmp_path: Path) -> None:
    mine, others = left(tmp_path), left(tmp_path, "jobs-inputs-9999999999-abcdefgh")
    made = scratch("inputs", tmp_path, TAG)
    assert not mine.exists()
    assert others.exists(), "another worker's"
    assert sorted(tmp_path.iterdir()) == sorted([made, others])
    assert sweep(tmp_path) == [Leftover(kind="directory", path=str(others), bytes=A_PAGE)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_what_belongs_to_somebody_else_stays(tmp_path: Path) -> None:
    made = left(tmp_path)
    let_others_in(tmp_path)
    os.seteuid(65_534)
    try:
        told = remove(Place("directory", tmp_path), made.name, later_s(), dry_run=False)
    finally:
        os.seteuid(0)
    assert told == Leftover(kind="directory", path=str(made), stays="it belongs to uid 0")
    assert made.exists()


def test_a_place_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    assert candidates(Place("directory", tmp_path / "none")) == []


def test_each_place_is_looked_at_once(tmp_path: Path) -> None:
    config = Workers.model_validate(
        {
            "shell": {"inputs_dir": tmp_path, "cgroup": "/sys/fs/cgroup/jobs"},
            "sql": {"inputs_dir": tmp_path, "spill_dir": tmp_path / "spill"},
        }
    )
    assert places(config) == [
        Place("directory", tmp_path),
        Place("directory", tmp_path / "spill"),
        Place("cgroup", Path("/sys/fs/cgroup/jobs")),
    ]


# --- cgroups ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A directory of the cgroup v2 file system for us alone."""
    for root in CGROUPS:
        made = root / f"jobs-test-{uuid4().hex}"
        if not (root / "cgroup.procs").exists():
            continue
        try:
            made.mkdir()
        except OSError:
            continue
        yield made
        for child in made.iterdir():
            if child.is_dir():
                child.rmdir()
        made.rmdir()
        return
    pytest.skip("no cgroup v2 directory can be made here")


def test_an_empty_cgroup_goes_and_one_with_processes_stays(cgroup: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    empty, used, orphan = (cgroup / name for name in (f"job-{dead.pid}-0", f"job-{os.getpid()}-1", f"job-{dead.pid}-2"))
    for path in (empty, used, orphan):
        path.mkdir()
    place = Place("cgroup", cgroup)
    with ExitStack() as stack:
        for path in (used, orphan):
            process = stack.enter_context(subprocess.Popen(["sleep", "600"]))
            stack.callback(process.kill)
            (path / "cgroup.procs").write_text(str(process.pid))
        assert remove(place, empty.name, time.time(), dry_run=False) is None, "it is young"
        assert remove(place, empty.name, later_s(), dry_run=True) == Leftover(kind="cgroup", path=str(empty))
        assert empty.exists()
        found = [remove(place, name, later_s(), dry_run=False) for name in candidates(place)]
    assert not empty.exists()
    why = f"processes run in it, and process {dead.pid} is gone"
    assert sorted((told.path, told.stays) for told in found if told is not None) == [
        (str(empty), ""),
        (str(orphan), why),
    ]
    assert used.exists()


def test_the_grace_is_counted_from_the_last_change(tmp_path: Path) -> None:
    made = left(tmp_path)
    changed_s = made.stat().st_ctime
    assert sweep(tmp_path, changed_s + leftovers.GRACE_S - 1) == []
    assert len(sweep(tmp_path, changed_s + leftovers.GRACE_S + 1)) == 1
