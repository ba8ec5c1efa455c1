"""Commands on jobs that wait for others: one more dependency, and the graph around a job."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jobs import graphs
from jobs.cli import exits
from jobs.cli.command import Command, Parser, UsageError, at_least
from jobs.cli.jobs import print_job
from jobs.cli.output import note, print_json, print_table
from jobs.client import Client
from jobs.protocol.ids import JobId
from jobs.protocol.model import GraphNode, JobGraph

SHOWN_PARENTS: Final = 8
"""In one line of the list."""


def depend(client: Client, options: argparse.Namespace) -> int:
    job = client.depend(options.id, options.on)
    if options.json:
        print_json(job)
    else:
        print_job(job)
    return exits.OK


def graph(client: Client, options: argparse.Namespace) -> int:
    found = client.graph(options.id, limit=options.limit)
    if options.svg is not None:
        _write(options.svg, found)
    elif options.json:
        print_json(found)
    else:
        print_table(("#", "STATE", "REASON", "ID", "REF", "AFTER"), _rows(found))
    if found.truncated:
        note(f"there are more jobs; the {len(found.nodes)} nearest are shown (--limit)")
    return exits.OK


def _rows(found: JobGraph) -> Iterator[tuple[object, ...]]:
    """Yield a row a job, parents first; the job that was asked for is marked."""
    nodes = {node.id: node for node in found.nodes}
    parents = parents_of(found)
    order = [job for layer in graphs.layers(parents) for job in layer]
    numbers = {job: number for number, job in enumerate(order, 1)}
    for job in order:
        node = nodes[job]
        after = [f"{number}" for number in sorted(numbers[parent] for parent in parents[job])]
        if len(after) > SHOWN_PARENTS:
            after = [*after[:SHOWN_PARENTS], f"+{len(after) - SHOWN_PARENTS}"]
        mark = "*" if job == found.job else ""
        yield f"{numbers[job]}{mark}", state_of(node), node.reason, job, node.ref, " ".join(after) or None


def parents_of(found: JobGraph) -> dict[JobId, list[JobId]]:
    """Return the parents of each job that are in the graph."""
    parents: dict[JobId, list[JobId]] = {node.id: [] for node in found.nodes}
    for edge in found.edges:
        parents[edge.child].append(edge.parent)
    return parents


def state_of(node: GraphNode) -> str:
    return "gone" if node.state is None else node.state.value


def _write(path: str, found: JobGraph) -> None:
    from jobs.cli.svg import draw

    text = draw(found)
    if path == "-":
        print(text)
        return
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UsageError(f"cannot write {path}: {getattr(error, 'strerror', error)}") from error


def _configure_depend(parser: Parser) -> None:
    parser.add_argument("id")
    parser.add_argument("--on", nargs="+", required=True, metavar="ID", help="jobs that have to end first")


def _configure_graph(parser: Parser) -> None:
    parser.add_argument("id")
    parser.add_argument("--svg", metavar="FILE", help="draw it; - writes to standard output")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="at most so many jobs (1000)")


COMMANDS: Final = (
    Command("depend", depend, "Let a job that has not started wait for others as well.", _configure_depend),
    Command("graph", graph, "Show what a job depends on, and what depends on it.", _configure_graph),
)
