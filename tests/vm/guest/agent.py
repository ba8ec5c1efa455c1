"""The tests' hand inside a virtual machine: runs commands that the harness asks for on a virtio serial port.

One JSON object a line each way. In: `run` (a command begins), `stdin` (more of its input, or its end), `kill`. Out:
`ready` (a boot's first line), `output`, `exit`. It is copied into the image as it is: nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import pwd
import signal
import sys
from pathlib import Path
from typing import Any

PORT = "/dev/virtio-ports/jobs.agent"
CHUNK_BYTES = 65_536


class Agent:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._commands: dict[int, asyncio.subprocess.Process] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        # A line of a former boot may have been cut off: the harness reads from the next one.
        self._writer.write(b"\n")
        await self._send(ready=Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        while line := await self._reader.readline():
            with contextlib.suppress(ValueError):
                await self._take(json.loads(line))

    async def _take(self, message: dict[str, Any]) -> None:
        number = message["id"]
        if "run" in message:
            # Begun before the next message is read: that may be its input.
            if (begun := await self._begin(number, message)) is not None:
                task = asyncio.create_task(self._follow(number, begun))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            return
        if (command := self._commands.get(number)) is None:
            return
        if "stdin" in message and command.stdin is not None:
            data = base64.b64decode(message["stdin"])
            with contextlib.suppress(OSError):
                if data:
                    command.stdin.write(data)
                    await command.stdin.drain()
                else:
                    command.stdin.close()
        if "kill" in message:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.pid, message["kill"])

    async def _begin(self, number: int, message: dict[str, Any]) -> asyncio.subprocess.Process | None:
        account = pwd.getpwnam(message["user"])
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": account.pw_dir,
            "USER": account.pw_name,
            **message["environment"],
        }
        try:
            command = await asyncio.create_subprocess_exec(
                *message["run"],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=os.getgrouplist(account.pw_name, account.pw_gid),
                env=environment,
                cwd=message["directory"],
                start_new_session=True,
                preexec_fn=be_ordinary,
            )
        except OSError as error:
            await self._send(id=number, output=2, data=encode(f"{error}\n".encode()))
            await self._send(id=number, exit=127)
            return None
        self._commands[number] = command
        await self._send(id=number, started=command.pid)
        return command

    async def _follow(self, number: int, command: asyncio.subprocess.Process) -> None:
        assert command.stdout is not None
        assert command.stderr is not None
        await asyncio.gather(self._pass_on(number, 1, command.stdout), self._pass_on(number, 2, command.stderr))
        code = await command.wait()
        del self._commands[number]
        await self._send(id=number, exit=code)

    async def _pass_on(self, number: int, stream: int, output: asyncio.StreamReader) -> None:
        while data := await output.read(CHUNK_BYTES):
            await self._send(id=number, output=stream, data=encode(data))

    async def _send(self, **message: Any) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")
        await self._writer.drain()


def be_ordinary() -> None:
    """Give a command back what the agent has of its own: it is never the one that is short of memory or of time."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


async def main() -> None:
    port = os.open(PORT, os.O_RDWR | os.O_NONBLOCK)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=16 * 2**20)
    # A character device of virtio can be watched for both, but asyncio takes only what it knows for pipes.
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(port), "rb", 0))
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(os.dup(port), "wb", 0)
    )
    await Agent(reader, asyncio.StreamWriter(transport, protocol, reader, loop)).serve()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
