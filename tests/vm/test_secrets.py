"""Secrets as an appliance has them: the key and a worker's credentials come from systemd, encrypted on the machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.secrets.keyring import generate
from tests.vm.image import Image
from tests.vm.machine import Machine

VALUE = "correct-horse-battery-staple"
OF_THE_MACHINE = "the-credential-of-the-machine"
CREDENTIALS = """
[workers.shell.credentials]
deploy = { users = ["alice"] }
"""


@pytest.fixture(scope="module")
def key() -> str:
    return generate().identity


@pytest.fixture(scope="module")
def machine(
    tmp_path_factory: pytest.TempPathFactory, installed: Image, shares: dict[str, Path], key: str
) -> Iterator[Machine]:
    """A machine whose units are given a key and a credential that are encrypted for it alone."""
    with Machine("secrets", tmp_path_factory.mktemp("secrets"), installed, shares=shares) as made:
        made.check("mkdir -p -m 700 /etc/credstore.encrypted")
        for name, value in (("jobs.secrets-key", f"{key}\n"), ("deploy", OF_THE_MACHINE)):
            target = f"/etc/credstore.encrypted/{name}"
            made.check(
                ["systemd-creds", "encrypt", "--with-key=host", f"--name={name}", "-", target], stdin=value.encode()
            )
        unit = "/etc/systemd/system/jobs-worker@shell.service.d"
        made.check(["mkdir", "-p", unit])
        made.put(f"{unit}/credentials.conf", "[Service]\nLoadCredentialEncrypted=deploy\n")
        made.check("cat >> /etc/jobs/node.toml", stdin=CREDENTIALS.encode())
        made.check(["jobctl", "install-units", "--enable"])
        made.check(["systemctl", "start", "jobs-node"], timeout_s=300)
        yield made


def jobctl(machine: Machine, *words: str, user: str = "alice", **options: Any) -> str:
    return machine.check(["jobctl", *words], user=user, **options)


def test_secrets_are_encrypted_with_the_key_that_systemd_gives(machine: Machine, key: str) -> None:
    # Given a secret of alice's
    jobctl(machine, "secret", "set", "token", stdin=VALUE.encode())
    # When her job reads it
    script = "stat -c '%a' /run/secrets/t; wc -c < /run/secrets/t; cat /run/secrets/t"
    assert jobctl(machine, "run", "--secret", "t=token", "--", "sh", "-c", script) == f"400\n{len(VALUE)}\n***"
    # Then neither the value nor the key is on the disk or in the journal
    machine.check(["systemctl", "restart", "jobs-node"], timeout_s=300)
    for text in (VALUE, key.strip(), OF_THE_MACHINE):
        found = machine.run(["grep", "-rlF", "--", text, "/var/lib/jobs", "/var/log", "/etc", "/run/jobs"])
        assert found.stdout == "", text
        journal = machine.check(["journalctl", "--no-pager", "--output=export"])
        assert text not in journal
    assert machine.run(["test", "-e", "/var/lib/jobs/secrets.key"]).code != 0
    # and after the restart it is there again
    assert jobctl(machine, "run", "--secret", "t=token", "--", "cat", "/run/secrets/t") == "***"
    # An administrator sees that there is one, and nobody its value
    (listed,) = [
        json.loads(line) for line in jobctl(machine, "secret", "list", "--all", "--json", user="bob").splitlines()
    ]
    assert (listed["name"], listed["owner"], listed["size_bytes"]) == ("token", 1000, len(VALUE))
    assert json.loads(jobctl(machine, "secret", "key", "--json", user="bob"))["present"]


def test_a_credential_of_the_worker_is_given_to_whom_it_is_meant_for(machine: Machine) -> None:
    script = "wc -c < /run/secrets/key; cat /run/secrets/key"
    command = ["run", "--secret", "key=credential:deploy", "--", "sh", "-c", script]
    assert jobctl(machine, *command) == f"{len(OF_THE_MACHINE)}\n***"
    refused = machine.run(["jobctl", *command], user="bob")
    assert refused.code != 0
    assert "none of that name for uid" in refused.stderr
