"""A real node with a worker for queries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobs.client import Client
from jobs.testing import EmbeddedNode

SQL = ("sql",)


@pytest.fixture(scope="session")
def sql_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    """A node for tests that leave its worker as they found it; keys and tables are named after the test."""
    directory = tmp_path_factory.mktemp("sql")
    allowed = directory / "allowed"
    allowed.mkdir()
    env = {"JOBS_WORKERS__SQL__ALLOW_FILES": f'["{allowed}"]', "JOBS_WORKERS__SQL__THREADS": "2"}
    with EmbeddedNode(directory / "node", types=SQL, env=env) as node:
        yield node


@pytest.fixture
def sql_client(sql_node: EmbeddedNode) -> Iterator[Client]:
    with sql_node.client() as made:
        yield made
