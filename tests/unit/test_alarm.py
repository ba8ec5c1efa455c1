"""Waking at a moment of a wall clock that is set ahead and back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from jobs.control.alarm import Alarm
from tests.support.clock import Clock


class Bell:
    """An alarm that tells what it does."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()
        self.set_back = 0
        self.alarm = Alarm(self.rung.set, self._on_set_back)

    def _on_set_back(self) -> None:
        assert not self.rung.is_set(), "told before it rings"
        self.set_back += 1

    async def rings(self) -> int:
        """Wait until it rings; return how often the clock was set back before."""
        async with asyncio.timeout(10):
            await self.rung.wait()
        return self.set_back


def play(monkeypatch: pytest.MonkeyPatch, scenario: Callable[[Bell, Clock], Awaitable[None]]) -> None:
    async def inner() -> None:
        await scenario(Bell(), Clock(monkeypatch))

    asyncio.run(inner())


def test_it_rings_when_its_moment_has_come_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(bell: Bell, clock: Clock) -> None:
        due_ms = clock.now_ms() + 50
        bell.alarm.set(due_ms)
        assert bell.alarm.due_ms == due_ms
        assert await bell.rings() == 0
        assert clock.now_ms() >= due_ms
        assert bell.alarm.due_ms is None

    play(monkeypatch, scenario)


def test_a_moment_that_has_passed_rings_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(bell: Bell, clock: Clock) -> None:
        bell.alarm.set(clock.now_ms() - 1_000)
        assert await bell.rings() == 0

    play(monkeypatch, scenario)


def test_a_clock_set_ahead_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(bell: Bell, clock: Clock) -> None:
        bell.alarm.set(clock.now_ms() + 3_600_000)
        clock.jump(3_600)
        assert await bell.rings() == 0

    play(monkeypatch, scenario)


def test_a_clock_set_back_rings_early_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(bell: Bell, clock: Clock) -> None:
        bell.alarm.set(clock.now_ms() + 3_600_000)
        clock.jump(-5)
        assert await bell.rings() == 1

    play(monkeypatch, scenario)


def test_the_last_moment_counts_and_a_stopped_alarm_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(bell: Bell, clock: Clock) -> None:
        bell.alarm.set(clock.now_ms())
        bell.alarm.set(clock.now_ms() + 3_600_000)
        other = Bell()
        other.alarm.set(clock.now_ms() + 100)
        await other.rings()
        assert not bell.rung.is_set()
        bell.alarm.set(None)
        bell.alarm.stop()
        assert bell.alarm.due_ms is None

    play(monkeypatch, scenario)
