"""A virtual machine under QEMU, and the channel by which tests run commands in it.

Emulated (TCG), as nothing else is to be had everywhere; `JOBS_VM_ACCELERATOR=kvm` takes the processor's own where it
works. A machine's writes go to a layer of its own over the image. What it says on its console is kept in a file.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from tests.vm.image import Image

BOOT_TIMEOUT_S: Final = 600
COMMAND_TIMEOUT_S: Final = 120
DATA_BYTES: Final = 2 * 2**30
ROOT: Final = "root.qcow2"
# What the wheels are built for, with the instructions that ciphers use; wider vectors only cost an emulator time.
CPU: Final = "Nehalem,+aes,+pclmulqdq,+rdrand,+rdtscp"


# Keeps what was not flushed to itself: killed, it loses that, as a drive with a cache does when its power goes.
DISK_SERVER: Final = ["nbdkit", "--exit-with-parent", "--filter=cache", "file", "cache=writeback"]


class MachineError(Exception):
    """A machine does not do what it is there for."""


class CommandFailed(MachineError):
    """A command inside a machine ended with another code than 0."""


@dataclass(frozen=True, kw_only=True)
class Completed:
    """How a command ended; a negative code is a signal's number."""

    code: int
    stdout: str
    stderr: str


@dataclass(kw_only=True)
class Command:
    """A command that runs inside a machine."""

    machine: Machine
    number: int
    words: str
    events: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    pid: int = 0
    code: int | None = None
    _output: dict[int, bytearray] = field(default_factory=lambda: {1: bytearray(), 2: bytearray()})

    @property
    def stdout(self) -> str:
        return self._output[1].decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        return self._output[2].decode("utf-8", "replace")

    def write(self, data: bytes) -> None:
        """Give the command more input."""
        for start in range(0, len(data), 49_152):
            self.machine.send(id=self.number, stdin=base64.b64encode(data[start : start + 49_152]).decode())

    def close_stdin(self) -> None:
        self.machine.send(id=self.number, stdin="")

    def kill(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the command and what it started."""
        self.machine.send(id=self.number, kill=int(number))

    def wait(self, timeout_s: float = COMMAND_TIMEOUT_S) -> Completed:
        """Wait for the command's end."""
        deadline = time.monotonic() + timeout_s
        while self.code is None:
            self._take(deadline)
        return Completed(code=self.code, stdout=self.stdout, stderr=self.stderr)

    def wait_for(self, text: str, times: int = 1, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Wait until the command has written `text` to its output, so many times."""
        deadline = time.monotonic() + timeout_s
        while self.stdout.count(text) < times:
            if self.code is not None:
                raise MachineError(f"{self.words} ended with {self.code} before it wrote {text!r}: {self.stderr}")
            self._take(deadline)

    def drain(self) -> None:
        """Take in what had come of it when its machine went away."""
        with contextlib.suppress(MachineError):
            while self.code is None:
                self._take(time.monotonic() + COMMAND_TIMEOUT_S)

    def _take(self, deadline: float) -> None:
        try:
            event = self.events.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            raise MachineError(
                f"{self.machine.name}: {self.words} has not ended in time; it wrote {self.stdout!r} {self.stderr!r}"
            ) from None
        if "lost" in event:
            raise MachineError(f"{self.machine.name} went away while it ran {self.words}")
        if "started" in event:
            self.pid = event["started"]
        elif "output" in event:
            self._output[event["output"]] += base64.b64decode(event["data"])
        elif "exit" in event:
            self.code = event["exit"]


class Machine:
    """One machine with its disks in a directory of its own, switched on and off by the test."""

    def __init__(
        self,
        name: str,
        directory: Path,
        image: Image,
        *,
        cores: int = 2,
        memory_mib: int = 2_048,
        shares: Mapping[str, Path] | None = None,
        network: Sequence[str] = (),
    ) -> None:
        """`shares`: read-only disks by their name below /dev/disk/by-id/virtio-NAME. `network`: see `Switch.port`."""
        self.name = name
        self.directory = directory
        self._image = image
        self._cores = cores
        self._memory_mib = memory_mib
        self._shares = dict(shares or {})
        self._network = list(network)
        self._process: subprocess.Popen[bytes] | None = None
        self._disks: list[subprocess.Popen[bytes]] = []
        self._socket: socket.socket | None = None
        self._sending = threading.Lock()
        self._commands: dict[int, Command] = {}
        self._last_number = 0
        self._boots: queue.Queue[str] = queue.Queue()
        self.boot_id = ""
        directory.mkdir(parents=True, exist_ok=True)
        self._make_disks()

    @property
    def root_disk(self) -> Path:
        return self.directory / ROOT

    @property
    def data_disk(self) -> Path:
        return self.directory / "data.raw"

    @property
    def console(self) -> str:
        """What the machine wrote on its console, since it was made."""
        return (self.directory / "console.log").read_text(errors="replace")

    @property
    def is_on(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.switch_on()
        return self

    def __exit__(self, *unused: object) -> None:
        self.cut_power()

    def _make_disks(self) -> None:
        form = "raw" if self._image.disk.suffix == ".raw" else "qcow2"
        layer = ["-f", "qcow2", "-F", form, "-b", str(self._image.disk.resolve()), str(self.root_disk)]
        subprocess.run(["qemu-img", "create", "-q", *layer], check=True)
        with self.data_disk.open("wb") as disk:
            disk.truncate(DATA_BYTES)
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        subprocess.run(
            ["mkfs.ext4", "-q", "-F", "-m", "0", "-L", "jobs-data", str(self.data_disk)],
            check=True,
            env={**os.environ, "PATH": path},
        )

    def switch_on(self, *, wait: bool = True) -> None:
        """Boot, and wait until commands can be run, unless the caller will (`wait_for_boot`)."""
        assert not self.is_on
        self._boots = queue.Queue()
        with listening(self.directory / "data.sock") as data, (self.directory / "disks.log").open("ab") as log:
            self._disks.append(subprocess.Popen(**given(data, [*DISK_SERVER, f"file={self.data_disk}"]), stderr=log))
        with listening(self.directory / "agent.sock") as agent, (self.directory / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(self._command_line(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            agent.settimeout(60)
            try:
                self._socket = agent.accept()[0]
            except TimeoutError:
                raise MachineError(f"{self.name} cannot be started: {self._qemu_log()}") from None
        threading.Thread(
            target=self._receive, args=(self._socket, self._boots), name=f"vm-{self.name}", daemon=True
        ).start()
        if wait:
            self.wait_for_boot()

    def wait_for_boot(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Wait until the machine has come up, or has come up again."""
        try:
            self.boot_id = self._boots.get(timeout=timeout_s)
        except queue.Empty:
            raise MachineError(f"{self.name} has not booted; its console ends with:\n{self.console[-3000:]}") from None
        if not self.boot_id:
            raise MachineError(f"{self.name} went off while it booted:\n{self.console[-3000:]}{self._qemu_log()}")

    def cut_power(self) -> None:
        """Take the power away at once: what the machine had not flushed to its data disk is lost."""
        if self._process is not None:
            # Nothing goes on without the disk: not even an error is seen of it.
            self._process.send_signal(signal.SIGSTOP)
        for process in [*self._disks, *([self._process] if self._process else [])]:
            process.kill()
            process.wait()
        self._disks.clear()
        self._process = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def shut_down(self, timeout_s: float = 120) -> None:
        """Have the machine shut down in order, and wait until it is off."""
        assert self._process is not None
        self.start(["systemctl", "poweroff"])
        self._process.wait(timeout_s)
        for disk in self._disks:
            disk.terminate()  # with what it holds: its clients have gone in order
        self.cut_power()

    def reboot(self) -> None:
        """Have the machine boot again by itself, in order."""
        while not self._boots.empty():
            self._boots.get()
        self.start(["systemctl", "reboot"])
        self.wait_for_boot()

    # Commands

    def start(
        self,
        words: Sequence[str] | str,
        *,
        user: str = "root",
        environment: Mapping[str, str] | None = None,
        directory: str = "/",
    ) -> Command:
        """Start a command, of the shell when it is one string, and leave it running."""
        arguments = ["/bin/bash", "-euo", "pipefail", "-c", words] if isinstance(words, str) else list(words)
        self._last_number += 1
        shown = words if isinstance(words, str) else shlex.join(words)
        command = Command(machine=self, number=self._last_number, words=shown)
        self._commands[command.number] = command
        self.send(id=command.number, run=arguments, user=user, environment=dict(environment or {}), directory=directory)
        return command

    def run(
        self,
        words: Sequence[str] | str,
        *,
        user: str = "root",
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        directory: str = "/",
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> Completed:
        """Run a command to its end."""
        command = self.start(words, user=user, environment=environment, directory=directory)
        command.write(stdin)
        command.close_stdin()
        return command.wait(timeout_s)

    def check(self, words: Sequence[str] | str, **options: Any) -> str:
        """Run a command that has to succeed; return its output."""
        ended = self.run(words, **options)
        if ended.code != 0:
            shown = words if isinstance(words, str) else shlex.join(words)
            raise CommandFailed(f"{self.name}: {shown}: code {ended.code}\n{ended.stdout}{ended.stderr}")
        return ended.stdout

    def put(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file in the machine."""
        content = data.encode() if isinstance(data, str) else data
        quoted = shlex.quote(path)
        self.check(
            f'mkdir -p "$(dirname {quoted})" && cat >{quoted} && chmod {mode:o} {quoted}', stdin=content, timeout_s=600
        )

    def journal(self, *arguments: str) -> list[dict[str, Any]]:
        """Return entries of the machine's journal."""
        output = self.check(["journalctl", "--output=json", "--no-pager", "--all", *arguments])
        return [json.loads(line) for line in output.splitlines()]

    def send(self, **message: Any) -> None:
        if self._socket is None:
            raise MachineError(f"{self.name} is off")
        with self._sending:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self, connection: socket.socket, boots: queue.Queue[str]) -> None:
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError:  # what a boot before this one had begun
                    continue
                if "ready" in message:
                    self._lose_commands()
                    boots.put(message["ready"])
                elif (command := self._commands.get(message["id"])) is not None:
                    command.events.put(message)
        self._lose_commands()
        boots.put("")

    def _lose_commands(self) -> None:
        for command in list(self._commands.values()):
            command.events.put({"lost": True})
        self._commands.clear()

    # QEMU

    def _qemu_log(self) -> str:
        return (self.directory / "qemu.log").read_text(errors="replace")

    def _command_line(self) -> list[str]:
        accelerator = os.environ.get("JOBS_VM_ACCELERATOR", "tcg")
        cpu = "host" if accelerator == "kvm" else CPU
        return [
            # With the tests' process, however that ends, as the disks' server.
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-accel", "tcg,thread=multi,tb-size=512" if accelerator == "tcg" else accelerator),
            *("-machine", "q35", "-cpu", cpu, "-smp", str(self._cores), "-m", f"{self._memory_mib}M"),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd)),
            *("-append", "root=/dev/vda rw console=ttyS0 panic=-1 quiet systemd.show_status=no"),
            *("-chardev", f"file,id=console,path={self.directory}/console.log,append=on"),
            *("-serial", "chardev:console"),
            *self._drive("root", f"file={self.root_disk},format=qcow2,cache=unsafe,discard=unmap"),
            *self._drive("data", f"file=nbd+unix:///?socket={self.directory}/data.sock,format=raw,cache=writeback"),
            *(
                word
                for name, path in self._shares.items()
                for word in self._drive(name, f"file={path},format=raw,readonly=on")
            ),
            *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"),
            *("-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,path={self.directory}/agent.sock"),
            *("-device", "virtserialport,chardev=agent,name=jobs.agent"),
            *self._network,
        ]

    def _drive(self, name: str, source: str) -> Iterator[str]:
        yield from ("-drive", f"if=none,id={name},{source}")
        yield from ("-device", f"virtio-blk-pci,drive={name},serial={name}")


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen at `path` until another process has taken the socket over, or has connected."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen()
        yield made


def given(listener: socket.socket, words: list[str]) -> dict[str, Any]:
    """Return how to start a program that takes its socket as systemd gives it: there is no time before it listens."""
    script = 'exec 3<&"$0"; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
    return {
        "args": ["/bin/bash", "-c", script, str(listener.fileno()), *words],
        "pass_fds": [listener.fileno()],
        "stdin": subprocess.DEVNULL,
    }
