"""What doctor says of this machine, and of things made wrong on purpose."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from jobs import doctor
from jobs.config import load_config

MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:20 / /data rw - tmpfs tmpfs rw
24 23 0:21 / /data/nfs rw shared:2 master:1 - nfs4 server:/x rw
25 22 0:22 / /with\\040space rw - xfs /dev/vdb rw
broken line
"""


def by_name(directory: Path) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.report(load_config(embedded=directory))}


def test_everything_is_looked_at_and_what_is_not_well_has_a_fix(tmp_path: Path) -> None:
    checks = by_name(tmp_path)
    wanted = {"python", "extension", "kernel", "open files", "no_new_privs", "data directory", "file system", "fsync"}
    assert wanted | {"disk space", "clock", "API socket", "worker socket", "sandbox: seccomp"} <= set(checks)
    assert any(name.startswith("sandbox: user") for name in checks)
    for check in checks.values():
        assert check.found
        assert (check.status == "ok") == (not check.fix), check
    for name in ("python", "extension", "clock", "fsync"):
        assert checks[name].status != "fail", checks[name]


def test_a_socket_is_served_refused_or_missing(tmp_path: Path) -> None:
    assert "is not there" in by_name(tmp_path)["API socket"].found
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "api.sock"))
        listener.listen()
        assert by_name(tmp_path)["API socket"].status == "ok"
    refused = by_name(tmp_path)["API socket"]
    assert (refused.status, "nobody serves" in refused.found) == ("warn", True)


def test_nothing_is_left_in_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    by_name(tmp_path)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_configuration_that_is_wrong_is_a_failure_and_the_rest_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node.toml").write_text("[node]\nidd = 'x'\n")
    monkeypatch.setenv("JOBS_CONFIG", str(tmp_path / "node.toml"))
    first, *others = doctor.report()
    assert (first.name, first.status) == ("configuration", "fail")
    assert "did you mean 'id'?" in first.found
    assert others


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/jobs", "ext4"),
        ("/data/x", "tmpfs"),
        ("/data", "tmpfs"),
        ("/data/nfs/x", "nfs4"),
        ("/database", "ext4"),
        ("/with space/x", "xfs"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_its_innermost_mount(path: str, kind: str) -> None:
    assert doctor.file_system_of(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.44-fc", (6, 18)), ("5.4.0", (5, 4)), ("4.19", (4, 19)), ("6", (0, 0)), ("odd.one", (0, 0))],
)
def test_kernel_releases_are_read(release: str, version: tuple[int, int]) -> None:
    assert doctor.kernel_version(release) == version
