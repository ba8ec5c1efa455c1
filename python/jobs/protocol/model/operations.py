"""What a node tells of an operation that it carries out for a worker: one object a line, the last of them how it ended.
Each type of job adds what it is when it has succeeded."""

from __future__ import annotations

from typing import TypeAlias

from jobs.protocol.model.base import Model
from jobs.protocol.model.node import Problem


class OperationAdvance(Model, frozen=True, tag_field="event", tag="progress"):
    """How far it is, in the measure of the operation; of blobs, in bytes."""

    done: int
    total: int
    """As far as is known; 0 while nothing of it is."""
    message: str = ""
    """What it is at, such as the node that is read from."""


class OperationLine(Model, frozen=True, tag_field="event", tag="line"):
    """A line of the job's standard output, without its end: JSON."""

    text: str


OperationNews: TypeAlias = OperationAdvance | OperationLine


class OperationFailed(Model, frozen=True, tag_field="event", tag="failed"):
    """It has failed. Nothing follows."""

    problem: Problem
