"""Kills, errors and full disks under additions and fetches: what was acknowledged is there and sound, nothing is left
of what was not, and a fetch goes on where it was broken off."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from jobs._native import failpoints
from jobs.blobs import BlobStore
from tests.support.blobpeer import blob_process
from tests.support.loop import on_loop
from tests.support.netns import network
from tests.support.netpeer import NetProcess

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
MIB = 1 << 20


async def kill(process: NetProcess) -> None:
    process.signal(signal.SIGKILL)
    await process.kill()


async def acknowledged(process: NetProcess, at_least: int) -> list[str]:
    return [(await process.wait("added"))["added"] for _ in range(at_least)]


def first_pass(point: str) -> int:
    """Return a pass of this point that comes after the start, which syncs two folders."""
    return 3 if "directory" in point else 2


async def until_its_end(process: NetProcess) -> list[str]:
    """Return what a process adds before it ends by itself."""
    added: list[str] = []
    while True:
        try:
            added.append((await process.wait("added"))["added"])
        except AssertionError:
            return added


async def check(folder: Path, wanted: list[str]) -> None:
    """All of these are there and sound, and so is whatever else is there."""
    store = await BlobStore.open(folder / "blobs", min_free_bytes=0)
    try:
        there = [stat.hash for stat in await store.page()]
        assert set(wanted) <= set(there)
        assert [await store.verify(blob) for blob in there] == ["sound"] * len(there)
        assert os.listdir(folder / "blobs/incoming") == []
    finally:
        await store.close()


@on_loop
async def test_what_was_acknowledged_outlives_kills(tmp_path: Path) -> None:
    chance = random.Random(4)
    wanted: list[str] = []
    for round_ in range(4 * SCALE):
        async with blob_process(tmp_path / "n1", "n1") as process:
            for worker in range(3):
                process.order(
                    add=chance.choice([10, 5_000, 40_000, 3 * MIB]), seed=1_000 * round_ + 100 * worker, count=100
                )
            wanted += await acknowledged(process, chance.randint(1, 40))
            await kill(process)
        await check(tmp_path / "n1", wanted)


@on_loop
async def test_a_fetch_goes_on_where_a_kill_broke_it_off(tmp_path: Path) -> None:
    chance = random.Random(5)
    size = 48 * MIB
    with network(2) as net:
        options = {"bind": f"{net.address(2)}:4700", "namespace": net.names[1]}
        first = {"bind": f"{net.address(1)}:4700", "namespace": net.names[0]}
        async with blob_process(tmp_path / "n1", "n1", **first) as one:
            one.order(add=size, seed=7)
            blob = (await one.wait("added"))["added"]
            net.slow(1, 200)
            for round_ in range(SCALE):
                folder = tmp_path / f"n2-{round_}"
                here = 0
                for _ in range(4):
                    async with blob_process(folder, "n2", **options) as two:
                        one.know(two)
                        two.know(one)
                        two.order(fetch=blob, providers=[one.id])
                        until = here + chance.randint(1, 6 * MIB)
                        while (news := await two.wait("progress"))["progress"] < until:
                            pass
                        await kill(two)
                        # What it told is in the files; what it had written and not told may be as well.
                        here = news["progress"]
                async with blob_process(folder, "n2", **options) as two:
                    one.know(two)
                    two.know(one)
                    two.order(fetch=blob, providers=[one.id])
                    ((came, reason),) = (await two.wait("fetched"))["tried"]
                    assert reason == ""
                    assert 0 < came <= size - here
                await check(folder, [blob])


ERRORS = [("blobs.write.before", "EIO"), ("blobs.content.sync.before", "EIO"), ("blobs.rename.before", "EIO"),
          ("blobs.directory.sync.before", "EIO"), ("blobs.write.before", "ENOSPC")]  # fmt: skip


@pytest.mark.parametrize(("point", "error"), ERRORS)
@on_loop
async def test_an_addition_that_meets_an_error_says_so_and_the_next_succeeds(
    tmp_path: Path, point: str, error: str
) -> None:
    env = {"JOBS_FAILPOINTS": f"{point}=error:{error}@{first_pass(point)}"}
    async with blob_process(tmp_path / "n1", "n1", env=env) as process:
        process.order(add=300_000, seed=1, count=3)
        failed = await process.wait("failed")
        assert failed["failed"] == ("DiskFullError" if error == "ENOSPC" else "NativeError")
        wanted = await acknowledged(process, 2)
        await process.wait("all_added")
        await process.stop()
    await check(tmp_path / "n1", wanted)


@pytest.mark.parametrize("point", [name for name, _ in failpoints() if name.startswith("blobs.")])
@on_loop
async def test_a_kill_at_any_point_loses_nothing(tmp_path: Path, point: str) -> None:
    async with blob_process(tmp_path / "n1", "n1") as one:
        one.order(add=6 * MIB, seed=1)
        fetched = (await one.wait("added"))["added"]
        env = {"JOBS_FAILPOINTS": f"{point}=kill@{first_pass(point)}"}
        async with blob_process(tmp_path / "n2", "n2", env=env) as two:
            one.know(two)
            two.know(one)
            two.order(fetch=fetched, providers=[one.id])
            two.order(add=300_000, seed=2, count=10)
            wanted = await until_its_end(two)
        await check(tmp_path / "n2", wanted)
        async with blob_process(tmp_path / "n2", "n2") as two:
            one.know(two)
            two.know(one)
            two.order(fetch=fetched, providers=[one.id])
            await two.wait("fetched")
        await check(tmp_path / "n2", [*wanted, fetched])


@on_loop
async def test_a_full_disk_is_named_and_nothing_half_is_kept(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], check=True)
    try:
        async with blob_process(tmp_path / "n1", "n1") as one, blob_process(disk, "n2") as two:
            one.know(two)
            two.know(one)
            # An addition that does not fit
            two.order(add=64 * MIB, seed=1)
            assert (await two.wait("failed"))["failed"] == "DiskFullError"
            two.order(usage=True)
            usage = (await two.wait("usage"))["usage"]
            assert (usage["blobs"], usage["partial_bytes"]) == (0, 0)
            assert usage["free_bytes"] > 28 * MIB
            # One that fits
            two.order(add=20 * MIB, seed=2)
            kept = (await two.wait("added"))["added"]
            # A fetch that does not: by its size, known before, and in the middle, where others fill the disk
            one.order(add=24 * MIB, seed=3)
            blob = (await one.wait("added"))["added"]
            two.order(fetch=blob, providers=[one.id])
            assert (await two.wait("failed"))["failed"] == "disk_full"
            two.order(usage=True)
            assert (await two.wait("usage"))["usage"]["partial_bytes"] == 0
            two.order(verify=kept)
            assert (await two.wait("verdict"))["verdict"] == "sound"
            await two.stop()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
