"""`jobctl explain`: why a job is where it is."""

from __future__ import annotations

import argparse
import time
from typing import Final

from jobs.cli import exits
from jobs.cli.arrays import job_or_task
from jobs.cli.command import Command
from jobs.cli.output import clean, moment, print_fields, print_json, print_table
from jobs.client import Client
from jobs.protocol.model import Explanation, Obstacle


def explain(client: Client, options: argparse.Namespace) -> int:
    for job in options.id:
        found = client.explain(job)
        if options.json:
            print_json(found)
        else:
            print_explanation(found)
    return exits.OK


def print_explanation(found: Explanation) -> None:
    job = found.job
    print_fields(
        [
            ("id", job.id),
            ("state", job.state),
            ("why", found.text),
            ("queue", f"{job.queue}, priority {job.priority}"),
            ("ahead", None if found.ahead is None else f"{found.ahead} of the same owner that ask the same"),
            ("reserved", None if found.reserved is None else f"worker {found.reserved} takes nothing else until then"),
        ]
    )
    if len(found.obstacles) > 1 or any(obstacle.jobs for obstacle in found.obstacles):
        print("\nin the way:")
        for obstacle in found.obstacles:
            print_obstacle(obstacle)
    if found.workers:
        print()
        print_table(
            ("WORKER", "SUITS", "WHAT IS MISSING"),
            ((fit.worker, "yes" if fit.suits else "no", "; ".join(fit.lacks) or "nothing") for fit in found.workers),
        )
        _more(found.more_workers, "workers")
    if found.attempts:
        print()
        print_table(
            ("ATTEMPT", "ENDED", "WORKER", "AT", "MESSAGE"),
            (
                (end.attempt, end.reason or end.state, end.worker, moment(end.finished_ms), end.message or "")
                for end in found.attempts
            ),
        )
        _more(found.more_attempts, "attempts")


def print_obstacle(obstacle: Obstacle) -> None:
    until = ""
    if obstacle.until_ms is not None:
        left_s = max(0.0, obstacle.until_ms / 1000 - time.time())
        until = f" (until {moment(obstacle.until_ms)}, {left_s:.0f} s from now)"
    print(f"- {clean(obstacle.text)}{until}")
    for job in obstacle.jobs:
        print(f"    {clean(job)}")
    _more(obstacle.more_jobs, "jobs", indent="    ")


def _more(count: int, what: str, indent: str = "") -> None:
    if count:
        print(f"{indent}and {count} more {what}")


COMMANDS: Final = (
    Command(
        "explain",
        explain,
        "Say why jobs are where they are: what a pending one waits for, and what each worker lacks.",
        lambda parser: parser.add_argument("id", nargs="+", type=job_or_task),
    ),
)
