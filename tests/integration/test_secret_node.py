"""Secrets with a real node and a real worker: by the commands and the client, after kills, in backups, and where else
a value might be."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import AsyncClient, Client, JobState, shell_job
from jobs.errors import InvalidRequest, NotFound
from jobs.mounts import is_in_memory
from jobs.protocol.model import Reason
from jobs.testing import EmbeddedNode
from tests.support.jobctl import jobctl
from tests.support.users import let_others_in

VALUE = "correct-horse-battery-staple"
OF_THE_MACHINE = "the-machine-s-own-credential"
OTHER_UID = 61_234


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    directory = tmp_path_factory.mktemp("node")
    given = directory / "given"
    given.mkdir()
    (given / "by-systemd").write_text(OF_THE_MACHINE)
    (directory / "credential").write_text(OF_THE_MACHINE + "\n")
    credentials = {
        "deploy": {"path": str(directory / "credential"), "users": [str(os.getuid())]},
        "of-others": {"path": str(directory / "credential"), "users": [str(OTHER_UID), "nobody"]},
        "by-systemd": {"users": [str(os.getuid())]},
        "gone": {"path": str(directory / "gone"), "users": [str(os.getuid())]},
    }
    env = {
        "JOBS_WORKERS__SHELL__CREDENTIALS": json.dumps(credentials),
        "CREDENTIALS_DIRECTORY": str(given),
        "JOBS_LOGGING__LEVEL": "debug",
    }
    with EmbeddedNode(directory / "n", env=env) as made:
        yield made


def run(client: Client, command: str, **secrets: str) -> tuple[JobState, str | None, Reason | None]:
    result = client.run(shell_job(command, secrets=secrets))
    return result.state, None if result.stdout is None else result.stdout.text, result.reason


def test_by_the_commands(node: EmbeddedNode) -> None:
    """Given a value on standard input; it is set, used, shown, listed and deleted, and never printed."""
    told = [
        jobctl(node, "secret", "set", "db", "--strip", stdin=f"{VALUE}\n".encode()),
        jobctl(node, "--json", "secret", "list"),
        jobctl(node, "secret", "show", "db"),
        jobctl(node, "secret", "key"),
        jobctl(node, "secret", "rotate-key"),
        jobctl(
            node, "run", "--secret", "password=db", "--", "sh", "-c", "cat /run/secrets/password; wc -c /run/secrets/*"
        ),
    ]
    assert [one.returncode for one in told] == [0] * len(told), told
    assert json.loads(told[1].stdout)["size_bytes"] == len(VALUE)
    assert told[-1].stdout.decode() == f"***{len(VALUE)} /run/secrets/password\n"
    assert not any(VALUE.encode() in one.stdout + one.stderr for one in told)
    assert jobctl(node, "secret", "delete", "db").returncode == 0
    assert jobctl(node, "run", "--secret", "password=db", "--", "true").returncode == 1
    short = jobctl(node, "secret", "set", "short", stdin=b"1234")
    assert b"not hidden" in short.stderr


def test_by_the_clients(node: EmbeddedNode) -> None:
    """Given a value set by one client; the other one sees, uses, replaces and deletes it."""

    async def other() -> None:
        async with AsyncClient(str(node.socket)) as client:
            assert (await client.secrets.get("shared")).version == 1
            job = shell_job(["cat", "/run/secrets/s"], secrets={"s": "shared"})
            result = await client.run(job)
            assert result.stdout is not None
            assert result.stdout.text == "***"
            assert (await client.secrets.set("shared", b"\x00\xff" * 20)).version == 2
            assert "shared" in [view.name async for view in client.secrets.list()]
            assert (await client.secrets.key()).present
            assert (await client.secrets.rotate_key()).forgotten == 0
            await client.secrets.delete("shared")
            with pytest.raises(NotFound):
                await client.secrets.get("shared")

    with node.client() as client:
        client.secrets.set("shared", VALUE)
        with pytest.raises(InvalidRequest) as raised:
            client.secrets.set("shared", VALUE + "\ud800")
        assert VALUE not in f"{raised.value!r} {raised.value.__cause__!r}"
    asyncio.run(other())


def test_a_value_that_is_short_or_empty_is_said(node: EmbeddedNode) -> None:
    assert jobctl(node, "secret", "set", "empty", stdin=b"").returncode == 2
    assert jobctl(node, "secret", "set", "large", stdin=b"x" * 70_000).returncode == 2


def test_credentials_are_given_to_whom_the_operator_names(node: EmbeddedNode) -> None:
    with node.client() as client:
        size = f"{len(OF_THE_MACHINE)}\n"
        assert run(client, "wc -c < /run/secrets/a", a="credential:by-systemd") == (JobState.COMPLETED, size, None)
        assert run(client, "cat $JOBS_SECRETS/a", a="credential:deploy") == (JobState.COMPLETED, "***\n", None)
        for name in ("of-others", "unknown"):
            result = client.run(shell_job("true", secrets={"a": f"credential:{name}"}))
            assert (result.reason, result.message) == (
                Reason.INVALID_PAYLOAD,
                f"credential '{name}': this worker has none of that name for uid {os.getuid()}",
            )
        assert run(client, "true", a="credential:gone")[2] is Reason.SPAWN_FAILED


def test_a_value_is_in_nothing_that_is_told_or_kept(node: EmbeddedNode) -> None:
    """Given a job that writes its secret as text and as progress; everything about it is then looked through."""
    with node.client() as client:
        client.secrets.set("token", VALUE)
        job = client.submit(
            shell_job(
                'cat $JOBS_SECRETS/t >&2; echo "progress 10 $(cat $JOBS_SECRETS/t)" >&3; cat $JOBS_SECRETS/t',
                secrets={"t": "token"},
                outputs=["*"],
            )
        ).job
        client.wait(job.id, timeout_s=60)
        told = [
            client.get(job.id),
            client.result(job.id),
            list(client.logs(job.id)),
            list(client.list()),
            client.explain(job.id),
            list(client.audit()),
            list(client.secrets.list()),
        ]
        assert VALUE not in repr(told)
        refused = jobctl(node, "secret", "set", "a/b", stdin=VALUE.encode())
        assert VALUE.encode() not in refused.stderr + refused.stdout
    kept = [path for path in node.directory.rglob("*") if path.is_file()]
    assert any(path.name == "secrets.key" for path in kept)
    assert not [path for path in kept if VALUE.encode() in path.read_bytes()]


def test_neither_node_nor_worker_dumps_core(node: EmbeddedNode) -> None:
    children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
    for pid in (str(node.pid), *children):
        limits = Path(f"/proc/{pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["1", "1"], core


def test_secrets_outlive_a_kill_and_a_backup_has_them_encrypted(tmp_path: Path) -> None:
    """Given a node that is killed, and another one that is made of its backup, first without the key, then with it."""
    allowed = {"JOBS_WORKERS__REPLICATION__ALLOW_FILES": json.dumps([str(tmp_path)])}
    with EmbeddedNode(tmp_path / "n", env=allowed, types=("shell", "replication")) as node:
        with node.client() as client:
            client.secrets.set("token", VALUE)
        node.kill()
        node.start()
        with node.client() as client:
            assert run(client, "cat /run/secrets/t", t="token") == (JobState.COMPLETED, "***", None)
        made = jobctl(node, "backup", "create", str(tmp_path / "backups"))
        assert made.returncode == 0, made.stderr
    backed_up = b"".join(path.read_bytes() for path in (tmp_path / "backups").rglob("*") if path.is_file())
    assert VALUE.encode() not in backed_up
    assert b"AGE-SECRET-KEY" not in backed_up
    command = [sys.executable, "-m", "jobs.node", "--embedded", str(tmp_path / "r")]
    restored = subprocess.run(
        [*command, "restore", "--from", str(tmp_path / "backups"), "--yes"], capture_output=True, text=True, check=False
    )
    assert restored.returncode == 0, restored.stderr
    assert "secrets.key" in restored.stdout
    with EmbeddedNode(tmp_path / "r") as node:
        with node.client() as client:
            assert [view.name for view in client.secrets.list()] == ["token"]
            assert run(client, "cat /run/secrets/t", t="token")[2] is Reason.SPAWN_FAILED
            assert "jobs_secret_keys_lacking 1.0" in client.metrics()
        node.stop()
        key = tmp_path / "r" / "data" / "secrets.key"
        key.write_bytes((tmp_path / "n" / "data" / "secrets.key").read_bytes())
        key.chmod(0o600)
        node.start()
        with node.client() as client:
            assert run(client, "cat /run/secrets/t", t="token") == (JobState.COMPLETED, "***", None)


def test_without_a_sandbox_secrets_are_given_only_where_they_reach_no_disk(tmp_path: Path) -> None:
    """Given workers of level none, one whose jobs have directories on a disk, and one that has them in memory."""
    memory = Path("/dev/shm")
    if is_in_memory(tmp_path) or not is_in_memory(memory):
        pytest.skip("no disk and memory file system beside each other")
    let_others_in(tmp_path)
    with tempfile.TemporaryDirectory(dir=memory) as in_memory:
        Path(in_memory).chmod(0o755)
        env = {"JOBS_WORKERS__SHELL__SANDBOX": "none", "JOBS_WORKERS__SHELL__WORK_DIR": str(tmp_path)}
        with EmbeddedNode(tmp_path / "n", env=env) as node:
            with node.client() as client:
                client.secrets.set("token", VALUE)
                result = client.run(shell_job("true", secrets={"t": "token"}))
                assert result.reason is Reason.SANDBOX_UNAVAILABLE
                assert result.message is not None
                assert "work_dir" in result.message
                assert run(client, "echo without") == (JobState.COMPLETED, "without\n", None)
            node.stop()
            node.start(env={"JOBS_WORKERS__SHELL__WORK_DIR": in_memory})
            with node.client() as client:
                script = 'stat -c %a "$JOBS_SECRETS"/t; cat "$JOBS_SECRETS"/t'
                assert run(client, script, t="token") == (JobState.COMPLETED, "400\n***", None)
            node.stop()
        assert not [path for path in Path(in_memory).rglob("*") if path.is_file()]
