"""The Debian package, as the guides say: installed, given keys, restored, upgraded while jobs run, and removed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.secrets.keyring import generate
from tests.docs.guides import Block, Typed, blocks, console, documents
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.product import PACKAGER, pack

PACKAGES = "packages"
ALICE = 1000
# What the operator writes the first time. An emulated machine is slow to restart a node, and a test to end what runs.
NODE = """
[workers]
lease_s = 90
[workers.shell]
drain_s = 300
[workers.replication]
allow_files = ["/srv/backup"]
"""
EDITOR = """#!/bin/sh
for file; do :; done
cat /root/typed > "$file"
"""


def guide(document: str, beginning: str) -> Block:
    """Return the block of a document whose first command begins like this."""
    (found,) = [block for block in mine(document) if block.text.partition("# ")[2].startswith(beginning)]
    return found


def mine(document: str) -> list[Block]:
    return [block for block in blocks(document) if (block.mark, block.why) == ("vm", "tests/vm/test_package.py")]


def follow(machine: Machine, block: Block, text: str = "") -> list[str]:
    """Type the commands of a block; in an editor, what follows the command or `text`."""
    done.add(block.place)
    return [enter(machine, typed, text) for typed in console(block)]


done: set[str] = set()


def enter(machine: Machine, typed: Typed, text: str) -> str:
    machine.put("/root/typed", f"{typed.after or text}\n")
    # On a terminal: what an operator types may insist on one.
    words = ["script", "--quiet", "--return", "--echo", "never", "--command", typed.command, "/dev/null"]
    if not typed.is_root:
        return machine.check(typed.command, user=typed.who, timeout_s=300)
    return machine.check(words, environment={"EDITOR": "/root/editor"}, directory="/root", timeout_s=600)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Path:
    """A disk with the package of this tree, and with the same as the version after it."""
    directory = tmp_path_factory.mktemp("packages")
    first = PACKAGER.build(built, directory / "disk/dist")
    # Of the same content: what an upgrade does is the matter of the scripts.
    tree = directory / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", str(first), str(tree)], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("Version: 0.1.0\n", "Version: 0.2.0\n"))
    second = directory / "disk" / first.name.replace("0.1.0", "0.2.0")
    command = ["dpkg-deb", "--root-owner-group", "-Zzstd", "--build", str(tree), str(second)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return pack(directory / "disk", directory / "packages.squashfs")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, image: Image, packages: Path) -> Iterator[Machine]:
    """A plain Debian with the packages in root's directory."""
    with Machine("package", tmp_path_factory.mktemp("package"), image, shares={PACKAGES: packages}) as made:
        made.check(
            f"mkdir /mnt/p && mount /dev/disk/by-id/virtio-{PACKAGES} /mnt/p && ln -s /mnt/p/dist /mnt/p/*.deb /root/"
        )
        made.put("/root/editor", EDITOR, mode=0o755)
        yield made


def jobctl(machine: Machine, *words: str, user: str = "alice", **options: Any) -> str:
    return machine.check(["jobctl", *words], user=user, timeout_s=300, **options)


def show(machine: Machine, unit: str, name: str) -> str:
    return machine.check(["systemctl", "show", unit, "--property", name, "--value"]).strip()


def test_it_is_installed_on_a_plain_debian_and_just_works(machine: Machine) -> None:
    # When it is installed and started as the guide says
    *_, said = follow(machine, guide("docs/install.md", "apt install"), NODE)
    # Then the first job has run, as its owner
    assert said == "hello\n"
    (job,) = [json.loads(line) for line in jobctl(machine, "list", "--json").splitlines()]
    assert (job["state"], job["owner"]) == ("completed", ALICE)
    # and a node and a worker of each type are there, also at the next boot
    for unit in (
        "jobs-node",
        *(f"jobs-worker@{name}" for name in ("shell", "sql", "blob", "maintenance", "replication")),
    ):
        assert show(machine, unit, "ActiveState") == "active"
        assert show(machine, unit, "UnitFileState") == "enabled"


def test_the_key_of_secrets_and_credentials_for_jobs_come_from_systemd(machine: Machine) -> None:
    # Given a key and a token that the operator has
    key = f"{generate().identity}\n"
    for path in ("/root/KEY", "/root/secrets.key", "/etc/jobs/registry.token"):
        machine.put(path, key, mode=0o600)
    # When they are given to the services
    follow(machine, guide("docs/secrets.md", "mkdir"))
    machine.check(["rm", "/etc/credstore.encrypted/jobs.secrets-key"])
    follow(machine, guide("docs/install.md", "mkdir"))
    follow(machine, guide("docs/install.md", "systemctl edit"))
    # Then secrets are kept with the key, and the worker is given the token at its next start
    jobctl(machine, "secret", "set", "token", stdin=b"correct-horse")
    assert jobctl(machine, "run", "--secret", "t=token", "--", "cat", "/run/secrets/t") == "***"
    assert machine.run(["test", "-e", "/var/lib/jobs/secrets.key"]).code != 0
    machine.check(["systemctl", "restart", "jobs-worker@shell"])
    pid = show(machine, "jobs-worker@shell", "MainPID")
    given = "/run/credentials/jobs-worker@shell.service/registry"
    assert machine.check(["nsenter", "--mount", f"--target={pid}", "cat", given]) == key


def test_a_backup_is_restored_as_the_guide_says(machine: Machine) -> None:
    # Given a directory for backups that the worker may write to, as the guide says
    unit = "/etc/systemd/system/jobs-worker@replication.service.d"
    machine.check(f"mkdir -p /srv/backup {unit} && chown jobs-replication: /srv/backup")
    machine.put(f"{unit}/backup.conf", "[Service]\nReadWritePaths=/srv/backup\n")
    machine.check("systemctl daemon-reload && systemctl restart jobs-worker@replication")
    machine.check("usermod --append --groups jobs,jobs-admin bob")
    # and a backup, and what was written after it
    jobctl(machine, "kv", "put", "/data/vm/kept", "1")
    jobctl(machine, "backup", "create", "/srv/backup/daily", user="bob")
    jobctl(machine, "kv", "put", "/data/vm/late", "1")
    # When it is restored
    follow(machine, guide("docs/operations.md", "systemctl stop"))
    # Then the node has what it had then, and goes on
    assert jobctl(machine, "kv", "get", "/data/vm/kept").strip() == "1"
    assert machine.run(["jobctl", "kv", "get", "/data/vm/late"], user="alice").code != 0
    assert jobctl(machine, "run", "--", "echo", "restored") == "restored\n"
    assert json.loads(jobctl(machine, "sql", "--format", "json", "SELECT count(*) AS n FROM jobs"))["n"] > 0


def test_an_upgrade_keeps_the_jobs_that_run_and_all_data(machine: Machine) -> None:
    # Given a job that runs, and a configuration that the operator has changed
    jobctl(machine, "kv", "put", "/data/vm/before", "1")
    script = "echo begun; sleep 99993; echo ended"
    job = str(json.loads(jobctl(machine, "submit", "--json", "--", "sh", "-c", script))["id"])
    machine.start(["jobctl", "logs", "--follow", job], user="alice").wait_for("begun")
    node, worker = (show(machine, unit, "MainPID") for unit in ("jobs-node", "jobs-worker@shell"))
    watching = machine.start(["journalctl", "--follow", "--lines=0", "--output=cat", "--unit=jobs-worker@shell"])
    # When the next version is installed
    follow(machine, guide("docs/operations.md", "apt install"))
    assert machine.check("dpkg-query --show --showformat '${Version}' jobs") == "0.2.0"
    # Then the node is another, and the job runs on: its worker waits for it
    assert show(machine, "jobs-node", "MainPID") not in ("0", node)
    assert show(machine, "jobs-worker@shell", "MainPID") == worker
    assert jobctl(machine, "kv", "get", "/data/vm/before").strip() == "1"
    assert machine.check(["cat", "/etc/jobs/node.toml"]).strip() == NODE.strip()
    # and when it has ended, by itself, the worker is another as well
    machine.check(["pkill", "--full", "--exact", "sleep 99993"])
    jobctl(machine, "wait", job)
    assert json.loads(jobctl(machine, "status", "--json", job))["attempt"] == 1
    assert jobctl(machine, "logs", job) == "begun\nended\n"
    watching.wait_for("Started jobs-worker@shell", timeout_s=300)
    watching.kill()
    assert jobctl(machine, "run", "--", "echo", "upgraded") == "upgraded\n"


def test_removed_it_leaves_nothing_but_data_and_users(machine: Machine) -> None:
    machine.check("apt-get purge --yes jobs", timeout_s=600)
    assert machine.run(["pgrep", "--list-full", "--euid", "jobs,jobs-shell,jobs-sql,jobs-blob"]).stdout == ""
    places = "/usr /run/jobs /etc/systemd/system/*.wants /etc/jobs/node.toml"
    left = machine.run(f"find {places} -path '*jobs*' -not -type d -not -path '/usr/lib/jobs-vm/*'").stdout
    assert left == ""
    assert machine.check("ls /var/lib/jobs").split()
    # This was the last: every block of the guides that this file is to run has been run
    assert done == {block.place for document in documents() for block in mine(document)}
