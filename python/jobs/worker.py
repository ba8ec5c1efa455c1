"""The command `jobs-worker`: a process that runs the jobs of one type for the node of this machine."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from jobs import logs
from jobs.config import ConfigError, NodeConfig, WorkerSettings, load_config
from jobs.coredumps import forbid_core_dumps
from jobs.protocol.ids import Incarnation, WorkerId
from jobs.workers import EXECUTORS
from jobs.workers.executor import Executor, ExecutorError
from jobs.workers.former import lock_path, tag, take_lock
from jobs.workers.pressure import Gauge
from jobs.workers.runner import EXIT_CONFIG, EXIT_FAILED, Runner
from jobs.workers.session import Identity, Session

logger = logging.getLogger("jobs.worker")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the process's exit code comes back."""
    options = parser().parse_args(arguments)
    try:
        config = load_config(options.config, flags=flags(options), embedded=options.embedded)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    logs.setup(config.logging)
    forbid_core_dumps()
    name = config.workers.of(options.type).name or f"{options.type}-{config.node.id}"
    with logs.context(worker=name):
        return work(options, config, WorkerId(name))


def work(options: argparse.Namespace, config: NodeConfig, name: WorkerId) -> int:
    """Be the worker `name` until its end; return the exit code."""
    parent = None
    if options.die_with_parent is not None:
        parent = os.pidfd_open(options.die_with_parent)
        if os.getppid() != options.die_with_parent:
            logger.critical("the parent process %d is gone", options.die_with_parent)
            return EXIT_FAILED
    try:
        lock = lock_path(name, config.node.run_dir)
        take_lock(lock)
        executor = EXECUTORS[options.type](config, tag(lock))
    except ExecutorError as error:
        logger.critical("cannot run jobs here: %s", error)
        return EXIT_FAILED
    settings = config.workers.of(options.type)
    logger.info("starting", extra={"slots": executor.slots, "sandbox": executor.sandbox})
    runner = Runner(
        Session(identity(name, executor, settings)),
        executor,
        config.worker_socket_path,
        Gauge(settings.pressure),
        drain_s=settings.drain_s,
        grace_s=settings.grace_s,
    )
    return uvloop.run(runner.run(parent))


def identity(name: WorkerId, executor: Executor, settings: WorkerSettings) -> Identity:
    """Return what this life of the worker says of itself."""
    return Identity(
        worker=name,
        incarnation=Incarnation(secrets.token_hex(16)),
        type=executor.type,
        slots=executor.slots,
        labels=settings.announced,
        cpu_milli=settings.cpu_milli,
        memory_bytes=settings.memory_bytes,
        sandbox=executor.sandbox,
        pid=os.getpid(),
        resources=settings.resources,
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="jobs-worker", description=__doc__)
    made.add_argument("--type", choices=sorted(EXECUTORS), required=True, help="which jobs to run")
    made.add_argument("--config", type=Path, metavar="FILE", help="configuration (default: /etc/jobs/node.toml)")
    made.add_argument("--embedded", type=Path, metavar="DIR", help="work for the node that is embedded in DIR")
    made.add_argument("--socket", type=Path, metavar="PATH", help="the node's socket for workers")
    made.add_argument("--name", help="name of this worker, the same after a restart")
    made.add_argument("--slots", type=int, metavar="N", help="jobs at a time")
    made.add_argument(
        "--die-with-parent",
        type=int,
        nargs="?",
        const=os.getppid(),
        metavar="PID",
        help="end at once with the process that started this one",
    )
    return made


def flags(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the command line sets, nested like the configuration."""
    worker = {key: value for key in ("name", "slots") if (value := getattr(options, key)) is not None}
    given: dict[str, Any] = {"workers": {options.type: worker}} if worker else {}
    if options.socket is not None:
        given["worker_socket"] = {"path": options.socket}
    return given


if __name__ == "__main__":
    sys.exit(main())
