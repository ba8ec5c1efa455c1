"""What `jobctl install-units` puts where."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
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
    assert [json.loads(line) for line in lines(capsys)] == [{"path": f"/{UNIT}", "done": "replaced"}]
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


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["install-units", "--root", str(tmp_path), "--systemd", "252"]
    assert main([*command, "--dry-run"]) == exits.OK
    planned = lines(capsys)
    assert not list(tmp_path.iterdir())
    assert main(command) == exits.OK
    assert planned == [line.replace("installed", "to be installed:") for line in lines(capsys)]
    # An upgrade: one file is otherwise
    (tmp_path / UNIT).write_text("[Service]\n")
    assert main([*command, "--dry-run", "--json"]) == exits.OK
    assert [json.loads(line) for line in lines(capsys)] == [{"path": f"/{UNIT}", "change": "replaced"}]
    assert (tmp_path / UNIT).read_text() == "[Service]\n"
    # A removal
    assert main([*command, "--remove", "--dry-run"]) == exits.OK
    planned = lines(capsys)
    assert main([*command, "--remove"]) == exits.OK
    assert planned == [line.replace("removed", "to be removed:") for line in lines(capsys)]
    assert main([*command, "--remove"]) == exits.OK
    assert lines(capsys) == []


def commands_in(directory: Path) -> Path:
    directory.mkdir()
    for name in appliance.COMMANDS:
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)
    return directory


def test_a_dry_run_on_this_machine_says_what_would_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = commands_in(tmp_path / "bin")
    prefix = tmp_path / "local"
    command = ["install-units", "--prefix", str(prefix), "--commands", str(commands), "--dry-run"]
    assert main([*command, "--enable", "--workers", "sql"]) == exits.OK
    ran = [line.removeprefix("to run ") for line in lines(capsys) if line.startswith("to run ")]
    assert ran == [
        f"systemd-sysusers {prefix}/lib/sysusers.d/jobs.conf",
        f"systemd-tmpfiles --create {prefix}/lib/tmpfiles.d/jobs.conf",
        "systemctl daemon-reload",
        f"systemctl enable --quiet {' '.join(appliance.NODE_UNITS)} jobs-worker@sql.service",
    ]
    assert not prefix.exists()
    # What is not there is not stopped either: systemctl would complain of it
    assert main([*command, "--remove"]) == exits.OK
    assert lines(capsys) == []


def test_commands_that_services_could_not_run_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["install-units", "--prefix", str(tmp_path / "local"), "--dry-run", "--commands"]
    assert main([*command, str(tmp_path)]) == exits.FAILED
    assert f"{tmp_path}/jobs-node is not there" in capsys.readouterr().err
    commands = commands_in(tmp_path / "bin")
    monkeypatch.setattr(appliance, "HIDDEN", (tmp_path / "home",))
    assert main([*command, str(commands)]) == exits.OK
    (tmp_path / "home").mkdir()
    (tmp_path / "home/python").touch()
    (commands / "python").symlink_to(tmp_path / "home/python")
    assert main([*command, str(commands)]) == exits.FAILED
    assert f"{commands}/python is {tmp_path}/home/python, which services cannot see" in capsys.readouterr().err


def test_what_is_for_this_machine_only_is_refused_for_another_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install-units", "--root", str(tmp_path), "--enable"]) == exits.USAGE
    assert "systemctl --root" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_second_installation_is_refused_and_the_first_can_be_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["install-units", "--root", str(tmp_path)]
    assert main([*command, "--prefix", "/usr"]) == exits.OK
    assert main(command) == exits.FAILED
    assert "/usr/lib/systemd/system/jobs-node.service is there" in capsys.readouterr().err
    assert not (tmp_path / "usr/local").exists()
    assert main([*command, "--prefix", "/usr", "--remove"]) == exits.OK
    assert main(command) == exits.OK


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="systemctl is not here")
def test_the_preset_enables_the_node_and_a_worker_of_each_type(tmp_path: Path) -> None:
    assert main(["install-units", "--root", str(tmp_path)]) == exits.OK
    subprocess.run(["systemctl", f"--root={tmp_path}", "--quiet", "preset-all"], check=True, timeout=60)
    wanted = tmp_path / "etc/systemd/system/jobs-node.service.wants"
    assert sorted(os.listdir(wanted)) == appliance.worker_units(appliance.worker_types())
    assert (tmp_path / "etc/systemd/system/multi-user.target.wants/jobs-node.service").is_symlink()


def test_a_machine_without_systemd_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(appliance, "unusable", lambda commands: None)
    monkeypatch.setattr(appliance, "put", lambda wanted, root, dry: iter(()))
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
