"""Dashboard and alerts ask for metrics that a node exports, in queries that Prometheus takes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import Client, shell_job
from jobs.protocol.model import ReplicationJob, ReplicationSync
from jobs.testing import EmbeddedCluster
from tests.support.waiting import until

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
NAME = re.compile(r"\b((?:jobs|process)_[a-z0-9_]+)\b(?!\s*=)")
PROMETHEUS_OWN = {"up", "ALERTS"}
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (prometheus)")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    return found


def dashboard_queries() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    return found


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the nodes of a cluster export that has passed requests on, kept data in step and made spans."""
    env = {"JOBS_TRACING__OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with EmbeddedCluster(tmp_path_factory.mktemp("exported"), 2, env=env, types=("shell", "replication")) as cluster:
        for node in cluster.nodes.values():
            with node.client() as client:
                client.run(shell_job("true"))
                client.run(shell_job("exit 1"))
        with cluster.client() as client:
            wanted = ReplicationSync(name="copied", prefix="/data/a/", target_prefix="/data/b/", continuous=True)
            client.submit(ReplicationJob(payload=wanted))
        texts: list[str] = []

        def syncs() -> bool:
            texts[:] = [metrics_of(node) for node in cluster.nodes.values()]
            return any("jobs_replication_rows_total{" in text for text in texts)

        until(syncs)
    return texts


@pytest.fixture(scope="module")
def exported(scraped: list[str]) -> dict[str, set[str]]:
    """The labels of each series."""
    series: dict[str, set[str]] = {}
    for line in "\n".join(scraped).splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition("{") if "{" in line else (line.split()[0], "", "")
            series.setdefault(name, set()).update(re.findall(r'([a-z_]+)="', rest))
    # Of a request between nodes that failed: its labels are in the code.
    series["jobs_forward_failures_total"] = {"kind"}
    return series


def metrics_of(node: Any) -> str:
    with Client(str(node.socket)) as client:
        return client.metrics()


def test_every_query_is_of_metrics_that_nodes_export(exported: dict[str, set[str]]) -> None:
    queries = [*dashboard_queries(), *(rule["expr"] for rule in rules())]
    asked = {name for query in queries for name in NAME.findall(query)}
    assert len(asked) > 40
    assert asked - exported.keys() - PROMETHEUS_OWN == set()
    for query in queries:
        for name, chosen in re.findall(r"\b((?:jobs|process)_[a-z0-9_]+)\{([^}]*)\}", query):
            labels = set(re.findall(r'([a-z_]+)(?:=~|!~|!=|=)"', chosen)) - {"job", "instance"}
            assert labels <= exported[name], query


def test_the_dashboard_is_one_that_grafana_lays_out_as_it_is_meant() -> None:
    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in board["panels"]]
    for one, other in combinations(places, 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart or above, (one, other)
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for panel in board["panels"]:
        assert panel["type"] == "row" or (panel["description"] and panel["targets"])
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "job", "instance"]


@needs_promtool
def test_prometheus_has_no_complaint_of_what_is_exported(scraped: list[str]) -> None:
    for text in scraped:
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_promtool
def test_prometheus_takes_every_query(tmp_path: Path) -> None:
    queries = [query for query in dashboard_queries() if not query.startswith("label_values(")]
    told = [
        query.replace("$__rate_interval", "5m").replace("$job", ".*").replace("$instance", ".*") for query in queries
    ]
    recorded = [{"record": f"q:{number}", "expr": query} for number, query in enumerate(told)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    for file in (tmp_path / "rules.yaml", MONITORING / "alerts.yaml"):
        checked = promtool("check", "rules", str(file))
        assert checked.returncode == 0, checked.stderr + checked.stdout


@needs_promtool
def test_the_alerts_are_raised_when_they_are_to_be() -> None:
    tried = promtool("test", "rules", "alerts-test.yaml", cwd=MONITORING)
    assert tried.returncode == 0, tried.stderr + tried.stdout


def test_every_alert_is_tried_and_told_of_in_the_guide() -> None:
    tried = (MONITORING / "alerts-test.yaml").read_text()
    guide = (MONITORING.parent / "monitoring.md").read_text()
    for rule in rules():
        assert rule["alert"] in tried
        assert f"`{rule['alert']}`" in guide
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}


def promtool(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, cwd=cwd)
