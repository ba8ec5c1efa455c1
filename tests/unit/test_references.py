"""What docs/reference has of the code is what the code is. If one of these fails: `make reference`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.api import document as api
from jobs.api import metricsdocument as metrics
from jobs.api import openapi
from jobs.api.routes import ROUTES
from jobs.cli import document as cli
from jobs.cli.main import COMMANDS

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize(
    ("name", "written"), [("cli", cli.document), ("api", api.document), ("metrics", metrics.generated)]
)
def test_a_reference_is_that_of_the_code(name: str, written: Callable[[], str]) -> None:
    assert (REFERENCE / f"{name}.md").read_text() == written(), "run: make reference"


def test_every_command_is_there_whatever_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = cli.document()
    headings = re.findall(r"(?m)^#+ `([^`]+)`$", text)
    assert {f"jobctl {name}" for name in COMMANDS} <= set(headings)
    assert {"jobctl schedule set", "jobs-node restore", "jobs-worker"} <= set(headings)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.document() == text


def test_every_operation_and_type_is_there_and_its_links_lead_somewhere() -> None:
    text = api.document()
    headings = re.findall(r"(?m)^### (.+)$", text)
    described: dict[str, Any] = msgspec.json.decode(openapi.document())
    assert {f"`{route.method} {route.path}`" for route in ROUTES} <= set(headings)
    assert set(described["components"]["schemas"]) <= set(headings)
    anchors = {heading.lower() for heading in headings}
    assert set(re.findall(r"\(#([^)]+)\)", text)) <= anchors


def test_what_the_code_says_of_a_field_is_told() -> None:
    assert "Share of the workers among the queues that have jobs waiting." in api.document()
