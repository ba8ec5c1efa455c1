"""The transport on real links: partitions, one-way loss, and what leaves a node that is alone."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.support.loop import on_loop
from tests.support.netns import Network, network, run
from tests.support.netpeer import NetProcess, net_process

LIMITS = {"idle_ms": 1_500, "backoff_cap_ms": 200, "handshake_ms": 500}


async def start(stack: contextlib.AsyncExitStack, net: Network, folder: Path) -> list[NetProcess]:
    """Start a node in each namespace, all of which know each other, and wait until all are up."""
    made = []
    for number, namespace in enumerate(net.names, 1):
        options = {"bind": f"{net.address(number)}:4700", "namespace": namespace, "limits": LIMITS}
        made.append(await stack.enter_async_context(net_process(folder / f"n{number}", f"n{number}", **options)))
    for node in made:
        node.know(*(other for other in made if other is not node))
    for node in made:
        for _ in made[1:]:
            await node.wait("up")
    return made


async def assert_speak(one: NetProcess, two: NetProcess, text: str) -> None:
    for sender, receiver in ((one, two), (two, one)):
        sender.order(to=receiver.id, send=f"tell {text}")
        assert (await sender.wait("taken"))["taken"]
        await receiver.wait("message", message=text)


@on_loop
async def test_a_partition_is_noticed_and_healed_and_the_others_go_on(tmp_path: Path) -> None:
    with network(3) as net:
        async with contextlib.AsyncExitStack() as stack:
            one, two, three = await start(stack, net, tmp_path)
            for round_ in range(2):
                # A stream is open in the middle of it
                one.order(open=f"stream {round_}", to=three.id)
                await three.wait("stream", stream=f"stream {round_}")
                net.cut(3)
                for end in (one, three):
                    await end.wait("broken", broken="closed")
                await one.wait("down")
                await two.wait("down")
                await three.wait("down")
                await three.wait("down")
                await assert_speak(one, two, f"meanwhile {round_}")
                one.order(to=three.id, send="lost")
                assert not (await one.wait("taken"))["taken"]
                net.mend(3)
                await one.wait("up", up="n3")
                await two.wait("up", up="n3")
                await three.wait("up")
                await three.wait("up")
                await assert_speak(one, three, f"again {round_}")
                await assert_speak(two, three, f"again {round_}")
            counters = await one.counters()
            assert [counters[f"refused_{kind}"] for kind in ("malformed", "truncated", "too_large")] == [0, 0, 0]


@on_loop
async def test_one_way_loss_is_noticed_on_both_sides_and_healed(tmp_path: Path) -> None:
    with network(3) as net:
        async with contextlib.AsyncExitStack() as stack:
            one, two, three = await start(stack, net, tmp_path)
            net.lose_sent(2)
            for node in (one, two, two, three):
                await node.wait("down")
            await assert_speak(one, three, "meanwhile")
            net.lose_nothing(2)
            for node in (one, two, two, three):
                await node.wait("up")
            await assert_speak(one, two, "again")
            await assert_speak(two, three, "again")


@on_loop
async def test_a_node_without_peers_sends_nothing_at_all(tmp_path: Path) -> None:
    with network(2) as net:
        namespace = net.names[0]
        # Given a way out, and no IPv6, whose own traffic would be counted
        switch = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
        run("ip", "netns", "exec", namespace, "sh", "-c", f"[ ! -d /proc/sys/net/ipv6 ] || {switch}")
        run("ip", "-n", namespace, "route", "add", "default", "via", net.address(2))
        before = net.sent_packets(1)
        options = {"bind": "0.0.0.0:4700", "namespace": namespace, "limits": LIMITS}
        async with net_process(tmp_path / "n1", "n1", **options) as node:
            # When it lives long enough to dial a peer three times that is at no address but its own
            node.order(peers={"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a": ["127.0.0.1:9"]})
            while (await node.counters())["dials_failed"] < 3:
                pass
        assert net.sent_packets(1) == before
