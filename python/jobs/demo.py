"""`make demo`: the main job from submission to result, with a queue, failures, and a node that is killed."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jobs.cli.jobs import print_result
from jobs.cli.output import print_table
from jobs.client import Client
from jobs.errors import JobsError
from jobs.protocol.model import AddFrom, BlobAdd, JobState, JobView, Reason, Requires
from jobs.testing import EmbeddedNode

SLOTS: Final = 2
QUEUED: Final = 6
TEXT: Final = "the quick brown fox\njumps over the lazy dog\n"
SLEEPER: Final = "for i in 1 2 3; do echo step $i; sleep 0.2; done"


class DemoFailed(Exception):
    """Something is not as this demonstration promises."""


def main() -> int:
    """Run everything; 0 when every expectation held."""
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="jobs-demo-") as directory:
            demonstrate(Path(directory))
    except (DemoFailed, JobsError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    print(f"\nEverything was as promised, in {time.monotonic() - started:.1f} s.")
    return 0


def demonstrate(directory: Path) -> None:
    types = ("shell", "sql", "blob", "maintenance", "replication")
    node = EmbeddedNode(directory, types=types, env={"JOBS_WORKERS__SHELL__SLOTS": str(SLOTS)})
    title("1. A node with its workers, in one directory, without database or broker")
    with node, node.client() as client:
        show_workers(client)
        title("2. echo hello: submitted, stored, scheduled, run isolated")
        hello = client.shell(["echo", "hello"]).job.id
        result = client.result(hello, timeout_s=10)
        print_result(result)
        expect(result.stdout.text == "hello\n" and result.execution is not None, "echo hello gave hello")
        title("3. A job that fails keeps its reason, its code and its error output")
        failing = client.shell("echo 'no such luck' >&2; exit 3").job.id
        failed = client.result(failing, timeout_s=10)
        print_result(failed)
        expect(failed.reason is Reason.EXIT_CODE and failed.stderr.text == "no such luck\n", "the failure was kept")
        title(f"4. {QUEUED} jobs for {SLOTS} slots, then one that needs the whole worker: the rest waits in the queue")
        (worker,) = (worker for worker in client.workers() if worker.type == "shell")
        share, whole = Requires(cpu_milli=worker.cpu_milli // SLOTS), Requires(cpu_milli=worker.cpu_milli)
        wanted = [share] * QUEUED + [whole]
        many = [client.shell(SLEEPER, labels={"demo": "queue"}, requires=requires).job.id for requires in wanted]
        most_waiting = follow(client, many)
        expect(most_waiting > QUEUED - SLOTS, "jobs waited while all slots were busy")
        last_small = max(client.get(job).job.finished_ms or 0 for job in many[:-1])
        expect(
            (client.get(many[-1]).job.started_ms or 0) >= last_small, "the large one began when it had all for itself"
        )
        title("5. Output, live, while the job runs")
        talker = client.shell(SLEEPER).job.id
        told = show_logs(client, talker)
        title("6. Counting the words of a file that is given as input")
        counter = client.shell(["wc", "-w", "text.txt"], files={"text.txt": TEXT}).job.id
        counted = client.result(counter, timeout_s=10)
        print(f"   {counted.stdout.text}", end="")
        expect(counted.stdout.text == f"{len(TEXT.split())} text.txt\n", "wc counted the words")
        title("7. A query over what the store holds of these jobs")
        found = client.sql(
            "SELECT state, count(*) AS jobs FROM jobs WHERE labels['demo'] = $1 GROUP BY state", parameters=["queue"]
        )
        print(f"   {found.rows()}, read at revision {found.info.revision}")
        expect(found.rows() == [{"state": "completed", "jobs": len(many)}], "the query counted the jobs")
        title("8. A blob: content by its hash, added by a job, verified, kept by a tag")
        added = client.blobs.perform(BlobAdd(source=AddFrom(job=talker), tag="demo/steps"))
        assert added.hash is not None
        print(f"   {added.hash}, {added.bytes} bytes on {', '.join(peer.node for peer in added.peers)}")
        expect(client.blobs.get(added.hash) == told, "the blob is what the job wrote")
        expect(client.blobs.verify(added.hash).damaged == 0, "it is sound where it is")
        title("9. A range of keys in step with another, compared by digests")
        for step in told.decode().split():
            client.kv.put(f"/data/demo/{step}", step)
        copied = client.replication.sync("demo", prefix="/data/demo/", target_prefix="/data/copy/")
        print(f"   {copied.rows} keys, {copied.bytes} bytes, up to revision {copied.source_revision}")
        compared = client.replication.verify(prefix="/data/demo/", target_prefix="/data/copy/")
        expect(compared.differences == [], "both sides are equal")
        title("10. The node examined: checksums of its log, store and blobs, and how it is")
        verified = client.maintenance.verify()
        examined = client.maintenance.health()
        print_table(
            ("   CHECK", "STATUS", "VALUE"), ((f"   {one.check}", one.status, one.value) for one in examined.findings)
        )
        expect(verified.status == "ok", "all checksums are right")
        title("11. SIGKILL of the node in the middle of a job")
        victim = client.shell(["sleep", "60"]).job.id
        wait_for(client, victim, JobState.RUNNING)
        before = {job.id: job.state for job in client.list()}
        node.kill()
        print("   killed. Started again on the same directory:")
        node.start()
        after = {job.id: job for job in client.list()}
        show_jobs(list(after.values()))
        expect(set(before) == set(after), "no job was lost")
        for job, before_it in ((hello, result), (failing, failed), (counter, counted)):
            again = client.result(job)
            print(f"   {job}: {again.state}, stdout {again.stdout.text!r}, stderr {again.stderr.text!r}")
            expect(again == before_it, "the result is the same as before, with all that was measured")
        expect(show_logs(client, talker) == told, "the output is all there")
        expect(client.blobs.get(added.hash) == told, "the blob is there")
        lost = client.wait(victim, timeout_s=20)
        print(f"   {victim}, the interrupted one: {lost.state}, {lost.reason}")
        expect(lost.reason is Reason.WORKER_LOST, "the job whose worker was killed says so")


def follow(client: Client, jobs: Sequence[str]) -> int:
    """Show the states of jobs whenever one changes, until all are final; return the most that waited at once."""
    states: dict[str, JobState] = {}
    most = 0
    for event in client.watch(after_revision=0, labels={"demo": "queue"}):
        states[event.job.id] = event.job.state
        counts = [sum(state is wanted for state in states.values()) for wanted in JobState]
        busy = counts[1] == SLOTS
        most = max(most, counts[0] if busy else 0)
        print("   " + "  ".join(f"{count} {state}" for count, state in zip(counts, JobState, strict=True)))
        if len(states) == len(jobs) and all(state.is_final for state in states.values()):
            expect(all(state is JobState.COMPLETED for state in states.values()), "all of them completed")
            return most
    raise DemoFailed("the watch ended")


def wait_for(client: Client, job: str, state: JobState) -> None:
    """Return when the job is in a state; every change since its submission is seen, however quick."""
    for event in client.watch(job, after_revision=0):
        if event.job.state is state:
            return


def show_logs(client: Client, job: str) -> bytes:
    """Show a job's output as it comes, until its end; return it."""
    shown = b""
    for event in client.logs(job, follow=True):
        shown += bytes(event.data)
        print(f"   {event.stream}: {bytes(event.data).decode().rstrip()}", flush=True)
    return shown


def show_workers(client: Client) -> None:
    print_table(
        ("   WORKER", "TYPE", "SLOTS", "SANDBOX"),
        ((f"   {worker.id}", worker.type, worker.slots, worker.sandbox) for worker in client.workers()),
    )


def show_jobs(jobs: Sequence[JobView]) -> None:
    rows = ((f"   {job.id}", job.state, job.reason, job.exit_code) for job in jobs)
    print_table(("   JOB", "STATE", "REASON", "EXIT CODE"), rows)


def title(text: str) -> None:
    print(f"\n{text}", flush=True)


def expect(held: bool, what: str) -> None:
    if not held:
        raise DemoFailed(f"expected that {what}")
    print(f"   ok: {what}")


if __name__ == "__main__":
    sys.exit(main())
