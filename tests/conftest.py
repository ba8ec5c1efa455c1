"""Fixtures that several suites share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from jobs.client import Client
from jobs.testing import EmbeddedNode
from tests.support.clock import Clock

# Started in the background of a script, this process and all its children would ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The everyday run tries the same examples each time; the campaigns, at a larger scale, look for new ones.
settings.register_profile("everyday", derandomize=True)
if os.environ.get("JOBS_TEST_SCALE", "1") == "1":
    settings.load_profile("everyday")


@pytest.fixture
def embedded_node(tmp_path: Path) -> Iterator[EmbeddedNode]:
    """A real node with its workers, of this test alone."""
    with EmbeddedNode(tmp_path / "node") as node:
        yield node


@pytest.fixture(scope="session")
def shared_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    """A real node with its workers, for tests that leave it as they found it."""
    with EmbeddedNode(tmp_path_factory.mktemp("shared")) as node:
        yield node


@pytest.fixture
def client(shared_node: EmbeddedNode) -> Iterator[Client]:
    with shared_node.client() as made:
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The wall clock, which the test can set."""
    return Clock(monkeypatch)
