"""What the documents show is run as it stands there: commands, Python, queries, configuration; links lead somewhere."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from jobs import shell_job
from jobs.config import check_config
from jobs.config.model import WorkerType
from jobs.protocol.model import JobSubmit, Problem, Reason
from jobs.testing import EmbeddedNode
from jobs.validate import check_job
from tests.docs.guides import JOB, LANGUAGES, MARKS, ROOT, Block, anchors, blocks, documents, links

README = "README.md"
ELSEWHERE = {
    "docs/backup.md": "tests/replication/test_backup_guide.py",
    "docs/blobs.md": "tests/blobs/test_guide.py",
    "docs/maintenance.md": "tests/maintenance/test_guide.py",
    "docs/nixos.md": "tests/nix/test_module.py",
    "docs/replication.md": "tests/replication/test_guide.py",
}
"""Documents whose tests of their own run their blocks, as they need more than a node or look at what comes of it."""
GIVEN: dict[str, dict[str, str]] = {
    "docs/arrays.md": {"jobs.json": '[1, {"a": 2}]', "one.wav": "", "two.wav": ""},
    "docs/jobs.md": {"model.bin": "weights"},
    # As much of OpenTelemetry as the document calls: Jobs does not use it.
    "docs/tracing.md": {
        "opentelemetry/propagate.py": f"def inject(carrier): carrier['traceparent'] = '00-{'a' * 32}-{'b' * 16}-01'",
    },
}
"""What a reader of a document is taken to have: files in the directory, by name. A TOML block of a document that its
commands name is put there, too."""
BEFORE = {
    "docs/sql.md": """
        jobctl kv put /data/orders/42 '{"id": 42}'
        jobctl kv put /data/load/a/2026-01-01 '{"load": 0.5}'
        jobctl sql "CREATE EXTERNAL TABLE orders (id BIGINT) STORED AS JSON LOCATION '/data/orders/'"
        """,
}
"""Commands that bring about what a document says is there."""
DECLARATIONS = {"docs/declarations.md": "site.toml"}
"""Documents whose TOML is not the configuration of a node, and the name under which their commands know it."""
PRELUDE = """
set -euo pipefail
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
jobs-node() { exec "$PYTHON" -m jobs.node "$@"; }
jobctl() {
  case "$1" in
    top) set -- "$@" --once ;;  # there is no terminal
    sql) [ $# -gt 1 ] || set -- sql "SELECT 1" ;;  # so there is no dialogue
    doctor) "$PYTHON" -m jobs.cli.main "$@" || true; return ;;  # it judges the machine
  esac
  "$PYTHON" -m jobs.cli.main "$@"
}
"""
TIMEOUT_S = 280
CLI = "docs/reference/cli.md"
COMMAND = re.compile(r"(?m)^(\w*[#$] |jobctl |jobs-|systemctl |sudo |make |python)")


def of(document: str, language: str, mark: str = "") -> list[Block]:
    return [block for block in blocks(document) if (block.language, block.mark) == (language, mark)]


def run_here(*languages: str) -> list[str]:
    """Return the documents that have blocks of these languages which are run here."""
    return [name for name in documents() if name not in ELSEWHERE and any(of(name, one) for one in languages)]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    types = ("shell", "sql", "blob", "maintenance", "replication")
    # Not waiting for its workers: jobs wait for them.
    with EmbeddedNode(tmp_path_factory.mktemp("documented"), types=types).start(wait=False) as made:
        yield made


def run(directory: Path, command: list[str], socket: Path) -> str:
    home = str(directory)
    env = {**os.environ, "PYTHON": sys.executable, "JOBS_SOCKET": str(socket), "HOME": home}
    done = subprocess.run(
        command, cwd=directory, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S
    )
    output = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0, output
    return output


def lay_out(document: str, directory: Path) -> None:
    for name, text in GIVEN.get(document, {}).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    if document in DECLARATIONS:
        (directory / DECLARATIONS[document]).write_text(of(document, "toml")[0].text)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("document", [name for name in run_here("sh", "python") if name != README])
def test_its_commands_and_its_python_run(document: str, node: EmbeddedNode, tmp_path: Path) -> None:
    lay_out(document, tmp_path)
    texts = [BEFORE.get(document, ""), *(block.text for block in of(document, "sh"))]
    if shutil.which("curl") is None and any("curl " in text for text in texts):
        pytest.skip("curl is not installed")
    run(tmp_path, ["bash", "-c", PRELUDE + "\n".join(texts)], node.socket)
    python = "\n".join(block.text for block in of(document, "python"))
    if python:
        run(tmp_path, [sys.executable, "-c", python], node.socket)


@pytest.mark.parametrize("document", run_here("sql"))
def test_its_queries_run(document: str, node: EmbeddedNode, tmp_path: Path) -> None:
    run(tmp_path, ["bash", "-c", PRELUDE + BEFORE[document].replace(" orders ", " other_orders ")], node.socket)
    for block in of(document, "sql"):
        for statement in filter(str.strip, block.text.split(";")):
            run(tmp_path, [sys.executable, "-m", "jobs.cli.main", "sql", statement], node.socket)


@pytest.mark.parametrize(
    "block", [block for name in documents() for block in blocks(name) if block.mark == JOB], ids=str
)
def test_what_a_job_does_is_done_in_one(block: Block, node: EmbeddedNode) -> None:
    command = {"sh": ["sh", "-c", block.text], "python": ["python3", "-c", block.text]}[block.language]
    with node.client() as client:
        result = client.run(shell_job(command))
    assert result.state == "completed", result.stderr.text


@pytest.mark.timeout(300)
def test_the_first_steps_run(tmp_path: Path) -> None:
    """What the README has a newcomer type, in a directory that is as after `make setup`."""
    shutil.copy(ROOT / README, tmp_path)
    (tmp_path / "data.csv").write_text("a,b\n")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("")
    (tmp_path / "first.py").write_text(of(README, "python")[0].text)
    steps, _ = of(README, "sh")
    script = PRELUDE + 'make() { test "$*" = setup; }\n' + steps.text + '"$PYTHON" first.py'
    run(tmp_path, ["bash", "-c", script], tmp_path / "none.sock")


@pytest.mark.timeout(300)
def test_three_nodes_become_a_cluster_as_the_readme_says(tmp_path: Path) -> None:
    _, steps = of(README, "sh")
    script = steps.text.replace("127.0.0.1:742$n", f"127.0.0.1:{free_ports()}$n")
    few_workers = """export JOBS_WORKERS__EMBEDDED='["shell"]'\n"""
    run(tmp_path, ["bash", "-c", PRELUDE + few_workers + script], tmp_path / "none.sock")


def free_ports() -> int:
    """Return a tenth of numbers whose ports were free just now."""
    while True:
        number = random.randrange(2_000, 3_200)
        with contextlib.ExitStack() as stack:
            try:
                for last in (1, 2, 3):
                    probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    probe.bind(("127.0.0.1", 10 * number + last))
                return number
            except OSError:
                continue


def test_what_is_not_run_says_why() -> None:
    for document in documents():
        for block in blocks(document):
            assert block.language in LANGUAGES, f"{block.place}: a block has a language, `text` for what nobody types"
            assert block.language != "text" or not COMMAND.search(block.text) or block.document == CLI, block.place
            assert block.mark in ("", *MARKS), block.place
            assert bool(block.mark) == bool(block.why), f"{block.place}: a mark has a reason"
            assert block.mark or block.language != "console", f"{block.place}: it cannot be run here"
            assert block.language != "nix" or document in ELSEWHERE, f"{block.place}: no test evaluates it"


def test_what_is_run_elsewhere_is() -> None:
    for document, test in ELSEWHERE.items():
        assert document in (ROOT / test).read_text(), f"{test} does not run {document}"


@pytest.mark.parametrize(
    "block",
    [block for name in documents() if name not in DECLARATIONS for block in of(name, "toml")],
    ids=lambda block: block.place,
)
def test_its_configuration_is_right(block: Block, tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(block.text)
    assert check_config(tmp_path / "node.toml", embedded=tmp_path) == []


@pytest.mark.parametrize("document", run_here("json"))
def test_its_json_is_what_the_api_speaks(document: str) -> None:
    for block in of(document, "json"):
        if '"code"' in block.text:
            msgspec.json.decode(block.text, type=Problem)
            continue
        for line in block.text.splitlines():
            check_job(msgspec.json.decode(line, type=JobSubmit))


@pytest.mark.parametrize("document", run_here("yaml"))
def test_its_scrapes_are_what_prometheus_takes(document: str, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (prometheus)")
    for block in of(document, "yaml"):
        shutil.copy(ROOT / "docs/monitoring/alerts.yaml", tmp_path)
        (tmp_path / "prometheus.yml").write_text(block.text)
        run(tmp_path, ["promtool", "check", "config", "prometheus.yml"], tmp_path)


@pytest.mark.parametrize("document", documents())
def test_its_links_lead_somewhere(document: str) -> None:
    for path, heading in links(document):
        assert path.exists(), f"{document} links to {path}"
        if heading:
            assert heading in anchors(path), f"{document} links to {path}#{heading}"


def test_every_document_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    linked = {path.resolve() for path, _ in links("docs/README.md")}
    missing = [name for name in documents() if name.startswith("docs/") and (ROOT / name) not in {*linked, index}]
    assert missing == []


def test_every_command_that_is_named_exists() -> None:
    """Those within sentences, too, and what alerts and the dashboard say to do."""
    reference = (ROOT / "docs/reference/cli.md").read_text()
    known = {tuple(found.split()) for found in re.findall(r"(?m)^#+ `jobctl ([^`]+)`$", reference)}
    groups = {names[0] for names in known if len(names) > 1}
    files = [ROOT / name for name in documents()] + sorted((ROOT / "docs/monitoring").iterdir())
    for file in files:
        for first, second in re.findall(r"jobctl ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", file.read_text()):
            assert (first,) in known, f"{file} names jobctl {first}"
            assert not second or first not in groups or (first, second) in known, f"{file}: jobctl {first} {second}"


def test_every_option_and_every_key_that_is_named_exists() -> None:
    """Those within sentences. What these documents say of other programs' options is no concern of ours."""
    of_others = {"docs/performance.md", "docs/reliability.md", "docs/sandbox.md"}
    options = set(re.findall(r"--[a-z][a-z0-9-]+", (ROOT / CLI).read_text()))
    keys, section = set(), ""
    for line in (ROOT / "docs/config.md").read_text().splitlines():
        if found := re.match(r"## `\[(.+)\]`|\| `(\w+)` \|", line):
            section = found[1] or section
            keys |= {section, f"{section}.{found[2]}"} if found[2] else {section}
    sections = {key.split(".")[0] for key in keys}
    files = {"secrets.key", "node.key", "api.sock", "worker.sock"}
    for name in documents():
        text = (ROOT / name).read_text()
        if name not in of_others:
            for option in re.findall(r"`(--[a-z][a-z0-9-]+)", text):
                assert option in options, f"{name} names {option}"
        for key in set(re.findall(r"`([a-z_]+(?:\.[a-z_*A-Z]+)+)`", text)) - files:
            if key.split(".")[0] in sections:
                assert re.sub(r"TYPE|\*", "shell", key) in keys | {"workers.shell.allow_files"}, f"{name} names {key}"


def test_every_reason_and_every_type_is_explained() -> None:
    text = (ROOT / "docs/jobs.md").read_text()
    rows = "\n".join(re.findall(r"(?m)^\| (`.+?) \|", text))
    assert {reason.value for reason in Reason} <= set(re.findall(r"`(\w+)`", rows))
    assert set(typing.get_args(WorkerType)) <= set(re.findall(r"`(\w+)`", rows))


def test_what_symptoms_say_is_what_the_programs_say() -> None:
    """Words that are looked for have to be found."""
    of_others = {"Permission denied", "No such file or directory", "Read-only file system"}
    table = (ROOT / "docs/operations.md").read_text().partition("| symptom |")[2]
    rows = re.findall(r"(?m)^\| ([^|]+) \| [^|]+ \| [^|]+ \|$", table)
    quoted = {part.strip() for row in rows for text in re.findall(r"`([^`]+)`", row) for part in text.split("…")}
    words = {part for part in quoted - of_others if re.match(r"[a-z]+ [a-z ]+", part) and ":" not in part}
    assert len(words) >= 5
    sources = "".join(file.read_text() for file in (ROOT / "python/jobs").rglob("*.py"))
    assert {part for part in words if part not in sources} == set()
