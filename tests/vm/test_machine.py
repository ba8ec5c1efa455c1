"""The machines that the other tests use do what those rely on."""

from __future__ import annotations

import hashlib

import pytest

from tests.vm.machine import Machine, MachineError


def test_a_machine_that_loses_its_power_keeps_what_was_flushed_and_nothing_else(machine: Machine) -> None:
    # Given a machine with systemd and the controllers of cgroup v2, that runs commands as any user
    assert machine.check(["cat", "/proc/1/comm"]).strip() == "systemd"
    assert {"cpu", "io", "memory", "pids"} <= set(machine.check("cat /sys/fs/cgroup/cgroup.controllers").split())
    assert machine.check(["id", "--name", "--user"], user="alice").strip() == "alice"
    refused = machine.run(["cat", "/etc/shadow"], user="alice")
    assert (refused.code, "Permission denied" in refused.stderr) == (1, True)
    assert machine.run(["sha256sum"], stdin=bytes(2**20)).stdout.split()[0] == hashlib.sha256(bytes(2**20)).hexdigest()
    first_boot = machine.boot_id
    # and two files on its data disk, one of them flushed
    machine.check("cd /var/lib/jobs; echo kept > flushed; sync flushed; echo lost > unflushed")
    hanging = machine.start("echo begun; exec sleep infinity")
    hanging.wait_for("begun\n")
    # When its power is cut, and it is switched on again
    machine.cut_power()
    with pytest.raises(MachineError, match="went away"):
        hanging.wait()
    machine.switch_on()
    # Then the one is there and the other is not
    assert machine.boot_id != first_boot
    assert machine.check("cd /var/lib/jobs; cat flushed; cat unflushed 2>/dev/null || echo none") == "kept\nnone\n"
    # And when it is shut down in order, all is kept
    machine.check("echo late > /var/lib/jobs/unflushed")
    machine.shut_down()
    machine.switch_on()
    assert machine.check("cat /var/lib/jobs/unflushed") == "late\n"
