"""`jobctl apply` through a real node: what is declared is there, what is not any more is gone, the rest untouched."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import Client, Schedule, shell_job
from jobs.cli import apply
from jobs.cli.main import main
from jobs.protocol.model import QueueSettings
from jobs.testing import EmbeddedNode
from tests.support.jobctl import jobctl

DECLARED = """\
name = "site"

[queues.batch]
weight = 2
max_running = 8
rate_count = 10
rate_period_s = 60

[queues."team/a"]

[schedules.nightly]
cron = "30 2 * * *"
timezone = "Europe/Berlin"
job = { type = "shell", queue = "batch", timeout_s = 600, payload = { argv = ["./backup.sh"], env = { A = "1" } } }

[schedules.poll]
every_s = 300
overlap = "skip"
job = { type = "shell", payload = { argv = ["true"] } }
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    with EmbeddedNode(tmp_path_factory.mktemp("apply") / "node") as made:
        yield made


@pytest.fixture
def client(node: EmbeddedNode) -> Iterator[Client]:
    with Client(str(node.socket), patience_s=0) as made:
        yield made
        for schedule in list(made.schedules.list()):
            made.schedules.delete(schedule.name)
        for queue in list(made.queues.list()):
            made.queues.put(queue.name, QueueSettings())


def applied(node: EmbeddedNode, text: str, *options: str) -> dict[tuple[str, str], tuple[str, list[str]]]:
    """Apply a declaration; return what became of each object, and its fields that changed."""
    done = _apply(node, text, "--json", *options)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    return {(one["kind"], one["name"]): (one["action"], one["fields"]) for one in found}


def _apply(node: EmbeddedNode, text: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    return jobctl(node, "apply", "-f", "-", *options, stdin=text.encode())


def test_what_is_declared_is_made_kept_changed_and_removed(node: EmbeddedNode, client: Client) -> None:
    objects = [("queue", "batch"), ("queue", "team/a"), ("schedule", "nightly"), ("schedule", "poll")]
    client.schedules.set("mine", Schedule(job=shell_job(["true"]), cron="0 0 1 1 *"))
    assert applied(node, DECLARED) == {one: ("create", []) for one in objects}
    assert client.queues.get("batch").managed_by == "site"
    assert client.queues.get("team/a").managed_by == "site"
    nightly = client.schedules.get("nightly")
    assert (nightly.schedule.managed_by, nightly.schedule.timezone, nightly.job.queue) == (
        "site",
        "Europe/Berlin",
        "batch",
    )

    # The same again changes nothing, and writes nothing: not an entry in the audit trail either.
    entries = len(list(client.audit()))
    assert applied(node, DECLARED) == {one: ("keep", []) for one in objects}
    assert len(list(client.audit())) == entries

    # What was changed by hand is as declared again; what is not declared any more is gone.
    client.queues.change("batch", weight=7.0, max_pending=3)
    changed = (
        DECLARED.replace('"./backup.sh"', '"./other.sh"')
        .partition("[schedules.poll]")[0]
        .replace('[queues."team/a"]', "")
    )
    assert applied(node, changed) == {
        ("queue", "batch"): ("change", ["weight", "max_pending"]),
        ("schedule", "nightly"): ("change", ["job"]),
        ("schedule", "poll"): ("remove", []),
        ("queue", "team/a"): ("remove", []),
    }
    assert client.queues.get("batch").weight == 2.0
    assert client.queues.get("team/a").managed_by is None
    names = {schedule.name for schedule in client.schedules.list()}
    assert names == {"nightly", "mine"}, "what others made is not touched"

    assert applied(node, 'name = "site"') == {
        ("queue", "batch"): ("remove", []),
        ("schedule", "nightly"): ("remove", []),
    }


def test_what_somebody_else_made_is_taken_over_only_when_asked_to(node: EmbeddedNode, client: Client) -> None:
    by_hand = Schedule(job=shell_job(["true"]), cron="0 0 1 1 *")
    client.schedules.set("poll", by_hand)
    client.queues.put("batch", QueueSettings(weight=3.0, managed_by="others"))
    refused = _apply(node, DECLARED)
    assert refused.returncode == 1
    assert b"queue 'batch' belongs to the declaration 'others'" in refused.stderr
    assert b"schedule 'poll' was set by hand" in refused.stderr
    assert b"--take-over" in refused.stderr
    assert "nightly" not in {schedule.name for schedule in client.schedules.list()}, "nothing was begun"

    assert applied(node, DECLARED, "--dry-run", "--take-over")["queue", "batch"][0] == "change"
    assert client.queues.get("batch").managed_by == "others", "a dry run changes nothing"
    found = applied(node, DECLARED, "--take-over")
    assert found["schedule", "poll"] == ("change", ["cron", "every_s", "managed_by"])
    assert found["queue", "batch"] == ("change", ["weight", "max_running", "rate_count", "rate_period_s", "managed_by"])
    assert client.schedules.get("poll").schedule.managed_by == "site"
    # Another declaration does not touch these.
    assert applied(node, 'name = "others"') == {}


def test_all_that_is_wrong_with_a_declaration_is_told_and_nothing_is_done(node: EmbeddedNode, client: Client) -> None:
    wrong = """\
[queues.batch]
weight = "heavy"
[queues.other]
max_runing = 1
[schedules.poll]
every_s = 300
managed_by = "me"
job = { type = "shell", payload = { argv = "true" } }
"""
    done = _apply(node, wrong)
    assert done.returncode == 65
    lines = done.stderr.decode().splitlines()
    assert [line.split(": ")[2] for line in lines] == [
        '$.queues."batch".weight',
        '$.queues."other".max_runing',
        '$.schedules."poll".job.payload.argv',
    ]
    assert list(client.queues.list()) == [] or all(queue.managed_by is None for queue in client.queues.list())
    assert _apply(node, "a = [").returncode == 65
    assert _apply(node, '{"queues": 3}').returncode == 65
    assert _apply(node, "schedules = {}", "--name", "not a name").returncode == 65
    assert _apply(node, DECLARED, "--check").returncode == 0
    assert _apply(node, wrong, "--check").returncode == 65
    assert list(client.schedules.list()) == []


def test_what_the_node_refuses_is_told_and_nothing_is_removed_then(node: EmbeddedNode, client: Client) -> None:
    applied(node, DECLARED)
    job = {"type": "shell", "payload": {"argv": ["true"]}}
    wrong = {"name": "site", "schedules": {"bad": {"at_ms": 1, "job": job}}}
    done = _apply(node, json.dumps(wrong))
    assert done.returncode == 65
    assert b"schedule bad: " in done.stderr
    assert b"schedule nightly is not removed" in done.stderr
    assert client.schedules.get("nightly").schedule.managed_by == "site"


def test_who_applies_at_the_same_time_does_not_make_it_fail(
    node: EmbeddedNode, client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As nodes do that have the same declaration, and are started at the same time."""
    # Given somebody who sets a schedule while it is looked at what is there
    real, passed = apply._plan, iter(range(3))

    def overtaken(*arguments: Any) -> Any:
        plan = real(*arguments)
        if (number := next(passed, None)) is not None:
            client.schedules.set("nightly", Schedule(job=shell_job(["true"]), every_s=60 + number, managed_by="site"))
        return plan

    monkeypatch.setattr(apply, "_plan", overtaken)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(DECLARED.encode())))
    # When it is applied, then it is as declared all the same, and told once
    assert main(["--socket", str(node.socket), "apply", "-f", "-"]) == 0
    assert client.schedules.get("nightly").schedule.cron == "30 2 * * *"
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if "batch" in line] == ["created queue batch", '    job.queue: "default" → "batch"']
    assert [line for line in out if "nightly" in line] == ["changed schedule nightly"]
    assert out[-1] == "3 created, 1 changed, 0 unchanged, 0 removed"


def test_a_dry_run_tells_each_value_that_would_be_another(node: EmbeddedNode, client: Client) -> None:
    applied(node, DECLARED)
    changed = DECLARED.replace("max_running = 8", "max_pending = 3").replace("backup.sh", "other.sh")
    told = _apply(node, changed, "--dry-run").stdout.decode().splitlines()
    assert told == [
        "to change queue batch",
        "    max_pending: none → 3",
        "    max_running: 8 → none",
        "to change schedule nightly",
        '    job.payload.argv: ["./backup.sh"] → ["./other.sh"]',
    ]
    (batch, *_) = (json.loads(line) for line in _apply(node, changed, "--dry-run", "--json").stdout.splitlines())
    assert batch["changes"][0] == {"path": "max_pending", "before": None, "after": 3}
    assert client.queues.get("batch").max_running == 8
    assert _apply(node, DECLARED, "--dry-run").stdout == b"nothing to do\n"


def test_a_queue_that_is_not_declared_any_more_keeps_its_jobs(node: EmbeddedNode, client: Client) -> None:
    applied(node, DECLARED)
    client.queues.pause("batch")
    job = client.submit(shell_job(["echo", "kept"], queue="batch")).job
    applied(node, 'name = "site"')
    assert client.queues.get("batch").paused
    client.queues.resume("batch")
    assert client.wait(job.id).state == "completed"


def test_words_for_people(node: EmbeddedNode, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(DECLARED)
    done = jobctl(node, "apply", "-f", str(file)).stdout.decode().splitlines()
    assert done[0] == "created queue batch"
    assert done[-1] == "4 created, 0 changed, 0 unchanged, 0 removed"
    again = jobctl(node, "apply", "-f", str(file)).stdout.decode().splitlines()
    assert again == ["0 created, 0 changed, 4 unchanged, 0 removed"]
