"""Both clients when answers get lost, connections end and nodes die: nothing twice, nothing left out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from jobs import AsyncClient, Client, ConnectionFailed, JobState, Reason, shell_job
from jobs._native import Store
from jobs.cli import exits
from jobs.cli.main import main
from jobs.protocol.model import Content, KvCompare, KvOp, KvPut, Schedule
from jobs.testing import EmbeddedNode


class Blocking:
    """The asynchronous client, its loop in a thread, with the synchronous one's face: one scenario tests both."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def _result(self, work: Any) -> Any:
        async def awaited() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._target, name)
        if name in ("kv", "schedules", "queues"):
            return Blocking(member, self._loop)

        def call(*arguments: Any, **options: Any) -> Any:
            done = member(*arguments, **options)
            if isinstance(done, AsyncIterator):
                return self._iterate(done)
            return self._result(done)

        return call

    def _iterate(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        while True:
            try:
                yield self._result(anext(items))
            except StopAsyncIteration:
                return


class Connect(Protocol):
    def __call__(self, path: Path, *, patience_s: float = 30) -> Any: ...


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Make clients of either kind, with the same face."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with contextlib.ExitStack() as stack:
        stack.callback(loop.close)
        stack.callback(thread.join)
        stack.callback(lambda: loop.call_soon_threadsafe(loop.stop))

        def make(path: Path, *, patience_s: float = 30) -> Any:
            if request.param == "sync":
                return stack.enter_context(Client(str(path), patience_s=patience_s))
            client = Blocking(AsyncClient(str(path), patience_s=patience_s), loop)
            stack.callback(client.close)
            return client

        yield make


class LossyProxy:
    """Stands between clients and a node; loses the answers to requests with a certain start, the first `losses`."""

    def __init__(
        self, path: Path, node: Path, *, start: bytes, losses: int, on_loss: Callable[[], None] = lambda: None
    ) -> None:
        self.lost = 0
        self._on_loss = on_loss
        self._node, self._start, self._losses = node, start, losses
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as node, contextlib.suppress(OSError):
            node.connect(str(self._node))
            while request := client.recv(1 << 20):
                node.sendall(request)
                answer = node.recv(1 << 20)
                if request.startswith(self._start) and self.lost < self._losses:
                    self.lost += 1
                    self._on_loss()
                    return
                client.sendall(answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def proxy(tmp_path: Path, shared_node: EmbeddedNode) -> Iterator[Callable[[bytes], tuple[Path, LossyProxy]]]:
    with contextlib.ExitStack() as stack:

        def make(start: bytes) -> tuple[Path, LossyProxy]:
            path = tmp_path / "proxy.sock"
            made = LossyProxy(path, shared_node.socket, start=start, losses=2)
            stack.callback(made.close)
            return path, made

        yield make


def test_a_submission_whose_answers_are_lost_makes_one_job(
    connect: Connect, proxy: Any, request: pytest.FixtureRequest
) -> None:
    path, lossy = proxy(b"POST /v1/jobs ")
    client, mark = connect(path), request.node.name.replace("[", ".").replace("]", "")
    submitted = client.submit(shell_job(["true"], labels={"test": mark}))
    assert lossy.lost == 2
    assert not submitted.created, "the job was there from the first time on"
    assert [job.id for job in client.list(labels={"test": mark})] == [submitted.job.id]


def test_a_write_whose_answers_are_lost_is_done_once(connect: Connect, proxy: Any) -> None:
    path, lossy = proxy(b"POST /v1/kv:put")
    client = connect(path)
    key = f"/data/lost/{path.parent.name}"
    done = client.kv.put(key, "1")
    assert lossy.lost == 2
    assert client.kv.get(key).version == 1
    assert client.kv.get(key).mod_revision == done.revision


def test_what_was_done_before_the_node_was_killed_is_done_once(connect: Connect, tmp_path: Path) -> None:
    # Given a node that is killed each time it has done what the first requests of each kind ask, before it says so
    starts = [b"POST /v1/kv:put", b"POST /v1/kv:txn", b"POST /v1/leases", b"POST /v1/schedules/s/t", b"POST /v1/queues"]
    with EmbeddedNode(tmp_path / "node") as node, contextlib.ExitStack() as stack:
        with node.client() as direct:
            direct.schedules.set("s", Schedule(job=shell_job(["true"]), every_s=86_400))
        restarts: list[threading.Thread] = []

        def kill() -> None:
            node.kill()
            restarts.append(threading.Thread(target=node.start))
            restarts[-1].start()

        def client(number: int) -> Any:
            path = tmp_path / f"proxy-{number}.sock"
            proxy = LossyProxy(path, node.socket, start=starts[number], losses=1, on_loss=kill)
            stack.callback(proxy.close)
            return connect(path, patience_s=60)

        # When a client asks each of them
        put = client(0).kv.put("/data/puts", "1")
        restarts[0].join()
        key = KvCompare(key="/data/txn", target="version", number=0)
        write = KvOp(put=KvPut(key="/data/txn", value=Content(text="1")))
        txn = client(1).kv.txn(compare=[key], then=[write])
        restarts[1].join()
        lease = client(2).kv.grant(600)
        restarts[2].join()
        triggered = client(3).schedules.trigger("s")
        restarts[3].join()
        client(4).queues.pause("q")
        restarts[4].join()
        # Then it was done, once, and told
        assert len(restarts) == len(starts)
        with node.client() as direct:
            assert direct.kv.get("/data/puts").mod_revision == put.revision
            assert direct.kv.get("/data/puts").version == 1
            assert txn.succeeded, "the repetition compared with what the first time had done"
            assert direct.kv.get("/data/txn").version == 1
            assert direct.kv.keepalive(lease.id).ttl_s == 600
            assert [found.id for found in direct.list(schedule="s")] == [triggered.job.id]
            entries = [entry.action for entry in direct.audit()]
            assert entries.count("queue.pause") == 1
        node.stop()
        store = Store(str(node.directory / "data" / "store"))
        assert [found for found in store.leases() if found[1] == 600_000] == [(lease.id, 600_000)]
        store.close()


def test_a_client_without_patience_tells_that_a_request_may_have_been_done(connect: Connect, proxy: Any) -> None:
    path, _ = proxy(b"POST /v1/kv:put")
    with pytest.raises(ConnectionFailed) as caught:
        connect(path, patience_s=0).kv.put("/data/lost/perhaps", "1")
    assert caught.value.sent


def test_a_read_whose_answers_are_lost_is_done_again(connect: Connect, proxy: Any) -> None:
    path, lossy = proxy(b"GET /v1/health")
    assert connect(path).health().status == "ok"
    assert lossy.lost == 2


def test_an_answer_that_is_not_http_is_a_lost_connection(connect: Connect, tmp_path: Path) -> None:
    path = tmp_path / "odd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            for _ in range(2):
                taken, _ = listener.accept()
                with taken:
                    taken.recv(1 << 16)
                    taken.sendall(b"220 smtp.example ESMTP\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        client = connect(path, patience_s=0)
        for _ in range(2):
            with pytest.raises(ConnectionFailed, match="lost"):
                client.health()
        thread.join()


def test_a_node_that_nobody_serves_is_reported_at_once(connect: Connect, tmp_path: Path) -> None:
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    with pytest.raises(ConnectionFailed, match="refused") as caught:
        connect(path, patience_s=3600).health()
    assert not caught.value.sent


def test_a_path_that_is_no_socket_is_called_so(connect: Connect, tmp_path: Path) -> None:
    """Not a node that has ended, as which the kernel refuses it, too: there is nothing to be started there."""
    with pytest.raises(ConnectionFailed, match="it is no socket"):
        connect(tmp_path, patience_s=0).health()


def test_the_health_of_a_node_that_hangs_is_told_in_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one is whose socket is the service manager's, and which does not start."""
    path = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        begun = time.monotonic()
        assert main(["--socket", str(path), "health", "--wait", "1s"]) == exits.UNAVAILABLE
        assert time.monotonic() - begun < 30, "a request may otherwise take a minute"
    told = capsys.readouterr().err
    assert "no answer in time" in told
    assert "systemctl status jobs-node" in told


def test_a_node_with_many_to_accept_is_waited_for(tmp_path: Path) -> None:
    # Given a node whose queue of connections is full
    path = tmp_path / "busy.sock"
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        # When a client connects, and the node accepts only then
        answers: list[str] = []
        client = stack.enter_context(Client(str(path)))
        asking = threading.Thread(target=lambda: answers.append(client.metrics()))
        asking.start()
        while True:
            accepted, _ = listener.accept()
            stack.enter_context(accepted)
            accepted.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                if accepted.recv(1 << 16).startswith(b"GET /metrics "):
                    break
        accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhere")
        # Then it is served
        asking.join(10)
        assert answers == ["here"]


def test_connections_that_ended_meanwhile_are_made_anew_for_writes_too(connect: Connect, tmp_path: Path) -> None:
    # Given a client that keeps a connection for the next request
    with EmbeddedNode(tmp_path / "node") as node:
        client = connect(node.socket, patience_s=0)
        client.kv.put("/data/a", "1")
        # When the node ends it, being started again
        node.restart()
        # Then the next write, which is sent once without patience, goes over another
        client.kv.put("/data/a", "2")
        assert client.kv.get("/data/a").version == 2


def test_output_and_changes_go_on_through_a_kill_and_nothing_comes_twice(connect: Connect, tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node") as node:
        client = connect(node.socket)
        # Given followers of a running job's output and of all changes
        job = client.submit(shell_job("echo before; sleep 600")).job
        output = client.logs(job.id, follow=True)
        assert bytes(next(output).data) == b"before\n"
        changes = client.watch(after_revision=0)
        seen = [next(changes), next(changes)]
        # When the node and the job die, and the node comes back
        node.kill()
        node.start()
        # Then the output ends with the job, and the changes go on where they were
        assert list(output) == []
        assert client.wait(job.id, 20).reason is Reason.WORKER_LOST
        later = client.submit(shell_job(["true"])).job
        while not (seen[-1].job.id == later.id and seen[-1].job.state.is_final):
            seen.append(next(changes))
        assert [change.job.state for change in seen] == [
            JobState.PENDING,
            JobState.RUNNING,
            JobState.FAILED,
            JobState.PENDING,
            JobState.RUNNING,
            JobState.COMPLETED,
        ]
        assert len({change.revision for change in seen}) == len(seen)


def test_pages_are_fetched_as_they_are_needed(connect: Connect, shared_node: EmbeddedNode) -> None:
    client = connect(shared_node.socket)
    wanted = [shell_job(["true"], labels={"pages": type(client).__name__}) for _ in range(5)]
    ids = [done.job.id for done in client.submit_many(wanted)]
    for size in (1, 2, 5, 6):
        found = client.list(labels={"pages": type(client).__name__}, newest_first=False, page_size=size)
        assert [job.id for job in found] == ids
