"""The appliance as its users have it: units under systemd, with users, groups, limits and a journal."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.vm.machine import Machine
from tests.vm.product import PYTHON

TYPES = ("shell", "sql", "blob", "maintenance", "replication")
SERVICES = ["jobs-node.service", *(f"jobs-worker@{name}.service" for name in TYPES)]


def jobctl(machine: Machine, *words: str, user: str = "alice", **options: Any) -> str:
    return machine.check(["jobctl", *words], user=user, **options)


def show(machine: Machine, unit: str, name: str) -> str:
    return machine.check(["systemctl", "show", unit, "--property", name, "--value"]).strip()


def submitted(machine: Machine, *words: str) -> str:
    return str(json.loads(jobctl(machine, "submit", "--json", *words))["id"])


def status(machine: Machine, job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(jobctl(machine, "status", "--json", job))
    return found


def processes(machine: Machine, line: str) -> int:
    """Return how many processes have this command line."""
    return int(machine.run(["pgrep", "--full", "--count", "--exact", line]).stdout)


def test_a_fresh_install_serves_the_members_of_its_group_and_nobody_else(appliance: Machine) -> None:
    # Given a node that was started on a fresh install: it has told systemd that it is ready
    assert appliance.check(["systemctl", "is-active", "jobs-node"]) == "active\n"
    # When a member of the group runs a command
    ran = appliance.run(["jobctl", "run", "--", "sh", "-c", "echo hello; echo oops >&2; exit 7"], user="alice")
    # Then its output and its exit code come back, and stay
    assert (ran.stdout, ran.stderr, ran.code) == ("hello\n", "oops\n", 7)
    (last,) = [json.loads(line) for line in jobctl(appliance, "list", "--json", "--state", "failed").splitlines()]
    assert (last["reason"], last["exit_code"], last["owner"]) == ("exit_code", 7, 1000)
    # And who is no member is refused, by the kernel
    refused = appliance.run(["jobctl", "list"], user="mallory")
    assert refused.code != 0
    assert "Permission denied" in refused.stderr
    # and neither the node's files nor the workers' socket are for any user
    for path in ("/var/lib/jobs/store", "/var/lib/jobs/log", "/run/jobs/worker.sock"):
        tried = appliance.run(["python3", "-c", f"open({path!r})"], user="alice")
        assert "PermissionError" in tried.stderr, path
    # A member sees their own jobs, an admin all
    assert jobctl(appliance, "status", last["id"], user="bob")


def test_a_job_waits_while_its_workers_are_busy_and_runs_as_soon_as_one_is_free(appliance: Machine) -> None:
    # Given a worker for commands that is busy in every slot
    workers = [json.loads(line) for line in jobctl(appliance, "workers", "--json").splitlines()]
    (slots,) = [worker["slots"] for worker in workers if worker["type"] == "shell"]
    busy = [submitted(appliance, "--", "sh", "-c", "echo begun; exec sleep 99990") for _ in range(slots)]
    for job in busy:
        appliance.start(["jobctl", "logs", "--follow", job], user="alice").wait_for("begun")
    # When one more is submitted
    late = submitted(appliance, "--", "echo", "late")
    # Then it waits, until a slot is free
    assert status(appliance, late)["state"] == "pending"
    jobctl(appliance, "cancel", busy.pop())
    assert jobctl(appliance, "wait", "--timeout", "60", late)
    assert jobctl(appliance, "logs", late) == "late\n"
    jobctl(appliance, "cancel", *busy)


def test_each_type_of_worker_does_its_work_as_a_unit_with_a_user_of_its_own(appliance: Machine) -> None:
    users = {name: show(appliance, f"jobs-worker@{name}", "User") for name in TYPES}
    assert users == {name: f"jobs-{name}" for name in TYPES}
    # When each type is given something to do
    job = submitted(appliance, "--", "sh", "-c", "cat /proc/1/cgroup; id -u")
    jobctl(appliance, "wait", "--timeout", "60", job)
    jobctl(appliance, "kv", "put", "/data/vm/a", "1")
    rows = jobctl(appliance, "sql", "--format", "json", f"SELECT state FROM jobs WHERE id = '{job}'")
    hash_ = jobctl(appliance, "blob", "put", "-", stdin=b"content").split()[0]
    # Then it is done
    assert json.loads(rows.splitlines()[0]) == {"state": "completed"}
    assert jobctl(appliance, "blob", "cat", hash_) == "content"
    copied = ["replication", "sync", "copy", "--prefix", "/data/vm/", "--target-prefix", "/data/vm2/"]
    jobctl(appliance, *copied, user="bob")
    assert jobctl(appliance, "kv", "get", "/data/vm2/a").strip() == "1"
    jobctl(appliance, "maintenance", "compact", user="bob")
    jobctl(appliance, "blob", "verify", hash_)
    # and every unit is still the first of its kind
    for service in SERVICES:
        assert (show(appliance, service, "ActiveState"), show(appliance, service, "NRestarts")) == ("active", "0")


@pytest.mark.parametrize("service", SERVICES)
def test_a_unit_is_as_closed_as_it_says(appliance: Machine, service: str) -> None:
    most = 4.0 if "@shell" in service else 2.0
    told = appliance.check(["systemd-analyze", "security", "--no-pager", service])
    score = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert score is not None
    assert float(score[1]) <= most, told


def test_systemd_has_no_complaint_of_the_units(appliance: Machine) -> None:
    units = [*SERVICES, "jobs.target", "jobs-node.socket", "jobs-node-workers.socket", "jobs-workers.slice"]
    done = appliance.run(["systemd-analyze", "verify", "--man=no", *units])
    assert (done.code, done.stdout, done.stderr) == (0, "", "")


def test_what_the_journal_holds_says_which_job_it_is_about(appliance: Machine) -> None:
    # When an array ends
    job = submitted(appliance, "--array", "0-1", "--", "true")
    jobctl(appliance, "wait", "--timeout", "120", job)
    # Then the journal is asked for it by its id, and has the node's entry with its fields and the priority of its level
    entries = appliance.journal(f"JOBS_JOB_ID={job}")
    (entry,) = [entry for entry in entries if entry["MESSAGE"] == "array ended"]
    assert (entry["JOBS_STATE"], entry["PRIORITY"]) == ("completed", "6")
    assert (entry["_SYSTEMD_UNIT"], entry["SYSLOG_IDENTIFIER"]) == ("jobs-node.service", "jobs-node")
    # and that of a worker is the unit's of its type
    (entry, *_) = appliance.journal("--unit=jobs-worker@shell", "JOBS_LOGGER=jobs.worker")
    assert entry["JOBS_WORKER"]


def test_a_job_runs_on_while_the_node_is_restarted_and_clients_wait(appliance: Machine) -> None:
    # Given a job that waits for a sign
    job = submitted(appliance, "--", "sh", "-c", "echo begun; exec sleep 41")
    appliance.start(["jobctl", "logs", "--follow", job], user="alice").wait_for("begun")
    # When the node is restarted, and a client connects while it is not there
    appliance.check(["systemctl", "stop", "--no-block", "jobs-node.service"])
    appliance.check(["systemctl", "start", "--no-block", "jobs-node.service"])
    assert jobctl(appliance, "run", "--", "echo", "patient") == "patient\n"
    # Then the job has run on: it completes in its first attempt
    jobctl(appliance, "wait", "--timeout", "100", job)
    assert (status(appliance, job)["attempt"], status(appliance, job)["state"]) == (1, "completed")
    # And a reload with a mistake in the configuration is refused, and changes nothing
    appliance.check("cp /etc/jobs/node.toml /root/ && echo 'nonsense = 1' >>/etc/jobs/node.toml")
    assert appliance.run(["systemctl", "reload", "jobs-node"]).code != 0
    appliance.check("cp /root/node.toml /etc/jobs/ && systemctl reload jobs-node")
    assert show(appliance, "jobs-node", "ActiveState") == "active"


def test_nothing_of_a_job_is_left_when_its_worker_is_killed(appliance: Machine) -> None:
    # Given a job with children that have left its session
    script = "(setsid sleep 99991 &) ; echo begun; exec sleep 99992"
    job = submitted(appliance, "--retries", "3", "--backoff", "none", "--", "sh", "-c", script)
    logs = appliance.start(["jobctl", "logs", "--follow", job], user="alice")
    logs.wait_for("begun")
    assert (processes(appliance, "sleep 99991"), processes(appliance, "sleep 99992")) == (1, 1)
    # When its worker is killed, and systemd has started another
    before = appliance.check(["systemctl", "show", "jobs-worker@shell", "--property", "MainPID", "--value"])
    watching = appliance.start(["journalctl", "--follow", "--lines=0", "--output=cat", "--unit=jobs-worker@shell"])
    appliance.check(["systemctl", "kill", "--kill-whom=main", "--signal=SIGKILL", "jobs-worker@shell"])
    watching.wait_for("Started jobs-worker@shell")
    watching.kill()
    # Then the job is tried again, and of its first attempt nothing is left
    appliance.start(["jobctl", "logs", "--follow", "--attempt", "2", job], user="alice").wait_for("begun")
    assert (processes(appliance, "sleep 99991"), processes(appliance, "sleep 99992")) == (1, 1)
    assert show(appliance, "jobs-worker@shell", "MainPID") != before.strip()
    # And cancelled, it leaves nothing at all
    jobctl(appliance, "cancel", job)
    appliance.run(["jobctl", "wait", job], user="alice")
    assert (processes(appliance, "sleep 99991"), processes(appliance, "sleep 99992")) == (0, 0)


def test_a_node_that_hangs_is_ended_by_its_watchdog_and_started_again(appliance: Machine) -> None:
    jobctl(appliance, "kv", "put", "/data/vm/hung", "kept")
    restarts = int(show(appliance, "jobs-node", "NRestarts"))
    watching = appliance.start(["journalctl", "--follow", "--lines=0", "--output=cat", "--unit=jobs-node"])
    # When the node does not turn any more
    appliance.check(["systemctl", "kill", "--signal=SIGSTOP", "jobs-node"])
    # Then systemd ends it, starts it again, and nothing is lost
    watching.wait_for("Watchdog timeout", timeout_s=180)
    watching.wait_for("Started jobs-node", timeout_s=180)
    watching.kill()
    assert int(show(appliance, "jobs-node", "NRestarts")) == restarts + 1
    assert jobctl(appliance, "kv", "get", "/data/vm/hung").strip() == "kept"
    assert jobctl(appliance, "run", "--", "echo", "again") == "again\n"


FILL = """
import json
from jobs import Client
from jobs.errors import JobsError
acknowledged = []
told = None
with Client(patience_s=0) as client:
    while told != "storage_full":
        key = f"/data/full/{len(acknowledged)}"
        try:
            client.kv.put(key, "x" * 900_000)
            acknowledged.append(key)
        except JobsError as error:
            # What was under way when the disk became full waits for room, and its client for an answer.
            told = error.code
print(json.dumps(acknowledged))
"""


def test_a_disk_that_is_full_refuses_what_is_new_and_loses_nothing(appliance: Machine) -> None:
    restarts = show(appliance, "jobs-node", "NRestarts")
    jobctl(appliance, "kv", "put", "/data/vm/before", "kept")
    # Given a disk with nothing left: most of it is taken at once, and what is then free by writing
    appliance.check(
        "cd /var/lib/jobs; free=$(df --output=avail --block-size=1M . | tail -1);"
        "fallocate --length $((free - 32))M ballast; ! cat /dev/zero >>ballast 2>/dev/null; sync",
        timeout_s=300,
    )
    # When clients write on
    acknowledged = json.loads(appliance.check([PYTHON, "-c", FILL], user="alice", timeout_s=600))
    # Then they are refused by name, and everything that was acknowledged is there
    assert jobctl(appliance, "kv", "get", "/data/vm/before").strip() == "kept"
    listed = jobctl(appliance, "kv", "scan", "/data/full/", "--keys-only", "--json").splitlines()
    assert set(acknowledged) <= {json.loads(line)["key"] for line in listed}
    assert show(appliance, "jobs-node", "NRestarts") == restarts
    # And it goes on when there is room again
    appliance.check(["rm", "/var/lib/jobs/ballast"])
    jobctl(appliance, "kv", "delete", "--prefix", "/data/full/")
    assert jobctl(appliance, "run", "--", "echo", "room") == "room\n"
