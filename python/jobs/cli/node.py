"""Commands on the node and its machine: workers, drain, health, doctor, check-config, completion."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from jobs.cli import exits
from jobs.cli.command import Command, Parser
from jobs.cli.output import ago, print_fields, print_json, print_table
from jobs.cli.submission import duration
from jobs.client import Client, ConnectionFailed, operations
from jobs.client.requests import Call
from jobs.errors import JobsError
from jobs.protocol.model import Health, WorkerView

WAIT_STEP_S: Final = 0.05
HEALTH_TIMEOUT_S: Final = 10.0


def workers(client: Client, options: argparse.Namespace) -> int:
    found = client.workers()
    if options.json:
        for worker in found:
            print_json(worker)
        return exits.OK
    print_table(
        ("WORKER", "TYPE", "STATE", "RUNNING", "SLOTS", "NODE", "SANDBOX", "LABELS", "RESOURCES", "PRESSURE", "SINCE"),
        (
            (
                worker.id,
                worker.type,
                state_of(worker),
                worker.running,
                worker.slots,
                worker.node,
                worker.sandbox,
                pairs(worker.labels.items()),
                pairs(worker.resources.items()),
                pairs((name, f"{percent:.0f}%") for name, percent in worker.pressure.items() if percent >= 1),
                ago(worker.registered_ms),
            )
            for worker in found
        ),
    )
    return exits.OK


def state_of(worker: WorkerView) -> str:
    """Return a worker's state with what else keeps jobs from it."""
    more = ["drained"] if worker.drained and worker.state != "draining" else []
    return ", ".join([worker.state, *more, *(["pressed"] if worker.pressed else [])])


def pairs(items: Iterable[tuple[str, object]]) -> str:
    return ",".join(f"{name}={value}" for name, value in items) or "-"


def drain(client: Client, options: argparse.Namespace) -> int:
    worker = client.undrain(options.worker) if options.undo else client.drain(options.worker)
    if options.json:
        print_json(worker)
    else:
        print(f"{worker.id} {worker.state}, {worker.running} jobs running")
    return exits.OK


def health(client: Client, options: argparse.Namespace) -> int:
    found = _health_within(client, options.wait)
    if options.json:
        print_json(found)
    else:
        print_fields(
            [
                ("node", found.node),
                ("status", found.status),
                ("version", found.version),
                ("leads", "yes" if found.leader else "no"),
                ("revision", found.revision),
                ("up", f"{found.uptime_s:.0f} s"),
                *found.checks.items(),
            ]
        )
    return exits.OK if found.status == "ok" else exits.UNAVAILABLE


def _configure_health(parser: Parser) -> None:
    parser.add_argument(
        "--wait", type=duration, default=0.0, metavar="TIME", help="wait so long at most for the node to be well"
    )


def _health_within(client: Client, wait_s: float) -> Health:
    """Return how the node is, as soon as it is well or the time is over. Raises ConnectionFailed."""
    deadline = time.monotonic() + wait_s
    # Who asks for its health wants to know now, and not after as long as work may take.
    with Client(client.socket_path, patience_s=0) as quick:
        while True:
            left_s = deadline - time.monotonic()
            try:
                found = quick.call(_asked(min(left_s, HEALTH_TIMEOUT_S) if left_s > 0 else HEALTH_TIMEOUT_S))
                if found.status == "ok" or left_s <= 0:
                    return found
            except ConnectionFailed:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(WAIT_STEP_S)


def _asked(within_s: float) -> Call[Health]:
    call = operations.health()
    return replace(call, request=replace(call.request, timeout_s=within_s))


def doctor(client: Client, options: argparse.Namespace) -> int:
    """Report on the machine, then on the node behind the socket."""
    from jobs.doctor import Check, report

    checks = report()
    try:
        found = _health_within(client, 0.0)
        status = "ok" if found.status == "ok" else "warn"
        checks.append(Check(name="node", status=status, found=f"{found.node} is {found.status}"))  # type: ignore[arg-type]
    except JobsError as error:
        checks.append(Check(name="node", status="warn", found=error.detail, fix=error.expected or ""))
    for check in checks:
        if options.json:
            print_json(check)
    if not options.json:
        print_table(("", "CHECK", "FOUND", "FIX"), ((c.status, c.name, c.found, c.fix) for c in checks))
    return exits.FAILED if any(check.status == "fail" for check in checks) else exits.OK


def check_config(client: Client, options: argparse.Namespace) -> int:
    from pathlib import Path

    from jobs.config import check_config as problems_of

    problems = problems_of(Path(options.file) if options.file is not None else None)
    for problem in problems:
        if options.json:
            print_json(problem)
        else:
            print(problem)
    if not problems and not options.json:
        print("the configuration is valid")
    return exits.CONFIG if problems else exits.OK


def completion(client: Client, options: argparse.Namespace) -> int:
    import shtab

    from jobs.cli.main import parser

    script = shtab.complete(parser(), options.shell)
    # shtab's script for zsh knows `eval` and $fpath; read with `source` it would run instead of being registered.
    print(script.replace("$zsh_eval_context[-1] == eval ", "$zsh_eval_context[-1] == (eval|file) "))
    return exits.OK


def _configure_completion(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"))


def _configure_drain(parser: Parser) -> None:
    parser.add_argument("worker")
    parser.add_argument("--undo", action="store_true", help="give it jobs again")


COMMANDS: Final = (
    Command("workers", workers, "List the workers."),
    Command("drain", drain, "Give a worker, and its next lives, no more jobs until that is undone.", _configure_drain),
    Command("health", health, "Show how the node is.", _configure_health),
    Command("doctor", doctor, "Look at what this machine has, what is missing, and how to mend it."),
    Command(
        "check-config",
        check_config,
        "Say what is wrong with a configuration, and how to mend it.",
        lambda parser: parser.add_argument("file", nargs="?", help="by default the node's own"),
    ),
    Command("completion", completion, "Print a completion script for a shell.", _configure_completion),
)
