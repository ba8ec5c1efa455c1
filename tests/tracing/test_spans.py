"""Jobs in traces: a real node exports to a real collector; each in processes of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from jobs import Client, shell_job
from jobs.client import operations
from jobs.protocol.ids import JobId, array_id
from jobs.protocol.model import ArrayRange, ArraySpec, JobState, JobView, Retry, Submitted
from jobs.testing import EmbeddedNode, NodeFailed
from jobs.tracing.context import TraceContext, parse
from jobs.tracing.exporter import TracingError, read_headers, traces_url
from tests.support.collector import Collector, Got, collector
from tests.support.jobctl import jobctl
from tests.support.waiting import until

Traced = tuple[EmbeddedNode, Collector]
TELL = 'printf "%s %s" "$TRACEPARENT" "$TRACESTATE"'


def settings(url: str, **changes: str) -> dict[str, str]:
    return {"JOBS_TRACING__OTLP_ENDPOINT": url, "JOBS_TRACING__INTERVAL_S": "0.01", **changes}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """A node that exports its spans."""
    directory = tmp_path_factory.mktemp("traced")
    (directory / "headers").write_text("Authorization: Bearer abc\n\n")
    with collector(directory) as receiver:
        env = settings(
            receiver.url,
            JOBS_TRACING__HEADERS_FILE=str(directory / "headers"),
            JOBS_TRACING__RESOURCE='{"deployment.environment.name": "test"}',
            JOBS_NODE__ID="n1",
        )
        with EmbeddedNode(directory / "node", env=env, types=("shell", "sql")) as node:
            yield node, receiver


def context(flags: int = 1, state: str = "") -> TraceContext:
    """Return that of a caller's span."""
    return TraceContext(secrets.token_hex(16), secrets.token_hex(8), flags, state)


def client_in(node: EmbeddedNode, caller: TraceContext) -> Client:
    return Client(str(node.socket), trace_context=caller.headers)


def one(spans: dict[str, list[Got]], name: str) -> Got:
    (span,) = spans[name]
    return span


def check_within(inner: Got, outer: Got) -> None:
    assert inner.parent == outer.id
    assert outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns, (inner, outer)


def test_a_job_stands_in_its_callers_trace_with_all_that_became_of_it(traced: Traced) -> None:
    node, receiver = traced
    caller = context(state="vendor=abc,other=1")
    with client_in(node, caller) as client:
        submitted = client.submit(shell_job(TELL, queue="q", priority=3))
        result = client.result(submitted.job.id, timeout_s=20)
    job = submitted.job.id
    spans = receiver.of(caller.trace_id, [job])
    assert set(spans) == {"job shell", "submit", "queue", "attempt", "start", "run", "record"}
    whole, attempt = one(spans, "job shell"), one(spans, "attempt")
    assert whole.parent == caller.span_id
    for name in ("submit", "queue", "attempt"):
        check_within(one(spans, name), whole)
    for name in ("start", "run", "record"):
        check_within(one(spans, name), attempt)
    assert one(spans, "queue").end_ns == attempt.start_ns
    assert {span.state for found in spans.values() for span in found} == {caller.state}
    # The job is told of the attempt's span, so that what it makes of its own stands below it.
    told = TraceContext(caller.trace_id, attempt.id, 1, caller.state)
    assert result.stdout.text == f"{told.parent} {caller.state}"
    about = {"jobs.job.id": job, "jobs.job.type": "shell", "jobs.queue": "q", "jobs.priority": 3, "jobs.attempts": 1}
    assert whole.attributes.items() >= (about | {"jobs.owner": os.getuid(), "jobs.state": "completed"}).items()
    assert attempt.attributes.items() >= {"jobs.exit_code": 0, "jobs.node": "n1", "jobs.worker": "shell-n1"}.items()
    assert whole.error is attempt.error is None
    assert whole.resource.items() >= {
        "service.name": "jobs", "service.instance.id": "n1", "deployment.environment.name": "test",
    }.items()  # fmt: skip
    assert whole.headers["authorization"] == "Bearer abc"
    assert submitted.job.trace_id == caller.trace_id


def test_a_job_without_a_caller_has_a_trace_named_by_its_id(traced: Traced) -> None:
    node, receiver = traced
    with node.client() as client:
        submitted = client.shell(TELL)
        result = client.result(submitted.job.id, timeout_s=20)
    trace = submitted.job.id.replace("-", "")
    spans = receiver.of(trace, [submitted.job.id])
    assert one(spans, "job shell").parent is None
    assert result.stdout.text == f"00-{trace}-{one(spans, 'attempt').id}-01 "


def test_attempts_and_the_waits_between_them_are_spans_and_a_failure_is_one(traced: Traced) -> None:
    node, receiver = traced
    caller = context()
    with client_in(node, caller) as client:
        retry = Retry(max_attempts=2, delay_s=0.2, jitter=0, backoff="fixed")
        job = client.shell("exit 3", retry=retry).job.id
        client.wait(job, 20)
    spans = receiver.of(caller.trace_id, [job])
    first, second = spans["attempt"]
    assert first.id != second.id
    assert [attempt.attributes["jobs.attempt"] for attempt in (first, second)] == [1, 2]
    assert first.error == second.error == one(spans, "job shell").error == "exited with code 3"
    wait, (_, queue) = one(spans, "wait"), spans["queue"]
    assert (wait.end_ns - wait.start_ns) >= 190_000_000
    assert wait.end_ns == queue.start_ns <= queue.end_ns == second.start_ns
    assert one(spans, "job shell").attributes["jobs.reason"] == "exit_code"


def test_children_stand_below_the_job_they_wait_for_and_link_to_each(traced: Traced) -> None:
    node, receiver = traced
    with node.client() as client:
        first, second = (client.shell("true").job.id for _ in range(2))
        child = client.shell("true", depends_on=[first, second]).job
        client.wait(child.id, 20)
        trace = first.replace("-", "")
        assert child.trace_id == trace
        spans = receiver.of(trace, [first, child.id])
        other = receiver.of(second.replace("-", ""), [second])
    parent, below = spans["job shell"]
    assert below.parent == parent.id
    assert below.links == [(trace, parent.id), (one(other, "job shell").trace, one(other, "job shell").id)]


def test_a_chain_of_one_request_is_one_trace_in_whatever_order_it_is_named(traced: Traced) -> None:
    node, receiver = traced
    jobs = [
        shell_job("true", ref="c", depends_on=["b"]),
        shell_job("true", ref="b", depends_on=["a"]),
        shell_job("true", ref="a"),
    ]
    with node.client() as client:
        batch = client.call(operations.submit_batch([msgspec.Raw(msgspec.json.encode(job)) for job in jobs]))
        last, middle, first = (made.job.id for made in batch.jobs)
        client.wait(last, 20)
    spans = receiver.of(first.replace("-", ""), [first, middle, last])
    by_job = {span.attributes["jobs.job.id"]: span for span in spans["job shell"]}
    assert by_job[middle].parent == by_job[first].id
    assert by_job[last].parent == by_job[middle].id
    assert by_job[first].parent is None


def test_tasks_stand_below_their_array(traced: Traced) -> None:
    node, receiver = traced
    caller = context()
    with client_in(node, caller) as client:
        array = client.submit(shell_job(TELL, array=ArraySpec(range=ArrayRange(stop=3)))).job.id
        client.wait(array, 20)
        tasks = sorted(job.id for job in client.list(array=array))
        texts = [client.result(task).stdout.text for task in tasks]
    spans = receiver.of(caller.trace_id, [array, *tasks])
    by_job = {span.attributes["jobs.job.id"]: span for span in spans["job shell"]}
    assert by_job[array].parent == caller.span_id
    assert [by_job[task].parent for task in tasks] == [by_job[array].id] * 3
    assert [by_job[task].attributes["jobs.array.index"] for task in tasks] == [0, 1, 2]
    assert all(array_id(JobId(task)) == array for task in tasks)
    attempts = {span.attributes["jobs.job.id"]: span.id for span in spans["attempt"]}
    assert texts == [f"00-{caller.trace_id}-{attempts[task]}-01 " for task in tasks]


def test_a_query_tells_of_planning_and_execution(traced: Traced) -> None:
    node, receiver = traced
    caller = context()
    with client_in(node, caller) as client:
        client.sql("SELECT count(*) FROM jobs")
        (job,) = client.list(type="sql")
        assert job.trace_id == caller.trace_id
        # What is stored is a column of the table.
        found = client.sql(f"SELECT id FROM jobs WHERE substr(traceparent, 4, 32) = '{caller.trace_id}'")
        assert {"id": job.id} in found.rows()
    spans = receiver.of(caller.trace_id, [job.id])
    run = next(span for span in spans["run"] if span.attributes["jobs.job.id"] == job.id)
    for name in ("plan", "execute"):
        check_within(next(span for span in spans[name] if span.parent == run.id), run)


def test_what_ends_before_it_runs_has_only_waited(traced: Traced) -> None:
    node, receiver = traced
    caller = context()
    with client_in(node, caller) as client:
        job = client.shell("true", requires=operations.model.Requires(labels={"no": "such"})).job.id
        client.cancel(job)
    spans = receiver.of(caller.trace_id, [job])
    assert set(spans) == {"job shell", "submit", "queue"}
    assert one(spans, "job shell").error == "cancelled before it ran"


def test_a_trace_that_is_not_recorded_is_passed_on_as_that(traced: Traced) -> None:
    node, receiver = traced
    hidden, seen = context(flags=0), context()
    with client_in(node, hidden) as client:
        text = client.run(shell_job(TELL)).stdout.text
    told = parse((text or "").split()[0])
    assert told is not None
    assert (told.trace_id, told.is_sampled) == (hidden.trace_id, False)
    with client_in(node, seen) as client:
        job = client.shell("true").job.id
        client.wait(job, 20)
    receiver.of(seen.trace_id, [job])
    assert [span for span in receiver.spans() if span.trace == hidden.trace_id] == []


def test_jobctl_submits_in_the_trace_of_its_environment(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    node, receiver = traced
    caller = context(state="a=b")
    for name, value in caller.variables().items():
        monkeypatch.setenv(name, value)
    job = msgspec.json.decode(jobctl(node, "submit", "--json", "--", "true").stdout)["id"]
    made = jobctl(node, "run", "--", "sh", "-c", TELL)
    assert made.returncode == 0, made.stderr
    told = parse(*made.stdout.decode().split())
    assert told is not None
    assert (told.trace_id, told.state) == (caller.trace_id, "a=b")
    with node.client() as client:
        client.wait(job, 20)
        shown = msgspec.json.decode(jobctl(node, "status", "--json", job).stdout)
    assert shown["trace_id"] == caller.trace_id
    spans = receiver.of(caller.trace_id, [job])
    assert {span.parent for span in spans["job shell"]} == {caller.span_id}
    # What a job submits by itself has the variable, so it stands below the attempt that did it.
    monkeypatch.setenv("TRACEPARENT", told.parent)
    inner = msgspec.json.decode(jobctl(node, "submit", "--json", "--", "true").stdout)["id"]
    spans = receiver.of(caller.trace_id, [job, inner])
    below = next(span for span in spans["job shell"] if span.attributes["jobs.job.id"] == inner)
    assert below.parent in {span.id for span in spans["attempt"]}


def test_headers_that_are_no_context_change_nothing(traced: Traced) -> None:
    node, receiver = traced
    headers = {"traceparent": f"00-{'0' * 32}-{'1' * 16}-01", "tracestate": "a=b"}
    with Client(str(node.socket), trace_context=lambda: headers) as client:
        submitted = client.shell("true")
        client.wait(submitted.job.id, 20)
    assert submitted.job.trace_id is None
    assert one(receiver.of(submitted.job.id.replace("-", ""), [submitted.job.id]), "job shell").state == ""


def test_the_same_key_in_another_trace_is_the_same_job(traced: Traced) -> None:
    node, _ = traced

    def submit(caller: TraceContext) -> Submitted:
        with client_in(node, caller) as client:
            return client.shell("true", idempotency_key="traced-once")

    first, second = context(), context()
    made, known = submit(first), submit(second)
    assert (made.created, known.created, made.job.id) == (True, False, known.job.id)
    assert known.job.trace_id == first.trace_id


def test_without_a_collector_the_context_is_passed_on_as_it_came(client: Client, shared_node: EmbeddedNode) -> None:
    caller = context(state="a=b")
    assert client.run(shell_job(TELL)).stdout.text == " "
    with client_in(shared_node, caller) as traced_client:
        assert traced_client.run(shell_job(TELL)).stdout.text == f"{caller.parent} a=b"
    assert "jobs_tracing" not in client.metrics()


def metric(client: Client, name: str) -> float:
    return sum(float(line.split()[-1]) for line in client.metrics().splitlines() if line.startswith(name))


def run_one(client: Client) -> JobView:
    job = client.shell("true").job
    assert client.wait(job.id, 20).state is JobState.COMPLETED
    return job


def test_a_collector_that_is_away_costs_spans_and_nothing_else(tmp_path: Path) -> None:
    # Given a node whose collector is not there, with room for few spans
    with Collector(tmp_path / "spans.jsonl") as receiver:
        receiver.start()
        receiver.stop()
        env = settings(receiver.url, JOBS_TRACING__MAX_SPANS="512")
        with EmbeddedNode(tmp_path / "node", env=env) as node, node.client() as client:
            # When many more jobs are run than it has room for spans, they are run all the same,
            jobs = [made.job.id for made in client.submit_many(shell_job(["true"]) for _ in range(150))]
            for job in jobs:
                assert client.wait(job, 60).state is JobState.COMPLETED
            # and what there was no room for is counted.
            assert metric(client, "jobs_tracing_spans_waiting") <= 512
            assert metric(client, 'jobs_tracing_spans_dropped_total{cause="queue_full"}') > 0
            assert metric(client, "jobs_tracing_failed_requests_total") > 0
            # When the collector comes, it is given what waited, once each, and what ends from then on.
            receiver.start(503)
            until(lambda: metric(client, "jobs_tracing_spans_waiting") == 0, timeout_s=60)
            late = run_one(client).id
            receiver.of(late.replace("-", ""), [late])
            ids = [span.id for span in receiver.spans()]
            assert len(ids) == len(set(ids)) >= 512
            until(lambda: metric(client, "jobs_tracing_spans_exported_total") == len(ids))
            assert metric(client, 'jobs_tracing_spans_dropped_total{cause="unreachable"}') == 0


def test_a_refusal_is_final_and_the_last_spans_are_sent_at_the_end(tmp_path: Path) -> None:
    with collector(tmp_path, 400) as receiver:
        env = settings(receiver.url + "/v1/traces", JOBS_TRACING__INTERVAL_S="0.2")
        with EmbeddedNode(tmp_path / "node", env=env) as node:
            with node.client() as client:
                refused = run_one(client).id
                until(lambda: metric(client, 'jobs_tracing_spans_dropped_total{cause="rejected"}') > 0)
                assert metric(client, "jobs_tracing_failed_requests_total") == 1
                # Then the node is stopped while spans wait for others to be sent with.
                node.stop()
                env["JOBS_TRACING__INTERVAL_S"] = "60"
                node.start(env=env)
                last = run_one(client).id
                assert metric(client, "jobs_tracing_spans_waiting") > 0
            node.stop()
        whole = one(receiver.of(last.replace("-", ""), [last]), "job shell")
        assert whole.attributes["jobs.job.id"] == last
        assert "spans cannot be exported: it answers 400" in node.log_file.read_text()
        assert refused not in {span.attributes.get("jobs.job.id") for span in receiver.spans()}


def test_a_job_that_outlives_its_node_is_one_trace(tmp_path: Path) -> None:
    with collector(tmp_path) as receiver:
        with EmbeddedNode(tmp_path / "node", env=settings(receiver.url)) as node, node.client() as client:
            caller = context()
            with client_in(node, caller) as traced_client:
                job = traced_client.shell("sleep 60", retry=Retry(max_attempts=2, backoff="none")).job.id
            until(lambda: client.get(job).job.state is JobState.RUNNING)
            until(lambda: any(span.name == "queue" for span in receiver.spans()))
            node.kill()
            node.start()
            until(lambda: client.get(job).job.attempt == 2 and client.get(job).job.state is JobState.RUNNING)
            client.cancel(job)
            spans = receiver.of(caller.trace_id, [job])
        first, second = spans["attempt"]
        lost = f"worker {first.attributes['jobs.worker']} was lost"
        assert (first.error, second.error) == (lost, "cancelled while it ran")
        assert {span.parent for span in (*spans["attempt"], *spans["queue"])} == {one(spans, "job shell").id}


def test_a_node_says_which_file_it_cannot_use(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate\n")
    env = settings("https://[::1]:1", JOBS_TRACING__CA_FILE=str(tmp_path / "ca.pem"))
    with pytest.raises(NodeFailed, match=r"cannot start: tracing.ca_file: .*ca.pem cannot be used"):
        EmbeddedNode(tmp_path / "node", env=env).start()


@pytest.mark.parametrize("text", ["no header\n", "name : value\n", ": value\n", "a: b\x00\n", "Grüße: a\n"])
def test_a_file_of_headers_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "headers").write_text(text)
    with pytest.raises(TracingError, match=r"^tracing.headers_file: .*headers"):
        read_headers(tmp_path / "headers")


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://localhost:4318", "http://localhost:4318/v1/traces"),
        ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
        ("https://otlp.example.org/custom", "https://otlp.example.org/custom"),
    ],
)
def test_an_endpoint_without_a_path_means_the_usual_one(given: str, used: str) -> None:
    assert traces_url(given) == used
