"""The units as systemd reads them: no complaint, as closed as their notes say, and all that they name is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
import typing
from pathlib import Path

import pytest

from jobs import appliance
from jobs.config import NodeConfig, check_config, load_config
from jobs.config.example import example
from jobs.config.model import WorkerType

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "systemd"
TYPES = typing.get_args(WorkerType)
SERVICES = ["jobs-node.service", *appliance.worker_units(TYPES)]
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
# What docs/install.md says; by how much a version of systemd may count otherwise. What the worker for commands needs on
# top is said line by line in its drop-in.
FIGURES = {"jobs-node.service": 1.5, "jobs-worker@shell.service": 3.7}
OTHERS = 0.3
LEEWAY = 0.1


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the units in it and commands where they say."""
    root = tmp_path_factory.mktemp("root")
    commands = root / "bin"
    commands.mkdir()
    for name in appliance.COMMANDS:
        shutil.copy("/bin/true", commands / name)
    list(appliance.put(appliance.files(Path("/usr"), commands, 252), root))
    return root


def analyze(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Those of the machine come after ours: what ours refer to is there.
    env = {**os.environ, "SYSTEMD_UNIT_PATH": f"{root}/usr/lib/systemd/system:", "SYSTEMD_LOG_LEVEL": "warning"}
    return subprocess.run(["systemd-analyze", *arguments], env=env, capture_output=True, text=True, timeout=60)


@needs_systemd
def test_systemd_has_no_complaint(installed: Path) -> None:
    units = [path.name for path in (SYSTEMD / "system").iterdir() if path.is_file() and "@" not in path.name]
    done = analyze(installed, "verify", "--man=no", *units, *appliance.worker_units(TYPES))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_as_closed_as_it_says(installed: Path, service: str) -> None:
    most = FIGURES.get(service, OTHERS) + LEEWAY
    done = analyze(installed, "security", "--offline=true", "--no-pager", f"--threshold={most * 10:.0f}", service)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_systemd
@pytest.mark.parametrize("service", SERVICES)
def test_what_a_service_leaves_open_is_told_of_in_its_unit(installed: Path, service: str) -> None:
    done = analyze(installed, "security", "--offline=true", "--no-pager", "--json=short", service)
    units = installed / "usr/lib/systemd/system"
    files = [units / re.sub("@.*", "@.service", service), *(units / f"{service}.d").glob("*.conf")]
    text = "".join(file.read_text() for file in files)
    # The set ones are held to what is above them, below.
    left = {re.split("[=/]", item["name"])[0] for item in json.loads(done.stdout) if float(item["exposure"] or 0) > 0}
    assert {setting for setting in left if f"{setting}=" not in text} == set()


def test_the_guide_says_the_figures_that_units_are_held_to() -> None:
    guide = (ROOT / "docs/install.md").read_text()
    for figure in (FIGURES["jobs-node.service"], OTHERS, FIGURES["jobs-worker@shell.service"]):
        assert re.search(rf"\b{figure}\b", guide)


@needs_systemd
def test_a_unit_that_is_wrong_is_complained_of(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed / "usr", tmp_path / "usr")
    unit = tmp_path / "usr/lib/systemd/system/jobs-node.service"
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSecond="))
    assert "WatchdogSecond" in analyze(tmp_path, "verify", "--man=no", "jobs-node.service").stderr


def test_what_the_older_systemd_does_not_know_is_not_given_to_it() -> None:
    paths = {str(file.path) for file in appliance.files(Path("/usr"), Path("/usr/bin"), 252)}
    newer = {str(file.path) for file in appliance.files(Path("/usr"), Path("/usr/bin"), 254)}
    assert newer - paths == {
        f"/usr/lib/systemd/system/{unit}.d/20-backoff.conf" for unit in ("jobs-node.service", "jobs-worker@.service")
    }


def test_every_relaxation_has_its_reason_beside_it() -> None:
    for path in (SYSTEMD / "system").glob("*.d/*.conf"):
        lines = path.read_text().splitlines()
        settings = [line for line in lines if re.match(r"[A-Z]\w+=", line) and not line.startswith("Description=")]
        for line in settings:
            # Going up over settings that belong together, there is a comment.
            above = next(one for one in reversed(lines[: lines.index(line)]) if one not in settings)
            assert above.startswith("#"), f"{path.name}: {line}"


def test_there_is_a_unit_a_user_and_a_preset_for_each_type_of_worker() -> None:
    assert appliance.worker_types() == sorted(TYPES)
    users = re.findall(r"(?m)^u +(\S+)", (SYSTEMD / "sysusers.d/jobs.conf").read_text())
    assert users == ["jobs", *(f"jobs-{worker_type}" for worker_type in TYPES)]
    members = re.findall(r"(?m)^m +(\S+) +jobs-workers$", (SYSTEMD / "sysusers.d/jobs.conf").read_text())
    assert members == users[1:]
    preset = (SYSTEMD / "system-preset/90-jobs.preset").read_text()
    assert preset.split("jobs-worker@.service ")[1].split() == list(TYPES)
    enabled = re.findall(r"(?m)^enable (\S+)$", preset)
    assert sorted(enabled) == sorted(appliance.NODE_UNITS)


def test_the_paths_of_the_units_are_those_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBS_CONFIG", str(SYSTEMD / "node.toml"))
    config = load_config()
    sockets = {name: (SYSTEMD / f"system/{name}.socket").read_text() for name in ("jobs-node", "jobs-node-workers")}
    assert f"ListenStream={config.api_socket}\n" in sockets["jobs-node"]
    assert f"ListenStream={config.worker_socket_path}\n" in sockets["jobs-node-workers"]
    assert f"SocketGroup={config.worker_socket.trusted_group}\n" in sockets["jobs-node-workers"]
    tmpfiles = (SYSTEMD / "tmpfiles.d/jobs.conf").read_text().split()
    assert {str(config.node.data_dir), str(config.store_dir), str(config.node.run_dir)} <= set(tmpfiles)
    node = (SYSTEMD / "system/jobs-node.service").read_text()
    assert f"StateDirectory={config.node.data_dir.name}\n" in node
    for kept in (config.log_dir, config.blobs_dir):
        assert str(kept) in (SYSTEMD / "system/jobs-worker@sql.service.d/10-sql.conf").read_text()


def test_the_example_explains_every_key_and_sets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("JOBS_")]:
        monkeypatch.delenv(name)
    text = (SYSTEMD / "node.toml").read_text()
    assert text == example(), "run: python -m jobs.config.example > systemd/node.toml"
    assert check_config(SYSTEMD / "node.toml") == []
    assert load_config(SYSTEMD / "node.toml").model_dump() == NodeConfig().model_dump()


def test_every_default_of_the_example_can_be_set_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("JOBS_")]:
        monkeypatch.delenv(name)
    text = re.sub(r"(?m)^#(\w+ = [^…\n]+)$", r"\1", (SYSTEMD / "node.toml").read_text())
    assert tomllib.loads(text)["workers"]["shell"]["sandbox"] == "strict"
    file = tmp_path / "node.toml"
    file.write_text(text)
    assert load_config(file).model_dump() == NodeConfig().model_dump()
