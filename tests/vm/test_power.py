"""A machine whose power is cut under load has everything that was acknowledged when it is back."""

from __future__ import annotations

from tests.vm.conftest import LOAD
from tests.vm.machine import Machine
from tests.vm.product import PYTHON

CUTS = 2
ACKNOWLEDGED = 40


def test_nothing_that_was_acknowledged_is_lost_when_the_power_is_cut_under_load(appliance: Machine) -> None:
    acknowledged: list[str] = []
    for _ in range(CUTS):
        # Given clients that submit jobs and write keys, and a worker that runs them
        load = appliance.start([PYTHON, LOAD, "write", "4"], user="alice")
        load.wait_for("\n", times=ACKNOWLEDGED, timeout_s=300)
        # When the power is cut
        appliance.cut_power()
        load.drain()
        acknowledged += load.stdout[: load.stdout.rindex("\n") + 1].splitlines()
        # Then the machine comes up with the node and its workers,
        appliance.switch_on()
        appliance.check(["systemctl", "start", "jobs-node"], timeout_s=300)
        # every job is there and has one result, and every key its value
        told = appliance.check(
            [PYTHON, LOAD, "read"], user="alice", stdin="\n".join(acknowledged).encode(), timeout_s=900
        )
        assert told == f"read {len(acknowledged)}\n"
