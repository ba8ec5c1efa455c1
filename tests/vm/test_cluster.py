"""Three machines as one cluster: it goes on when one of them loses its power, and when one is off the network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.docs.guides import Block, blocks, console
from tests.vm.conftest import LOAD
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.product import PYTHON
from tests.vm.switch import Switch

NAMES = ("alpha", "beta", "gamma")
DOCUMENT = "docs/cluster.md"
NETWORK = """
[Match]
Driver=virtio_net

[Network]
Address=10.77.0.{number}/24
LinkLocalAddressing=no
"""
# Emulated machines that share two cores are slow to answer, and no sign of a leader that is gone.
NODE = """
[node]
id = "{name}"
[cluster]
listen = ["10.77.0.{number}:7420"]
[raft]
election_min_s = 4
election_max_s = 8
[workers]
lease_s = 90
"""


@pytest.fixture
def machines(tmp_path: Path, installed: Image, shares: dict[str, Path]) -> Iterator[dict[str, Machine]]:
    """Three machines with a network between them, a node and a worker for commands on each."""
    with Switch(tmp_path) as switch:
        made = {
            name: Machine(
                name,
                tmp_path / name,
                installed,
                cores=1,
                memory_mib=1_024,
                shares=shares,
                network=switch.port(name, number),
            )
            for number, name in enumerate(NAMES, 1)
        }
        try:
            with ThreadPoolExecutor() as pool:
                # From this thread: machines end with the one that has started them.
                for machine in made.values():
                    machine.switch_on(wait=False)
                list(pool.map(prepare, made.values(), range(1, len(made) + 1)))
            yield made
        finally:
            for machine in made.values():
                machine.cut_power()


def prepare(machine: Machine, number: int) -> None:
    machine.wait_for_boot()
    machine.put("/etc/systemd/network/10-tests.network", NETWORK.format(number=number))
    machine.put("/etc/jobs/node.toml", NODE.format(number=number, name=machine.name))
    # Without hostnamectl: the service behind it has half a minute to start, which three machines that boot may need.
    machine.put("/etc/hostname", f"{machine.name}\n")
    machine.check(["hostname", machine.name])
    machine.check(["systemctl", "enable", "--now", "systemd-networkd"])
    machine.check(["jobctl", "install-units", "--enable", "--workers", "shell"])
    machine.check(["systemctl", "start", "jobs-node"], timeout_s=300)


def jobctl(machine: Machine, *words: str, user: str = "root", **options: Any) -> str:
    return machine.check(["jobctl", *words], user=user, timeout_s=300, **options)


def mine() -> list[Block]:
    """Return the blocks of the guide that are run here."""
    return [block for block in blocks(DOCUMENT) if (block.mark, block.why) == ("vm", "tests/vm/test_cluster.py")]


def leader(machine: Machine) -> str:
    view = json.loads(jobctl(machine, "cluster", "members", "--json"))
    (found,) = [member["name"] for member in view["members"] if member["leader"]]
    return str(found)


@pytest.mark.skipif(
    (os.cpu_count() or 1) < 3, reason="fewer than three processors: three emulated machines do not agree on a leader"
)
def test_a_cluster_of_three_machines_goes_on_without_the_one_that_led_it(machines: dict[str, Machine]) -> None:
    # Given three machines, whose nodes are made one cluster as the guide says
    founding, going_on = mine()
    first = machines["alpha"]
    ticket = ""
    for typed in console(founding):
        # An emulated machine takes longer to catch up.
        command = typed.command.replace("join", "join --wait 120").replace("jobs-ticket-AZ…", ticket)
        stdin = jobctl(first, "cluster", "ticket").encode() if " join " in command and " - " in command else b""
        said = machines[typed.who].check(command, stdin=stdin, timeout_s=300)
        ticket = said.strip() if "ticket" in command else ticket
    assert [line.split()[:2] for line in said.splitlines()[-3:]] == [[name, "voter"] for name in NAMES]
    leading = machines[leader(first)]
    follower, last = (machine for machine in machines.values() if machine is not leading)
    assert jobctl(follower, "run", "--", "echo", "hello", user="alice") == "hello\n"
    # and clients of a follower that submit jobs and write keys
    load = follower.start([PYTHON, LOAD, "write", "4"], user="alice")
    load.wait_for("\n", times=20, timeout_s=300)
    # When the machine of the leader loses its power
    leading.cut_power()
    before = load.stdout.count("\n")
    # Then the clients go on,
    load.wait_for("\n", times=before + 20, timeout_s=300)
    load.kill()
    load.wait()
    assert leader(last) != leading.name
    # everything that was acknowledged is there, by way of the other machine,
    acknowledged = load.stdout[: load.stdout.rindex("\n") + 1]
    told = last.check([PYTHON, LOAD, "read"], user="alice", stdin=acknowledged.encode(), timeout_s=600)
    assert told == f"read {acknowledged.count(chr(10))}\n"
    # And the machine is a member again when it is back
    leading.switch_on()
    leading.check(["systemctl", "start", "jobs-node"], timeout_s=300)
    told = leading.check([PYTHON, LOAD, "read"], user="alice", stdin=acknowledged.encode(), timeout_s=600)
    assert told == f"read {acknowledged.count(chr(10))}\n"
    # When two machines are gone for good, then the third goes on alone as the guide says
    machines["alpha"].cut_power()
    machines["gamma"].cut_power()
    left = machines["beta"]
    for typed in console(going_on):
        # The first only says what would be done, and that it was not.
        wanted = 2 if typed.command.split("#")[0].split()[-1] == "recover" else 0
        ended = left.run(typed.command, timeout_s=300)
        assert ended.code == wanted, ended.stderr
    told = left.check([PYTHON, LOAD, "read"], user="alice", stdin=acknowledged.encode(), timeout_s=600)
    assert told == f"read {acknowledged.count(chr(10))}\n"
