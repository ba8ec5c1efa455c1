"""Members in network namespaces that fetch blobs from each other."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tests.support.blobpeer import blob_process
from tests.support.loop import on_loop
from tests.support.netns import Network, network
from tests.support.netpeer import NetProcess

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
MIB = 1 << 20
LIMITS = {"idle_ms": 2_000, "backoff_cap_ms": 200, "handshake_ms": 1_000}


async def start(stack: contextlib.AsyncExitStack, net: Network, folder: Path) -> list[NetProcess]:
    made = []
    for number, namespace in enumerate(net.names, 1):
        options = {"bind": f"{net.address(number)}:4700", "namespace": namespace, "limits": LIMITS}
        made.append(await stack.enter_async_context(blob_process(folder / f"n{number}", f"n{number}", **options)))
    for node in made:
        node.know(*(other for other in made if other is not node))
    return made


async def add(node: NetProcess, size_bytes: int, seed: int) -> str:
    node.order(add=size_bytes, seed=seed)
    blob: str = (await node.wait("added", seed=seed))["added"]
    return blob


@on_loop
async def test_another_provider_goes_on_where_one_is_killed_or_cut_off(tmp_path: Path) -> None:
    size = 48 * MIB
    with network(3) as net:
        async with contextlib.AsyncExitStack() as stack:
            one, two, three = await start(stack, net, tmp_path)
            for seed, loss in enumerate(("cut", "kill")):
                blob = await add(one, size, seed)
                assert await add(two, size, seed) == blob
                three.forget()
                net.slow(1, 100)
                three.order(fetch=blob, providers=[one.id, two.id], stall_s=2)
                while (await three.wait("progress"))["progress"] < 8 * MIB:
                    pass
                if loss == "cut":
                    net.cut(1)
                else:
                    one.signal(signal.SIGKILL)
                fetched = await three.wait("fetched")
                (first, reason), (second, none) = fetched["tried"]
                assert first > 0
                assert second > 0
                assert first + second == size
                assert reason
                assert none == ""
                three.order(verify=blob)
                assert (await three.wait("verdict"))["verdict"] == "sound"
                net.mend(1)
                net.lose_nothing(1)


@on_loop
async def test_a_partition_in_mid_transfer_costs_what_had_not_come(tmp_path: Path) -> None:
    size = 48 * MIB
    with network(2) as net:
        async with contextlib.AsyncExitStack() as stack:
            one, two = await start(stack, net, tmp_path)
            blob = await add(one, size, 1)
            net.slow(1, 100)
            two.order(fetch=blob, providers=[one.id], stall_s=2)
            while (news := await two.wait("progress"))["progress"] < 8 * MIB:
                pass
            net.cut(1)
            failed = await two.wait("failed")
            assert failed["failed"] == "unavailable"
            net.mend(1)
            net.lose_nothing(1)
            two.forget()
            two.order(fetch=blob, providers=[one.id])
            fetched = await two.wait("fetched")
            assert fetched["tried"][0][0] <= size - news["progress"]


@on_loop
async def test_many_small_blobs_come_as_one_sequence(tmp_path: Path) -> None:
    count = 1_000 * min(SCALE, 10)
    with network(2) as net:
        async with contextlib.AsyncExitStack() as stack:
            one, two = await start(stack, net, tmp_path)
            for worker in range(8):
                one.order(add=4_096, seed=worker * count, count=count // 8)
            blobs = [(await one.wait("added"))["added"] for _ in range(count)]
            sequence = tmp_path / "sequence"
            sequence.write_bytes(bytes.fromhex("".join(blobs)))
            one.order(add_file=str(sequence))
            root = (await one.wait("added"))["added"]
            two.order(fetch=root, providers=[one.id], children=True)
            fetched = await two.wait("fetched")
            assert fetched["blobs"] == count + 1
            assert fetched["size"] == count * (4_096 + 32)
            two.order(verify=blobs[-1])
            assert (await two.wait("verdict"))["verdict"] == "sound"


@on_loop
async def test_memory_stays_flat_while_a_large_blob_passes(tmp_path: Path) -> None:
    size = 256 * MIB * SCALE
    async with blob_process(tmp_path / "n1", "n1") as one, blob_process(tmp_path / "n2", "n2") as two:
        one.know(two)
        two.know(one)
        before = []
        for node in (one, two):
            node.order(usage=True)
            before.append((await node.wait("peak_bytes"))["peak_bytes"])
        blob = await add(one, size, 1)
        two.order(fetch=blob, providers=[one.id])
        after = [0, (await two.wait("fetched"))["peak_bytes"]]
        one.order(usage=True)
        after[0] = (await one.wait("peak_bytes"))["peak_bytes"]
        for node, peak in enumerate(after):
            assert peak - before[node] < 120 * MIB, f"n{node + 1}: {before[node] >> 20} to {peak >> 20} MiB"


@on_loop
async def test_a_stranger_is_told_to_go(tmp_path: Path) -> None:
    async with blob_process(tmp_path / "n1", "n1") as one, blob_process(tmp_path / "n2", "n2") as two:
        blob = await add(one, MIB, 1)
        two.know(one)
        two.order(fetch=blob, providers=[one.id], stall_s=2)
        failed = await two.wait("failed")
        assert failed["failed"] == "unavailable"
        assert "allowlist" in failed["detail"]
        assert (await one.counters())["refused_stranger"] > 0
