"""Any member answers any request: three of them over real logs and real QUIC."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs import AsyncClient, shell_job
from jobs.api import ApiConfig
from jobs.clock import wall_ms
from jobs.cluster import Asked
from jobs.errors import NotFinished, NotLeader
from jobs.forward import envelope
from jobs.forward.envelope import EnvelopeError, Request, decode, encode
from jobs.net import RequestFailed
from jobs.protocol.ids import uuid7
from tests.support.api import Raw, job, request
from tests.support.cluster import STEP_S, cluster, until
from tests.support.jobctl import jobctl
from tests.support.loop import on_loop

ABSENT = "01890000-0000-7000-8000-000000000000"


@on_loop
async def test_a_follower_answers_like_the_leader(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        follower, other = made.followers
        put = await follower.ask("POST", "/v1/kv:put", {"key": "/data/a", "value": {"text": "1"}})
        assert (put.status, put.json()["succeeded"]) == (200, True)
        for member in (made.leader, follower, other):
            got = await member.ask("GET", "/v1/kv?key=%2Fdata%2Fa")
            assert (got.status, got.json()["value"]["text"]) == (200, "1")
        submitted = await other.ask("POST", "/v1/jobs", job("true", labels={"a": "b c"}))
        assert submitted.status == 201
        one = submitted.json()["job"]["id"]
        assert submitted.headers["location"] == f"/v1/jobs/{one}"
        assert [item["id"] for item in (await follower.ask("GET", "/v1/jobs?label=a=b%20c")).json()["jobs"]] == [one]
        assert (await follower.ask("POST", f"/v1/jobs/{one}/cancel")).json()["outcome"] == "cancelled"
        (await follower.ask("GET", f"/v1/jobs/{ABSENT}")).problem(404, "not_found")
        (await follower.ask("GET", "/v1/jobs?limit=0")).problem(400, "invalid_request")
        (await follower.ask("POST", "/v1/jobs", b"{")).problem(400, "invalid_request")
        (await follower.ask("PUT", "/v1/jobs")).problem(405, "method_not_allowed")
        batch = {"jobs": [job("true", labels={"x": "y" * 200}) for _ in range(100)]}
        assert (await follower.ask("POST", "/v1/jobs:batch", batch)).status == 201
        entries = (await made.leader.ask("GET", "/v1/audit?limit=1")).json()["entries"]
        assert entries[0]["action"], "what was passed on is audited like everything"


@on_loop
async def test_what_comes_together_travels_together_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        follower = made.followers[0]
        await follower.ask("POST", "/v1/kv:put", {"key": "/data/there", "value": {"text": "x" * 1000}})

        def asked(number: int) -> tuple[str, str, Any, int]:
            kinds = (
                ("POST", "/v1/kv:put", {"key": f"/data/{number}", "value": {"text": str(number)}}, 200),
                ("POST", "/v1/kv:put", {"key": "/jobs/not-yours", "value": {"text": ""}}, 403),
                ("GET", "/v1/kv?key=%2Fdata%2Fthere", None, 200),
                ("GET", f"/v1/jobs/{ABSENT}", None, 404),
            )
            return kinds[number % len(kinds)]

        # When many ask a follower at the same time
        raws = [await Raw.connect(follower.socket) for _ in range(200)]
        before = follower.peers.counters()["requests_sent"]
        for number, raw in enumerate(raws):
            raw.writer.write(request(*asked(number)[:3]))
        answers = [await raw.answer() for raw in raws]
        # Then each is answered as it should be, and far fewer exchanges were made
        assert [answer.status for answer in answers] == [asked(number)[3] for number in range(200)]
        revisions = [answer.json()["revision"] for answer in answers[::4]]
        assert len(set(revisions)) == len(revisions)
        assert follower.peers.counters()["requests_sent"] - before < 100
        for raw in raws:
            raw.close()


@on_loop
async def test_a_reply_that_is_too_large_with_the_others_comes_another_way(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        follower = made.followers[0]
        await follower.ask("POST", "/v1/kv:put", {"key": "/data/large", "value": {"text": "x" * 900_000}})
        raws = [await follower.begin("GET", "/v1/kv?key=%2Fdata%2Flarge") for _ in range(30)]
        for raw in raws:
            answer = await raw.answer()
            assert (answer.status, len(answer.json()["value"]["text"])) == (200, 900_000)
            raw.close()


@on_loop
async def test_health_and_metrics_are_the_asked_node_s_own(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        follower = made.followers[0]
        health = (await follower.ask("GET", "/v1/health")).json()
        assert (health["node"], health["leader"], health["status"]) == (follower.name, False, "ok")
        assert health["checks"]["consensus"] == f"following {made.leader.name}"
        assert (await follower.ask("GET", "/v1/ready")).status == 200
        await follower.ask("GET", "/v1/jobs")
        sent = (await follower.ask("GET", "/metrics")).body.decode()
        received = (await made.leader.ask("GET", "/metrics")).body.decode()
        assert "jobs_forward_sent_total 1.0" in sent
        assert "jobs_forward_received_total 1.0" in received
        assert "jobs_pending" not in sent, "only the leader knows"


@on_loop
async def test_a_stale_read_is_answered_by_the_asked_node_and_says_so(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        leader, follower = made.leader, made.followers[0]
        put = await leader.ask("POST", "/v1/kv:put", {"key": "/data/a", "value": {"text": "1"}})
        await until(lambda: follower.store.revision >= put.json()["revision"])
        follower.cut_off()
        stale = await follower.ask("GET", "/v1/kv?key=%2Fdata%2Fa&consistency=stale")
        assert (stale.status, stale.json()["value"]["text"]) == (200, "1")
        assert stale.headers["jobs-consistency"] == "stale"
        assert int(stale.headers["jobs-revision"]) == follower.store.revision
        page = await follower.ask("GET", "/v1/kv:scan?prefix=/data/&consistency=stale")
        assert len(page.json()["kvs"]) == 1
        assert (await follower.ask("GET", "/v1/jobs?consistency=stale")).json()["jobs"] == []
        ahead = follower.store.revision + 1
        behind = await follower.ask("GET", f"/v1/kv?key=%2Fdata%2Fa&consistency=stale&revision={ahead}")
        behind.problem(503, "unavailable")
        said = await leader.ask("GET", "/v1/kv?key=%2Fdata%2Fa&consistency=linearizable")
        assert "jobs-consistency" not in said.headers
        unknown = (await leader.ask("GET", "/v1/kv?key=%2Fdata%2Fa&consistency=eventual")).problem(
            400, "invalid_request"
        )
        assert unknown["field"] == "consistency"
        assert "linearizable" in unknown["expected"]
        assert "stale" in unknown["expected"]


@on_loop
async def test_clients_and_commands_can_ask_for_a_stale_read(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        leader, follower = made.leader, made.followers[0]
        async with AsyncClient(str(leader.socket)) as client:
            put = await client.kv.put("/data/a", "1")
            one = (await client.submit(shell_job("true"))).job
        await until(lambda: follower.store.revision > put.revision)
        follower.cut_off()
        async with AsyncClient(str(follower.socket), patience_s=0) as client:
            found = await client.kv.get("/data/a", consistency="stale")
            assert found is not None
            assert [row.key async for row in client.kv.scan("/data/", consistency="stale")] == ["/data/a"]
            assert (await client.get(one.id, consistency="stale")).job.id == one.id
            assert [job.id async for job in client.list(consistency="stale")] == [one.id]
            with pytest.raises(NotFinished):
                await client.result(one.id, consistency="stale")
        for arguments, said in (
            (("kv", "get", "/data/a"), b"1"),
            (("kv", "scan"), b"/data/a"),
            (("list",), one.id.encode()),
        ):
            done = await asyncio.to_thread(jobctl, follower, *arguments, "--stale")
            assert (done.returncode, said in done.stdout) == (0, True), done


@on_loop
async def test_a_stale_watch_follows_the_asked_node_s_own_store(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        follower = made.followers[0]
        raw = await follower.begin("GET", "/v1/kv:watch?key=/data/&prefix=true&consistency=stale")
        _, headers = await raw.head()
        assert headers["jobs-consistency"] == "stale"
        await raw.event()
        await made.leader.ask("POST", "/v1/kv:put", {"key": "/data/a", "value": {"text": "1"}})
        assert '"key":"/data/a"' in (await raw.event())["data"]
        raw.close()


@on_loop
async def test_streams_and_long_polls_are_passed_on(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        leader, (follower, other) = made.leader, made.followers
        one = (await follower.ask("POST", "/v1/jobs", job())).json()["job"]["id"]
        watching = await follower.begin("GET", f"/v1/jobs/{one}/watch?after_revision=0", Accept="text/event-stream")
        status, headers = await watching.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        assert '"state":"pending"' in (await watching.event())["data"]
        waiting = await other.begin("GET", f"/v1/jobs/{one}/wait?timeout_s=60")
        await until(lambda: leader.api.desk.slots.used == 2)
        await other.ask("POST", f"/v1/jobs/{one}/cancel")
        assert '"state":"failed"' in (await watching.event())["data"]
        assert (await waiting.answer()).json()["reason"] == "cancelled"
        logs = await follower.ask("GET", f"/v1/jobs/{one}/logs")
        assert (logs.status, logs.body, logs.headers["content-type"]) == (200, b"", "application/octet-stream")
        (await follower.ask("GET", f"/v1/jobs/{ABSENT}/watch")).problem(404, "not_found")
        watching.close()
        await until(lambda: leader.api.desk.slots.used == 0)
        assert follower.api.desk.slots.used == 0


@on_loop
async def test_a_client_that_leaves_ends_what_the_leader_does_for_it(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        leader, follower = made.leader, made.followers[0]
        one = (await leader.ask("POST", "/v1/jobs", job())).json()["job"]["id"]
        raws = [await follower.begin("GET", f"/v1/jobs/{one}/wait?timeout_s=300") for _ in range(20)]
        raws += [await follower.begin("GET", "/v1/jobs:watch") for _ in range(20)]
        await until(lambda: leader.api.desk.slots.used == 40)
        for raw in raws:
            raw.close()
        await until(lambda: leader.api.desk.slots.used == 0)


@on_loop
async def test_bodies_and_answers_of_any_size_pass(tmp_path: Path) -> None:
    """Given values that make a request and an answer larger than one message between nodes may be, when a follower is
    asked, then they pass all the same."""
    async with cluster(tmp_path) as made:
        follower = made.followers[0]
        text = "\x01" * 900_000  # six bytes each in JSON
        puts = [{"put": {"key": f"/data/{n}", "value": {"base64": "QUJD" * 300_000}}} for n in range(7)]
        assert (await follower.change("POST", "/v1/kv:txn", {"then": puts})).status == 200
        assert len(msgspec.json.encode({"then": puts})) > envelope.MAX_UNARY_BYTES
        for number in range(3):
            put = {"key": f"/data/x{number}", "value": {"text": text}}
            assert (await follower.change("POST", "/v1/kv:put", put)).status == 200
        page = await follower.ask("GET", "/v1/kv:scan?prefix=/data/x")
        assert len(page.body) > envelope.MAX_UNARY_BYTES
        assert [row["value"]["text"] == text for row in page.json()["kvs"]] == [True] * 3
        too_large = await follower.ask("POST", "/v1/kv:put", b"x" * (11 << 20))
        too_large.problem(413, "payload_too_large")


@on_loop
async def test_requests_survive_a_change_of_leaders(tmp_path: Path) -> None:
    """Given clients that put keys by way of every member, when leadership is handed over again and again, then no
    client is told that there is no leader; a write that was under way may be of unknown outcome, and is sent again."""
    async with cluster(tmp_path) as made:
        failures: list[object] = []
        done = 0
        stop = asyncio.Event()

        async def client(number: int) -> None:
            nonlocal done
            member = made.members[number % 3]
            while not stop.is_set():
                known_by = str(uuid7(wall_ms(), number))
                put = {"key": f"/data/{number}", "value": {"text": "1"}}
                answer = await member.ask("POST", "/v1/kv:put", put, Jobs_Request_Id=known_by)
                while answer.status == 503 and answer.json()["code"] == "outcome_unknown":
                    answer = await member.ask("POST", "/v1/kv:put", put, Jobs_Request_Id=known_by)
                done += 1
                if answer.status != 200:
                    failures.append(answer.json())

        clients = [asyncio.create_task(client(number)) for number in range(6)]
        for _ in range(5):
            before = done
            await until(lambda before=before: done > before + 50)  # type: ignore[misc]
            leader = await made.settled()
            await leader.consensus.transfer(None)
            await until(lambda leader=leader: leader.site.leader not in (None, leader.id))  # type: ignore[misc]
        stop.set()
        await asyncio.gather(*clients)
        assert failures == []


@on_loop
async def test_when_the_leader_is_lost_a_request_is_answered_by_the_next_one(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        leader, (follower, other) = made.leader, made.followers
        leader.cut_off()
        answer = await follower.ask("GET", "/v1/jobs")
        while answer.status == 503:
            answer = await follower.ask("GET", "/v1/jobs")
        assert answer.status == 200
        assert follower.site.leader in (follower.id, other.id)
        # And the minority refuses, quickly, once it knows.
        await until(lambda: leader.site.leaderless_s > leader.site.patience_s)
        began = asyncio.get_running_loop().time()
        refused = (await leader.ask("POST", "/v1/jobs", job())).problem(503, "no_leader")
        silent = ", ".join(sorted((follower.name, other.name)))
        assert refused["detail"].startswith("the cluster has had no leader for ")
        assert refused["detail"].endswith(f" s: {silent} not reached")
        assert refused["expected"].startswith("2 voters that reach each other")
        assert asyncio.get_running_loop().time() - began < 1.0
        leader.heal()
        await made.settled()
        assert (await leader.ask("POST", "/v1/jobs", job())).status == 201


@on_loop
async def test_long_polls_and_streams_are_told_when_the_leader_is_lost(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        leader, follower = made.leader, made.followers[0]
        one = (await follower.ask("POST", "/v1/jobs", job())).json()["job"]["id"]
        watching = await follower.begin("GET", "/v1/jobs:watch")
        await watching.head()
        await watching.event()
        waiting = await follower.begin("GET", f"/v1/jobs/{one}/wait?timeout_s=20")
        await until(lambda: leader.api.desk.slots.used == 2)
        leader.cut_off()
        assert (await watching.event())["event"] == "problem"
        assert await watching.closed()
        # The long poll does no harm when it begins anew with the next leader.
        await until(lambda: follower.site.leader not in (None, leader.id))
        await follower.ask("POST", f"/v1/jobs/{one}/cancel")
        answer = await waiting.answer()
        assert answer.json()["reason"] == "cancelled", answer


@on_loop
async def test_who_is_cut_off_from_the_leader_alone_is_answered_through_another_member(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        leader, (follower, other) = made.leader, made.followers
        term = leader.consensus.term
        # Given a follower that reaches all but the leader
        follower.cut(leader)
        await until(lambda: follower.site.leader is None)
        # When it is asked, then the leader answers by way of the other, also what goes on
        put = {"key": "/data/a", "value": {"text": "1"}}
        assert (await follower.change("POST", "/v1/kv:put", put)).status == 200
        assert (await follower.ask("GET", "/v1/kv?key=%2Fdata%2Fa")).json()["value"]["text"] == "1"
        watching = await follower.begin("GET", "/v1/kv:watch?key=%2Fdata%2Fa")
        await watching.head()
        assert set(await watching.event()) == {"id"}
        assert (await other.change("POST", "/v1/kv:put", put)).status == 200
        assert "/data/a" in (await watching.event())["data"]
        health = (await follower.ask("GET", "/v1/health")).json()
        assert health["status"] == "ok"
        assert health["checks"]["consensus"].startswith(f"following {leader.name} through {other.name}")
        # And nobody is deposed; once the network is mended the leader is asked directly
        assert leader.consensus.term == term
        relayed = other.peers.counters()["requests_received"]
        follower.heal()
        leader.heal()
        await until(lambda: follower.consensus.leader == leader.id)
        assert (await follower.ask("GET", "/v1/kv?key=%2Fdata%2Fa")).status == 200
        assert other.peers.counters()["requests_received"] == relayed
        watching.close()


@on_loop
async def test_what_is_relayed_goes_one_hop_and_is_nothing_but_requests_to_the_leader(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        leader, (follower, other) = made.leader, made.followers
        asked = bytes((Asked.FORWARD,)) + encode(Request("n", "GET", "/v1/jobs", "", {}, 0, 0, True))
        for member in (other, leader):
            reply = decode(await follower.peers.request(member.id, Asked.RELAY, asked, STEP_S))
            assert isinstance(reply, envelope.Answer)
        for body in (b"", bytes((Asked.RELAY,)) + asked, bytes((Asked.MOVED,))):
            with pytest.raises(RequestFailed, match="is not relayed") as failed:
                await follower.peers.request(other.id, Asked.RELAY, body, STEP_S)
            assert (failed.value.kind, failed.value.maybe_done) == ("refused", False)
        # Given that nobody hears a leader, then nobody is asked for another
        leader.cut_off()
        other.cut(follower)
        await until(lambda: other.consensus.leader is None)
        reply = decode(await other.peers.requests[Asked.RELAY](follower.id, asked))
        assert reply == envelope.NotLeading(None)


@on_loop
async def test_nothing_is_passed_on_twice_and_envelopes_of_others_are_declined(tmp_path: Path) -> None:
    """Given two nodes that each take the other for the leader, when one is asked by the other, then it answers that it
    does not lead; what is no envelope of this version is declined, by name."""
    async with cluster(tmp_path) as made:
        leader, (follower, other) = made.leader, made.followers
        asked = Request("n", "GET", "/v1/jobs", "", {}, 0, 0, True)
        reply = decode(await follower.peers.request(other.id, Asked.FORWARD, encode(asked), STEP_S))
        assert reply == envelope.NotLeading(leader.id)
        for body, why in (
            (b"\x09x", "version 9"),
            (b"\x01\xc1", "cannot be read"),
            (b"", "version None"),
            (encode(envelope.Done()), "Done is no request"),
        ):
            with pytest.raises(RequestFailed, match=why) as failed:
                await follower.peers.request(leader.id, Asked.FORWARD, body, STEP_S)
            assert (failed.value.kind, failed.value.maybe_done) == ("refused", False)


def test_envelopes_are_read_as_they_were_written_or_not_at_all() -> None:
    request = Request("n", "POST", "/v1/jobs", "a=b", {"Accept": "x"}, 1, 2, False, b"body")
    assert decode(encode(request)) == request
    for cut in range(len(encode(request))):
        with pytest.raises(EnvelopeError):
            decode(encode(request)[:cut])
    assert NotLeader.code == "not_leader"
    assert ApiConfig().max_body_bytes < envelope.MAX_ENVELOPE_BYTES
