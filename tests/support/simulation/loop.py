"""The event loop of one simulated process: asyncio's interface over the world's time."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from random import Random
from typing import Any, TypeVar

from tests.support.simulation.storage import Crash
from tests.support.simulation.world import World

T = TypeVar("T")
TURN_S = 0.00002
"""What a turn takes, so that time goes on whatever the process does."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """What the consensus uses of a loop. A process has one; it ends with it.

    Its clock is steady, starts anywhere and runs at a rate of its own. Work that would hold up the real loop `stalls`
    this one: what comes after it comes later.
    """

    def __init__(self, world: World, rng: Random, rate: float, after_callback: Callable[[], None]) -> None:
        self._world = world
        self._rng = rng
        self._after_callback = after_callback
        self._ready: deque[asyncio.Handle] = deque()
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._scheduled = False
        self._paused = False
        self._closed = False
        self._busy_until_s = 0.0
        self._rate = rate
        self._origin_s = (world.now_s, rng.uniform(0, 1e6))
        """A moment of the world's time, and of this clock's."""
        self.in_executor = False
        """Whether what runs now runs on another thread, whose time has been taken account of."""

    # --- the process ----------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return not self._closed

    @property
    def paused(self) -> bool:
        return self._paused

    def end(self) -> None:
        """Nothing runs here any more. What was under way is closed now, not whenever garbage is collected: in a task
        that crashes the interpreter (CPython 3.11)."""
        self._closed = True
        self._ready.clear()
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                coroutine = task.get_coro()
                assert coroutine is not None
                # Its last words go to a process that is no more.
                with contextlib.suppress(BaseException):
                    coroutine.close()
        self._tasks.clear()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._wake()

    def set_rate(self, rate: float) -> None:
        self._origin_s = (self._world.now_s, self._time_at(self._world.now_s))
        self._rate = rate

    def stall(self, duration_s: float) -> None:
        """Let what runs now take so long."""
        if not self.in_executor:
            self._busy_until_s = max(self._busy_until_s, self._world.now_s) + duration_s

    def _time_at(self, world_s: float) -> float:
        return self._origin_s[1] + (world_s - self._origin_s[0]) * self._rate

    def _wake(self) -> None:
        if self._ready and not self._scheduled and not self._paused and not self._closed:
            self._scheduled = True
            self._world.after(max(TURN_S, self._busy_until_s - self._world.now_s), self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        former = events._get_running_loop()
        events._set_running_loop(self)
        try:
            for _ in range(len(self._ready)):
                if self._paused or self._closed or self._busy_until_s > self._world.now_s:
                    break
                handle = self._ready.popleft()
                if handle.cancelled():
                    continue
                # Whoever ends the process in the middle has said so; `_after_callback` sees to it.
                with contextlib.suppress(Crash):
                    handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
                self._after_callback()
                if self._world.broken is not None:
                    return
        finally:
            events._set_running_loop(former)
        self._wake()

    # --- asyncio's interface ----------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._time_at(max(self._world.now_s, self._busy_until_s))

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self._closed:
            self._ready.append(handle)
            self._wake()
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.time() + delay, callback, args, self, context)
        begin_s = max(0.0, self._busy_until_s - self._world.now_s)
        self._world.after(begin_s + max(0.0, delay) / self._rate, self._on_due, handle)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def _on_due(self, handle: asyncio.TimerHandle) -> None:
        if not self._closed and not handle.cancelled():
            self._ready.append(handle)
            self._wake()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when it is due."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, T], **options: Any) -> asyncio.Task[T]:  # type: ignore[override]
        task = asyncio.Task(coro, loop=self, **options)
        self._tasks[task] = None
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """On another thread: it takes as long as the disk takes, and the loop goes on."""
        future: asyncio.Future[T] = self.create_future()
        self._world.after(self._rng.expovariate(300), self._execute, future, func, args)
        return future

    def _execute(self, future: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]) -> None:
        if self._closed:
            return
        if self._paused:
            self._world.after(0.05, self._execute, future, func, args)
            return
        self.in_executor = True
        try:
            result = func(*args)
        except Crash:
            self._after_callback()
        except Exception as error:
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)
        finally:
            self.in_executor = False

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Errors that nobody asked for: asyncio tells them when it collects garbage, which is no part of a run."""
