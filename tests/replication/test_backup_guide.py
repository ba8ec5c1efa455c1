"""What docs/backup.md shows is run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from socket import AF_INET, SOCK_DGRAM
from socket import socket as socket_of

from tests.docs import guides
from tests.replication.series import backup_node

GUIDE = (Path(__file__).parents[2] / "docs/backup.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def test_its_commands_and_its_python_run(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    shell = 'set -e; jobctl() { "$PYTHON" -m jobs.cli.main "$@"; }\n' + "\n".join(blocks("sh"))
    with backup_node(tmp_path / "node", place) as node, node.client() as client:
        client.kv.put("/data/some", "thing")
        env = {**os.environ, "PYTHON": sys.executable, "JOBS_SOCKET": str(node.socket), "PLACE": str(place)}
        done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=env, capture_output=True, timeout=180)
        assert done.returncode == 0, done.stderr.decode()
        assert client.kv.get("/data/restored/some").value.text == "thing"
        python = "\n".join(blocks("python"))
        done = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, env=env, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        assert client.schedules.get("hourly-backup").schedule.cron == "0 * * * *"


OPERATOR = """
jobctl() { "$PYTHON" -m jobs.cli.main "$@"; }
jobs-node() { "$PYTHON" -m jobs.node "$@"; }
runuser() { [ "$1 $2 $3" = "-u jobs --" ] && shift 3 && "$@"; }
age-keygen() { "$PYTHON" -c "$KEYGEN" "$2"; }
systemctl() {
  [ "$1 $2" = "start jobs-node" ]
  "$PYTHON" -m jobs.node > node.log 2>&1 & node=$!
  trap 'kill $node; wait $node' EXIT
  until [ -S "$JOBS_SOCKET" ]; do kill -0 $node; sleep 0.1; done
}
"""
"""Stand-ins for the tools of a machine with systemd, each for one way to call it."""
KEYGEN = """
import os, pyrage, sys
identity = pyrage.x25519.Identity.generate()
os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), f"{identity}\\n".encode())
print("Public key:", identity.to_public())
"""


def typed(which: int, series: Path) -> list[str]:
    """Return the commands of a block for operators, about a series of this test's."""
    block = [block for block in guides.blocks("docs/backup.md") if block.mark == guides.TEST][which]
    commands = [one.command.replace("/srv/backups/main", str(series)) for one in guides.console(block)]
    # What a command is said to end with is how it ends.
    return [re.sub(r"^(.*)(#.*ends with (\d+))$", r"\1 && exit 1 || test $? = \3", command) for command in commands]


def run_as_operator(commands: list[str], directory: Path, **env: str) -> str:
    given = {**os.environ, "PYTHON": sys.executable, "KEYGEN": KEYGEN, **env}
    script = "set -e\n" + OPERATOR + "\n".join(commands)
    done = subprocess.run(
        ["bash", "-c", script], cwd=directory, env=given, stdin=subprocess.DEVNULL, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode()


def test_a_cluster_that_is_lost_is_made_anew_of_its_backups(tmp_path: Path) -> None:
    # Given backups of a cluster, of which one series is encrypted with a key that is kept elsewhere
    plain, encrypted = tmp_path / "plain", tmp_path / "encrypted"
    keygen, create, restore = typed(0, encrypted)
    with backup_node(tmp_path / "node", tmp_path) as node, node.client() as client:
        client.kv.put("/data/some", "thing")
        socket = str(node.socket)
        run_as_operator([f"jobctl backup create {plain}"], tmp_path, JOBS_SOCKET=socket)
        public = re.search(r"age1[0-9a-z]+", run_as_operator([keygen], tmp_path))
        assert public is not None
        run_as_operator([create.replace("age1…", public[0])], tmp_path, JOBS_SOCKET=socket)
    # When new nodes are made of them, then everything is there, and others can join
    ask = "jobctl kv get /data/some"
    for name, commands in {"one": typed(1, plain), "other": [restore, "systemctl start jobs-node"]}.items():
        new = tmp_path / name
        new.mkdir()
        env = {"JOBS_NODE__DATA_DIR": str(new / "data"), "JOBS_NODE__RUN_DIR": str(new)}
        listen = {"JOBS_CLUSTER__LISTEN": f'["127.0.0.1:{free_port()}"]'} if name == "one" else {}
        said = run_as_operator([*commands, ask], tmp_path, JOBS_SOCKET=str(new / "api.sock"), **env, **listen)
        assert said.rstrip().endswith("thing")
        assert ("jobs-ticket-" in said) == (name == "one")


def free_port() -> int:
    with socket_of(AF_INET, SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
