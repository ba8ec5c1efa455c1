"""What `jobctl install-units` puts where."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from jobs import appliance
from jobs.cli import exits
from jobs.cli.main import main

UNIT = "usr/local/lib/systemd/system/jobs-node.service"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_everything_is_there_and_calls_the_commands_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install-units", "--root", str(tmp_path), "--commands", "/opt/jobs/bin"]) == exits.OK
    installed = [tmp_path / line.removeprefix("installed /") for line in lines(capsys)]
    assert sorted(installed) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert {stat.S_IMODE(path.stat().st_mode) for path in installed} == {0o644}
    assert "ExecStart=/opt/jobs/bin/jobs-node\n" in (tmp_path / UNIT).read_text()
    assert not [path for path in installed if "/usr/bin/jobs" in path.read_text()]


def test_a_second_time_changes_only_what_differs_and_never_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["install-units", "--root", str(tmp_path), "--json"]
    assert main(command) == exits.OK
    lines(capsys)
    assert main(command) == exits.OK
    assert lines(capsys) == []
    (tmp_path / "etc/jobs/node.toml").write_text('[node]\nid = "mine"\n')
    (tmp_path / UNIT).write_text("[Service]\n")
    assert main(command) == exits.OK
    assert [json.loads(line) for line in lines(capsys)] == [{"path": f"/{UNIT}", "done": "installed"}]
    assert (tmp_path / "etc/jobs/node.toml").read_text() == '[node]\nid = "mine"\n'


def test_what_was_installed_goes_again_but_not_what_is_the_operators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install-units", "--root", str(tmp_path), "--systemd", "256"]) == exits.OK
    dropped_in = tmp_path / "usr/local/lib/systemd/system/jobs-worker@sql.service.d/50-mine.conf"
    dropped_in.write_text("[Service]\n")
    assert main(["install-units", "--root", str(tmp_path), "--systemd", "256", "--remove"]) == exits.OK
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(map(str, left)) == ["etc/jobs/node.toml", str(dropped_in.relative_to(tmp_path))]
    assert not (dropped_in.parents[1] / "jobs-worker@.service.d").exists()
    assert lines(capsys)


def test_a_type_that_there_is_no_worker_of_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install-units", "--root", str(tmp_path), "--workers", "shell,spql"]) == exits.USAGE
    assert "'spql'; there are blob, maintenance, replication, shell, sql" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_machine_without_systemd_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(appliance, "put", lambda wanted, root: iter(()))
    assert main(["install-units"]) == exits.FAILED
    assert "this machine has no systemd; --root DIR" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_who_may_not_write_there_is_told_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert main(["install-units", "--root", str(tmp_path)]) == exits.FAILED
    assert str(tmp_path) in capsys.readouterr().err


def test_the_package_carries_every_file_of_the_source_tree() -> None:
    """By a link for each, as the build of the wheel follows links to files and none to directories."""
    source = Path(__file__).parents[2] / "systemd"
    carried = {path.relative_to(appliance.SOURCES) for path in appliance.SOURCES.rglob("*") if path.is_file()}
    there = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    there = {path for path in there if path.parts[0] != "debian"}
    assert carried == there
    for name in there:
        assert (appliance.SOURCES / name).read_bytes() == (source / name).read_bytes()
