"""The transport on the event loop: endpoints in this process, and peers in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from jobs._native import Blake3, Endpoint, LimitError, NativeError
from jobs.cluster.peers import Peers
from jobs.net import Declined, Net, RequestFailed, Stream, StreamBroken
from jobs.transfer import TransferFailed, read_offer, send_file
from tests.support.loop import on_loop
from tests.support.netpeer import NetProcess, net_process

PATIENCE_S = 60
# Losses are noticed soon, yet not for the pauses of a busy machine.
QUICK = {"idle_ms": 2_000, "backoff_cap_ms": 200, "handshake_ms": 1_000}


class Node:
    """An endpoint in this process, which keeps what it is told."""

    def __init__(self, folder: Path, name: str, cluster: str, limits: dict[str, int]) -> None:
        key = str(folder / f"{name}.key")
        self.endpoint = Endpoint(key, bind=["127.0.0.1:0"], cluster=cluster, node=name, limits=limits)
        self.net = Net(self.endpoint, self)
        self.id = self.endpoint.id
        self.addresses = self.endpoint.addresses
        self.told: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self.messages: list[bytes] = []
        self.streams: asyncio.Queue[tuple[bytes, Stream, asyncio.Event]] = asyncio.Queue()
        self.running = 0

    def know(self, *others: Node | NetProcess) -> None:
        self.net.set_peers({other.id: other.addresses for other in others})

    async def wait(self, *wanted: Any) -> tuple[Any, ...]:
        """Return the next news that begins like this."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                news = await self.told.get()
                if news[: len(wanted)] == wanted:
                    return news

    def on_peer_up(self, peer: str, name: str) -> None:
        self.told.put_nowait(("up", name))

    def on_peer_down(self, peer: str, reason: str) -> None:
        self.told.put_nowait(("down", reason))

    def on_refused(self, who: str, kind: str, detail: str, left_out: int) -> None:
        self.told.put_nowait(("refused", kind, detail))

    def on_message(self, peer: str, message: bytes) -> None:
        self.messages.append(message)

    async def on_request(self, peer: str, body: bytes) -> bytes:
        if body == b"decline":
            raise Declined("not me")
        if body == b"fail":
            raise ZeroDivisionError
        if body == b"much":
            return bytes(20 << 20)
        if body == b"hang":
            self.running += 1
            self.told.put_nowait(("hanging",))
            try:
                await asyncio.Event().wait()
            finally:
                self.running -= 1
                self.told.put_nowait(("unhung",))
        return body[::-1]

    async def on_stream(self, peer: str, header: bytes, stream: Stream) -> None:
        """Hand it to the test, which says when it is done with it."""
        done = asyncio.Event()
        self.streams.put_nowait((header, stream, done))
        await done.wait()

    async def stream_from(self, other: Node, header: bytes) -> tuple[Stream, Stream]:
        """Return both ends of a stream that the other node opens to this one."""
        there = await other.net.open_stream(self.id, header)
        got, here, _ = await asyncio.wait_for(self.streams.get(), PATIENCE_S)
        assert (got, here.peer) == (header, other.id)
        return there, here


@contextlib.asynccontextmanager
async def nodes(folder: Path, *names: str, cluster: str = "test", **limits: int) -> AsyncIterator[list[Node]]:
    """Nodes that know each other, when all of them are up."""
    made = [Node(folder, name, cluster, limits) for name in names]
    try:
        for node in made:
            node.know(*(other for other in made if other is not node))
        for node in made:
            for _ in range(len(made) - 1):
                await node.wait("up")
        yield made
    finally:
        for node in made:
            await node.net.close()


@on_loop
async def test_ten_thousand_requests_at_once_are_answered_each_with_its_own(tmp_path: Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (one, two):
        bodies = [b"%d" % number for number in range(10_000)]
        answers = await asyncio.gather(*(one.net.request(two.id, body, PATIENCE_S) for body in bodies))
        assert answers == [body[::-1] for body in bodies]
        # The last answer is told a moment before its request is no longer counted.
        async with asyncio.timeout(PATIENCE_S):
            while one.endpoint.peers()[0][4] != 0:
                await asyncio.sleep(0.01)


@on_loop
async def test_requests_beyond_the_limit_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    async with nodes(tmp_path, "n1", "n2", max_pending_requests=10) as (one, two):
        hanging = [asyncio.ensure_future(one.net.request(two.id, b"hang", PATIENCE_S)) for _ in range(10)]
        for _ in hanging:
            await two.wait("hanging")
        with pytest.raises(RequestFailed) as failed:
            await one.net.request(two.id, b"one too many", PATIENCE_S)
        assert (failed.value.kind, failed.value.maybe_done) == ("limit", False)
        # Whoever gives up makes room, and the other side stops its work.
        for task in hanging:
            task.cancel()
        for _ in hanging:
            await two.wait("unhung")
        assert two.running == 0
        assert await one.net.request(two.id, b"abc", PATIENCE_S) == b"cba"


@on_loop
async def test_how_a_request_failed_and_whether_it_may_have_been_carried_out(tmp_path: Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (one, two):
        cases = [
            (b"decline", 10.0, "refused", False, "not me"),
            (b"fail", 10.0, "failed", True, "internal error"),
            (b"much", 10.0, "failed", True, "at most"),
            (b"hang", 0.2, "timeout", True, "deadline"),
            (bytes(20 << 20), 10.0, "limit", False, "at most"),
        ]
        for body, timeout_s, kind, maybe_done, words in cases:
            with pytest.raises(RequestFailed, match=words) as failed:
                await one.net.request(two.id, body, timeout_s)
            assert (failed.value.kind, failed.value.maybe_done) == (kind, maybe_done)
        with pytest.raises(RequestFailed) as failed:
            await one.net.request("0" * 64, b"", 1)
        assert (failed.value.kind, failed.value.maybe_done) == ("unreachable", False)


def net_threads() -> int:
    return sum("jobs-net" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir())


@on_loop
async def test_a_closed_endpoint_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (one, two):
        await one.net.request(two.id, b"warm", PATIENCE_S)
    before = set(os.listdir("/proc/self/fd"))
    async with nodes(tmp_path, "n1", "n2") as (one, two):
        waiting = asyncio.ensure_future(one.net.request(two.id, b"hang", PATIENCE_S))
        await two.wait("hanging")
        assert net_threads() > 0
        await one.net.close()
        await one.net.close()
        with pytest.raises(RequestFailed) as failed:
            await waiting
        assert (failed.value.kind, failed.value.maybe_done) == ("closed", True)
        with pytest.raises(NativeError, match="closed"):
            one.endpoint.fileno()
        # The other side is told at once.
        assert "shuts down" in (await two.wait("down"))[1]
    assert net_threads() == 0
    assert set(os.listdir("/proc/self/fd")) == before


@on_loop
async def test_the_key_file_is_its_owners_alone(tmp_path: Path) -> None:
    key = tmp_path / "node.key"

    def start() -> Endpoint:
        return Endpoint(str(key), bind=["127.0.0.1:0"], cluster="test", node="n1")

    first = start()
    first.close()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    again = start()
    again.close()
    assert again.id == first.id
    key.chmod(0o640)
    with pytest.raises(NativeError, match="others may use it"):
        start()


def test_what_cannot_be_is_refused_at_the_start(tmp_path: Path) -> None:
    def start(**changes: Any) -> None:
        options: dict[str, Any] = {"bind": ["127.0.0.1:0"], "cluster": "test", "node": "n1"} | changes
        Endpoint(str(tmp_path / "node.key"), **options).close()

    start()
    for changes, words in [
        ({"bind": []}, "address is needed"),
        ({"bind": ["localhost:1"]}, "IP:PORT"),
        ({"bind": ["192.0.2.1:0"]}, "cannot be started"),
        ({"cluster": "a b"}, "cluster id"),
        ({"node": ""}, "node name"),
        ({"limits": {"nonsense": 1}}, "none of this name"),
        ({"limits": {"inbox_bytes": 1}}, "too little"),
    ]:
        with pytest.raises(NativeError, match=words):
            start(**changes)


@on_loop
async def test_who_is_refused_is_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def logged(words: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while words not in caplog.text:
                await asyncio.sleep(0.01)

    # A member's endpoint with its real owner, and a node of another cluster
    one = Peers(Endpoint(str(tmp_path / "n1.key"), bind=["127.0.0.1:0"], cluster="test", node="n1"), tmp_path)
    async with nodes(tmp_path, "n2", cluster="other") as (two,):
        two.net.set_peers({one.id: one.addresses})
        assert "not on the allowlist" in (await two.wait("refused", "by_peer"))[2]
        await logged(f"refused {two.id} at 127.0.0.1: stranger: this endpoint id is not on the allowlist")
        # Known by its key, it is of the wrong cluster all the same
        one.allow({two.id: []})
        await logged('cluster: cluster "other" is not this node\'s, which is "test"')
        counters = one.counters()
        assert counters["refused_stranger"] > 0
        assert counters["refused_cluster"] > 0
        assert counters["accepted"] == 0
    await one.close()


@on_loop
async def test_a_stopped_peer_costs_its_own_messages_and_nothing_else(tmp_path: Path) -> None:
    # Given a peer whose process is stopped
    async with (
        nodes(tmp_path, "n1", "n2", **QUICK) as (one, two),
        net_process(tmp_path / "p", "n3", limits=QUICK) as peer,
    ):
        one.know(two, peer)
        peer.know(one)
        await one.wait("up", "n3")
        await peer.wait("up")
        waiting = asyncio.ensure_future(one.net.request(peer.id, b"hang", PATIENCE_S))
        await peer.wait("hanging")
        peer.signal(signal.SIGSTOP)
        # When more is sent to it than there is room for
        message = bytes(64 << 10)
        while one.net.send(peer.id, message):
            await asyncio.sleep(0)
        assert one.endpoint.counters()["messages_dropped"] > 0
        # Then others are served as before
        assert await one.net.request(two.id, b"abc", 10) == b"cba"
        assert one.net.send(two.id, b"to two")
        # And it is noticed, its requests fail, and it is back when it goes on
        await one.wait("down")
        with pytest.raises(RequestFailed) as failed:
            await waiting
        assert (failed.value.kind, failed.value.maybe_done) == ("closed", True)
        peer.signal(signal.SIGCONT)
        # Only this side has lost its connection for sure: the peer's own may have been up for a little longer.
        await one.wait("up", "n3")
        assert one.net.send(peer.id, b"tell again")
        assert (await peer.wait("message"))["message"] == "again"
        assert await one.net.request(peer.id, b"abc", 10) == b"abc"


@on_loop
async def test_a_killed_peer_is_reached_in_its_next_life(tmp_path: Path) -> None:
    async with nodes(tmp_path, "n1", idle_ms=14_000) as (one,):
        first = await NetProcess.start(tmp_path / "p", "n2")
        one.know(first)
        first.know(one)
        await one.wait("up")
        await first.kill()
        # The next life says so itself: long before the connection to the former one is given up for silence.
        second = await NetProcess.start(tmp_path / "p", "n2", bind=first.addresses[0])
        try:
            assert second.id == first.id
            second.know(one)
            async with asyncio.timeout(10):
                await one.wait("down")
                await one.wait("up")
            assert one.net.send(second.id, b"tell hello")
            await second.wait("message", message="hello")
            assert await one.net.request(second.id, b"abc", 10) == b"abc"
        finally:
            await second.kill()


def write_random(path: Path, size_bytes: int) -> bytes:
    """Write a file that cannot be guessed, and return its BLAKE3."""
    source, digest = random.Random(size_bytes), Blake3()
    with path.open("wb") as file:
        for _ in range(size_bytes >> 20):
            block = source.randbytes(1 << 20)
            digest.update(block)
            file.write(block)
    return digest.digest()


def digest_of(path: Path) -> bytes:
    digest = Blake3()
    with path.open("rb") as file:
        while block := file.read(4 << 20):
            digest.update(block)
    return digest.digest()


@pytest.mark.parametrize("size_mib", [128, pytest.param(1024, marks=pytest.mark.slow)])
@on_loop
async def test_a_file_of_any_size_is_sent_in_flat_memory_beside_other_traffic(tmp_path: Path, size_mib: int) -> None:
    async with net_process(tmp_path / "a", "n1") as sender, net_process(tmp_path / "b", "n2") as receiver:
        sender.know(receiver)
        receiver.know(sender)
        await sender.wait("up")
        await receiver.wait("up")
        digest = write_random(tmp_path / "snapshot", size_mib << 20)
        sender.order(to=receiver.id, file=str(tmp_path / "snapshot"))
        await receiver.wait("offered")
        # Messages pass it by.
        for number in range(20):
            sender.order(to=receiver.id, send=f"tell {number}")
            await receiver.wait("message", message=str(number))
        received, sent = await receiver.wait("received"), await sender.wait("sent")
        assert digest_of(tmp_path / "b" / "snapshot") == digest
        assert received["peak_bytes"] < 110 << 20
        assert sent["peak_bytes"] < 110 << 20
        assert [path.name for path in (tmp_path / "b").iterdir() if path.suffix == ".part"] == []


@pytest.mark.parametrize("killed", ["receiver", "sender"])
@on_loop
async def test_a_file_goes_on_where_a_kill_left_it(tmp_path: Path, killed: str) -> None:
    size_bytes = 256 << 20
    digest = write_random(tmp_path / "snapshot", size_bytes)
    async with contextlib.AsyncExitStack() as stack:
        sides = {
            "sender": await stack.enter_async_context(net_process(tmp_path / "a", "n1", limits=QUICK)),
            "receiver": await stack.enter_async_context(net_process(tmp_path / "b", "n2", limits=QUICK)),
        }

        async def send() -> None:
            sides["sender"].know(sides["receiver"])
            sides["receiver"].know(sides["sender"])
            await sides["sender"].wait("up")
            sides["sender"].order(to=sides["receiver"].id, file=str(tmp_path / "snapshot"))
            await sides["receiver"].wait("offered")

        def part_bytes() -> int:
            return sum(path.stat().st_size for path in (tmp_path / "b").glob("*.part"))

        # Given a kill half-way
        await send()
        async with asyncio.timeout(PATIENCE_S):
            while part_bytes() < size_bytes // 8:
                await asyncio.sleep(0.001)
        await sides[killed].kill()
        if killed == "sender":
            await sides["receiver"].wait("broken")
        else:
            await sides["sender"].wait("broken")
        kept = part_bytes()
        assert 0 < kept < size_bytes
        # When it is started again and the file is sent again
        folder, name = sides[killed].folder, {"sender": "n1", "receiver": "n2"}[killed]
        again = net_process(folder, name, bind=sides[killed].addresses[0], limits=QUICK)
        sides[killed] = await stack.enter_async_context(again)
        for side in sides.values():
            side.forget()
        before = (await sides["receiver"].counters())["stream_bytes_received"]
        await send()
        await sides["receiver"].wait("received")
        await sides["sender"].wait("sent")
        # Then only the rest is sent, and the whole is right
        again_bytes = (await sides["receiver"].counters())["stream_bytes_received"] - before
        assert size_bytes - kept < again_bytes < size_bytes - kept + 4_096
        assert digest_of(tmp_path / "b" / "snapshot") == digest


@on_loop
async def test_a_part_that_was_damaged_is_not_taken_for_the_file(tmp_path: Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (one, two):
        digest = write_random(tmp_path / "snapshot", 4 << 20)
        part = tmp_path / f"got.{digest.hex()[:16]}.part"
        part.write_bytes(bytes(1 << 20))
        (tmp_path / "got.0011223344556677.part").write_bytes(b"of another body")
        for attempt in range(2):
            there, here = await two.stream_from(one, b"snapshot 7")
            sending = asyncio.ensure_future(send_file(there, tmp_path / "snapshot", "snapshot"))
            offer = await read_offer(here)
            assert (offer.name, offer.size_bytes, offer.digest) == ("snapshot", 4 << 20, digest)
            if attempt == 0:
                with pytest.raises(TransferFailed, match="not what was offered"):
                    await offer.receive(tmp_path / "got")
                with pytest.raises(TransferFailed, match="refused: what came is not"):
                    await sending
                assert list(tmp_path.glob("got*")) == []
            else:
                await offer.receive(tmp_path / "got")
                await sending
        assert digest_of(tmp_path / "got") == digest


@on_loop
async def test_files_are_declined_and_given_up_with_words(tmp_path: Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (one, two):
        write_random(tmp_path / "snapshot", 8 << 20)
        there, here = await two.stream_from(one, b"")
        sending = asyncio.ensure_future(send_file(there, tmp_path / "snapshot", "snapshot"))
        await (await read_offer(here)).decline("no need")
        with pytest.raises(TransferFailed, match="refused: no need"):
            await sending
        # The sender gives up half-way: the receiver's wait ends.
        there, here = await two.stream_from(one, b"")
        sending = asyncio.ensure_future(send_file(there, tmp_path / "snapshot", "snapshot"))
        offer = await read_offer(here)
        sending.cancel()
        with pytest.raises(TransferFailed, match="reset"):
            await asyncio.wait_for(offer.receive(tmp_path / "got"), PATIENCE_S)
        # The receiver gives up: the sender's wait ends.
        there, here = await two.stream_from(one, b"")
        sending = asyncio.ensure_future(send_file(there, tmp_path / "snapshot", "snapshot"))
        receiving = asyncio.ensure_future((await read_offer(here)).receive(tmp_path / "got"))
        await asyncio.sleep(0)  # it has begun
        receiving.cancel()
        with pytest.raises(TransferFailed, match="reset"):
            await sending
        # A folder that is not there, as a disk that fails.
        there, here = await two.stream_from(one, b"")
        sending = asyncio.ensure_future(send_file(there, tmp_path / "snapshot", "snapshot"))
        with pytest.raises(FileNotFoundError):
            await (await read_offer(here)).receive(tmp_path / "nowhere" / "got")
        with pytest.raises(TransferFailed, match="refused: the receiver's disk: No such file"):
            await sending
        # An empty file is a file.
        (tmp_path / "empty").touch()
        there, here = await two.stream_from(one, b"")
        sending = asyncio.ensure_future(send_file(there, tmp_path / "empty", "empty"))
        await (await read_offer(here)).receive(tmp_path / "got")
        await sending
        assert (tmp_path / "got").read_bytes() == b""


@on_loop
async def test_what_is_no_offer_is_refused_and_another_version_by_its_number(tmp_path: Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (one, two):
        for note, words in [
            (b"\x92\x09\xa3new", "version 9 of a transfer is unknown here; this node speaks 1"),
            (b"\x92\x01\x02", "a note that is none"),
            (b"\xc1", "a note that is none"),
        ]:
            there, here = await two.stream_from(one, b"")
            await there.write(len(note).to_bytes(4, "little") + note)
            await there.finish()
            with pytest.raises(TransferFailed, match=words):
                await read_offer(here)
        there, here = await two.stream_from(one, b"")
        await there.write(b"\xff\xff\xff\xff")
        with pytest.raises(TransferFailed, match="4294967295 bytes, at most"):
            await read_offer(here)


@on_loop
async def test_a_stream_carries_whatever_is_written_both_ways(tmp_path: Path) -> None:
    source = random.Random(7)
    async with nodes(tmp_path, "n1", "n2") as (one, two):
        there, here = await two.stream_from(one, b"both")

        async def write(stream: Stream, data: bytes) -> None:
            start = 0
            while start < len(data):
                length = source.choice([1, 100, 5_000, 300_000])
                await stream.write(data[start : start + length])
                start += length
            await stream.finish()

        async def read(stream: Stream) -> bytes:
            parts = []
            while part := await stream.read(source.choice([1, 1_000, 1 << 20])):
                parts.append(part)
            return b"".join(parts)

        sent = [source.randbytes(3 << 20) for _ in range(2)]
        _, _, at_one, at_two = await asyncio.gather(
            write(there, sent[0]), write(here, sent[1]), read(there), read(here)
        )
        assert (at_two, at_one) == (sent[0], sent[1])
        await asyncio.wait_for(asyncio.gather(there.closed, here.closed), PATIENCE_S)
        # Over: nothing is sent, and the end stays the end.
        assert await here.read() == b""
        with pytest.raises(ValueError, match="finished"):
            await there.write(b"late")
        there.reset()


@on_loop
async def test_a_slow_reader_holds_up_its_own_writer_only(tmp_path: Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (one, two):
        slow_there, slow_here = await two.stream_from(one, b"slow")
        body = random.Random(1).randbytes(8 << 20)
        writing = asyncio.ensure_future(slow_there.write(body))
        # While it does not read, a hundred others come and go, as do requests and messages.
        for number in range(100):
            there, here = await two.stream_from(one, b"%d" % number)
            await there.write(body[: 300 << 10])
            await there.finish()
            assert b"".join([part async for part in parts_of(here)]) == body[: 300 << 10]
            await here.finish()
            assert await one.net.request(two.id, b"abc", PATIENCE_S) == b"cba"
            assert one.net.send(two.id, b"message")
            await asyncio.wait_for(there.closed, PATIENCE_S)
        assert not writing.done()
        assert await slow_here.read_exactly(len(body)) == body
        await writing
        await slow_there.finish()
        with pytest.raises(EOFError):
            await slow_here.read_exactly(1)


async def parts_of(stream: Stream) -> AsyncIterator[bytes]:
    while part := await stream.read():
        yield part


@on_loop
async def test_a_reset_is_told_to_both_sides_and_to_whoever_waits(tmp_path: Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (one, two):
        for opener_resets in (True, False):
            there, here = await two.stream_from(one, b"reset")
            await there.write(b"before")
            assert await here.read() == b"before"
            mine, other = (there, here) if opener_resets else (here, there)
            waiting = [asyncio.ensure_future(mine.read()), asyncio.ensure_future(other.read())]
            writing = asyncio.ensure_future(other.write(bytes(8 << 20)))
            await asyncio.sleep(0)
            mine.reset("no longer wanted")
            with pytest.raises(StreamBroken, match="no longer wanted"):
                await waiting[0]
            for task in (waiting[1], writing):
                with pytest.raises(StreamBroken) as broken:
                    await asyncio.wait_for(task, PATIENCE_S)
                assert broken.value.kind == "reset"
            with pytest.raises(StreamBroken):
                await other.closed
        # Whoever serves a stream and fails resets it.
        there = await one.net.open_stream(two.id, b"fails")
        _, here, done = await asyncio.wait_for(two.streams.get(), PATIENCE_S)
        await here.finish()
        done.set()
        assert await there.read() == b""
        await there.finish()
        await asyncio.wait_for(there.closed, PATIENCE_S)


@on_loop
async def test_streams_break_with_their_peers_process_and_what_came_before_is_read(tmp_path: Path) -> None:
    async with nodes(tmp_path, "n1", **QUICK) as (one,), net_process(tmp_path / "p", "n2", limits=QUICK) as peer:
        one.know(peer)
        peer.know(one)
        await one.wait("up")
        echo = await one.net.open_stream(peer.id, b"echo")
        await echo.write(b"ping")
        assert await echo.read_exactly(4) == b"ping"
        waits = await one.net.open_stream(peer.id, b"waits")
        await peer.wait("stream", stream="waits")
        # Either end dies in the middle
        await peer.kill()
        for stream in (echo, waits):
            with pytest.raises(StreamBroken) as broken:
                await stream.read()
            assert broken.value.kind == "closed"
        with pytest.raises(StreamBroken) as broken:
            await (await one.net.open_stream(peer.id, b"echo")).read()
        assert broken.value.kind == "unreachable"
        # And with the place on the list
        one.net.set_peers({})
        with pytest.raises(StreamBroken, match="unreachable"):
            await one.net.open_stream(peer.id, b"echo")


@on_loop
async def test_streams_of_a_node_that_closes_are_over_on_both_sides(tmp_path: Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (one, two):
        there, here = await two.stream_from(one, b"closes")
        reading = asyncio.ensure_future(there.read())
        await asyncio.sleep(0)
        await one.net.close()
        with pytest.raises(StreamBroken, match="this node closes"):
            await reading
        with pytest.raises(StreamBroken, match="shuts down"):
            await asyncio.wait_for(here.read(), PATIENCE_S)


@on_loop
async def test_streams_are_bounded_in_number(tmp_path: Path) -> None:
    async with nodes(tmp_path, "n1", "n2", max_streams=3) as (one, two):
        pairs = [await two.stream_from(one, b"") for _ in range(3)]
        with pytest.raises(StreamBroken, match="limit: streams: at most 3"):
            await one.net.open_stream(two.id, b"")
        with pytest.raises(StreamBroken, match="limit"):
            await two.net.open_stream(one.id, b"")
        pairs[0][0].reset()
        with pytest.raises(StreamBroken):
            await pairs[0][1].read()
        await two.stream_from(one, b"there is room again")


@on_loop
async def test_an_urgent_message_goes_before_all_that_waits_to_be_sent(tmp_path: Path) -> None:
    large, count = 32 << 20, 4
    limits = {"max_message_bytes": large, "outbox_bytes": count * large, "inbox_bytes": (count + 1) * large}
    async with nodes(tmp_path, "n1", "n2", **limits) as (one, two):
        for _ in range(count):
            assert one.net.send(two.id, bytes(large))
        assert one.net.send_urgent(two.id, b"urgent")
        async with asyncio.timeout(PATIENCE_S):
            while len(two.messages) <= count:
                await asyncio.sleep(0.005)
        assert two.messages.index(b"urgent") < count
        # and what is sent in order stays in order, whatever goes before it
        two.messages.clear()
        for number in range(100):
            assert one.net.send(two.id, b"%d" % number)
            one.net.send_urgent(two.id, b"urgent")
        async with asyncio.timeout(PATIENCE_S):
            while b"99" not in two.messages:
                await asyncio.sleep(0.005)
        assert [message for message in two.messages if message != b"urgent"] == [b"%d" % n for n in range(100)]
        # it is short, and nothing for strangers
        with pytest.raises(LimitError, match="at most 1024"):
            one.net.send_urgent(two.id, bytes(1025))
        assert one.net.send_urgent("0" * 64, b"x") is False
