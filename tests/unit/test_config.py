"""Configuration: precedence of its sources, what is refused and how that is said, and the generated reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.config import ConfigError, check_config, load_config
from jobs.config.document import document
from jobs.config.load import line_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("JOBS_")]:
        monkeypatch.delenv(name)


def write(directory: Path, text: str) -> Path:
    file = directory / "node.toml"
    file.write_text(text)
    return file


def test_defaults_are_valid_and_complete() -> None:
    config = load_config(embedded=Path("/x"))
    assert config.workers.shell.limits.output_bytes == 64 << 20
    assert config.workers.shell.slots >= 1
    assert config.node.id


def test_flags_count_before_environment_before_file_before_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, "[workers.shell]\nslots = 3\ngrace_s = 3.0\ndrain_s = 3.0\n")
    monkeypatch.setenv("JOBS_WORKERS__SHELL__SLOTS", "2")
    monkeypatch.setenv("JOBS_WORKERS__SHELL__GRACE_S", "2")
    shell = load_config(file, flags={"workers": {"shell": {"slots": 1}}}).workers.shell
    assert (shell.slots, shell.grace_s, shell.drain_s) == (1, 2.0, 3.0)
    assert shell.sandbox == "strict"


def test_the_file_is_the_named_one_else_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBS_CONFIG", str(write(tmp_path, '[node]\nid = "env"\n')))
    (tmp_path / "other.toml").write_text('[node]\nid = "flag"\n')
    assert load_config().node.id == "env"
    assert load_config(tmp_path / "other.toml").node.id == "flag"


def test_embedded_paths_lie_in_the_directory_unless_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(embedded=tmp_path)
    for path in (config.api_socket, config.worker_socket_path, config.log_dir, config.store_dir):
        assert path.is_relative_to(tmp_path)
    assert config.api_socket == tmp_path / "api.sock"
    monkeypatch.setenv("JOBS_API__SOCKET", "/elsewhere/api.sock")
    assert load_config(embedded=tmp_path).api_socket == Path("/elsewhere/api.sock")
    monkeypatch.chdir(tmp_path)
    assert load_config(embedded=Path("relative")).node.run_dir == tmp_path / "relative"


def test_sizes_and_modes_can_be_written_as_people_do(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, '[log]\nsegment_bytes = "8MiB"\n[api]\nmode = "0600"\n'))
    assert config.log.segment_bytes == 8 << 20
    assert type(config.log.segment_bytes) is int
    assert config.api.mode == 0o600
    assert load_config(write(tmp_path, "[api]\nmode = 0o600\n")).api.mode == 0o600


def test_the_configuration_cannot_be_changed() -> None:
    config = load_config(embedded=Path("/x"))
    with pytest.raises(ValueError, match="frozen"):
        config.workers.shell.slots = 9


@pytest.mark.parametrize(
    ("text", "line", "key", "problem", "fix"),
    [
        ('[node]\nid = "a"\n\n[api]\nsokcet = "/x"\n', 5, "api.sokcet", "not known", "did you mean 'socket'?"),
        ("[apo]\n", 1, "apo", "not known", "did you mean 'api'?"),
        ("[log]\nzzzz = 1\n", 2, "log.zzzz", "not known", "segment_bytes"),
        ("[workers]\nshell.slots = 0\n", 2, "workers.shell.slots", "greater than or equal to 1", "Jobs at a time"),
        ('[workers.shell]\nslots = "many"\n', 2, "workers.shell.slots", "integer", "Jobs at a time"),
        ("[api]\n  mode = 660\n", 2, "api.mode", "octal", "Permission bits"),
        ("[raft]\nheartbeat_s = 5\n", 1, "raft", "three times heartbeat_s", ""),
        ('[workers.shell]\nsandbox = "lax"\n', 2, "workers.shell.sandbox", "strict", ""),
        ("[workers.shell]\nlabels = {'root:x' = 'yes'}\n", 1, "workers.shell", "follow from roots", ""),
        ("[workers.shell]\nslots = 8\nuid_count = 9\n", 1, "workers.shell", "at least 10", ""),
        ("[store]\nmax_bytes = 1\n", 2, "store.max_bytes", "16777216", ""),
        ("[workers.shell.labels]\n'bad name' = \"x\"\n", 2, "workers.shell.labels.bad name", "no name", ""),
        (
            "[workers.shell.credentials]\n'a:b' = {users = ['x']}\n",
            2,
            "workers.shell.credentials.a:b",
            "as [A-Z",
            "}`; wi",
        ),
        ("[api]\nsocket = 5\n", 2, "api.socket", "should be a path, in quotes", "api.sock"),
        ("[workers.shell]\nlabels = 1\n", 2, "workers.shell.labels", "should be a table", "require"),
        ("node = 1\n", 1, "node", "should be a section", ""),
        ("[worker_socket]\nusers = 1\n", 2, "worker_socket.users", "should be a list", "register workers"),
        ("[node\n", 1, "", "not TOML", "syntax"),
        ("[node]\nid = 'a'\nid = 'b'\n", 3, "", "not TOML", "syntax"),
    ],
)
def test_a_problem_is_told_with_its_place_and_its_mend(
    tmp_path: Path, text: str, line: int, key: str, problem: str, fix: str
) -> None:
    file = write(tmp_path, text)
    (found,) = check_config(file)
    assert (found.file, found.line) == (str(file), line)
    assert found.key.removesuffix(".[key]") == key
    assert problem in found.problem
    assert fix in found.fix
    assert str(found).startswith(f"{file}:{line}: {key}")


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    found = check_config(write(tmp_path, "[api]\nfoo = 1\nmode = 9999\n[log]\nbar = 2\n"))
    assert sorted(item.key for item in found) == ["api.foo", "api.mode", "log.bar"]


def test_files_that_cannot_be_read_are_problems(tmp_path: Path) -> None:
    (found,) = check_config(tmp_path / "none.toml")
    assert "does not exist" in found.problem
    (found,) = check_config(tmp_path)
    assert "cannot be read" in found.problem
    (tmp_path / "latin").write_bytes(b'[node]\nid = "\xe9"\n')
    (found,) = check_config(tmp_path / "latin")
    assert "not UTF-8" in found.problem


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("JOBS_LOOG__SEGMENT_BYTES", "1", "JOBS_LOOG__SEGMENT_BYTES"),
        ("JOBS_LOG__SEGMENT", "1", "log.segment"),
        ("JOBS_LOG__SEGMENT_BYTES", "many", "log.segment_bytes"),
        ("JOBS_LOG", "many", "log"),
    ],
)
def test_problems_of_the_environment_are_told_as_such(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, key: str
) -> None:
    monkeypatch.setenv(name, value)
    (found,) = check_config(embedded=Path("/x"))
    assert (found.file, found.key) == ("environment", key)


def test_variables_of_clients_are_not_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBS_SOCKET", "/x")
    monkeypatch.setenv("JOBS_TEST_SCALE", "2")
    assert check_config(embedded=Path("/x")) == []


def test_problems_of_flags_are_told_as_such() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(flags={"workers": {"shell": {"slots": 0}}}, embedded=Path("/x"))
    (found,) = error.value.problems
    assert (found.file, found.line, found.key) == ("command line", None, "workers.shell.slots")


def test_the_line_of_a_key_is_found_in_every_way_to_write_it() -> None:
    text = "a.b = 1\n[t]\n# x = 0\n'q k' = 1\n  x=2 # y = 3\n[t.u] # c\nv = '''\n[not.a.table]\n'''\n"
    assert line_of(text, ("a", "b")) == 1
    assert line_of(text, ("t",)) == 2
    assert line_of(text, ("t", "q k")) == 4
    assert line_of(text, ("t", "x")) == 5
    assert line_of(text, ("t", "u")) == 6
    assert line_of(text, ("t", "u", "v")) == 7
    assert line_of(text, ("t", "y")) is None


def test_the_reference_is_that_of_the_model() -> None:
    assert (ROOT / "docs/config.md").read_text() == document(), "run: python -m jobs.config.document > docs/config.md"


def test_a_client_does_not_load_what_only_the_node_needs() -> None:
    code = (
        "import sys, jobs.logs, jobs.notify, jobs.doctor, jobs.workers, jobs.protocol.wire\n"
        "assert not {'pydantic', 'pydantic_settings'} & set(sys.modules), 'pydantic is loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
