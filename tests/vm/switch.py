"""The network between virtual machines: a frame goes to all the others, or to nobody where a test has cut the wire."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from pathlib import Path
from typing import Final, Self

FRAME_BYTES: Final = 65_536


class Switch:
    """One Ethernet, over Unix sockets of a directory: nothing of it is on this machine's own network."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports: dict[str, socket.socket] = {}
        self._cut: set[str] = set()
        self._selector = selectors.DefaultSelector()
        self._stop, self._stopped = socket.socketpair()
        self._selector.register(self._stopped, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._pass_on, name="switch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.close()
        self._thread.join()
        for made in (*self._ports.values(), self._stopped):
            made.close()

    def port(self, name: str, number: int) -> list[str]:
        """Return the arguments for QEMU of a machine with this name and number on the network."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.setblocking(False)
        listener.bind(str(self._switch(name)))
        self._ports[name] = listener
        self._selector.register(listener, selectors.EVENT_READ, name)
        ends = f"local.type=unix,local.path={self._machine(name)},remote.type=unix,remote.path={self._switch(name)}"
        device = f"virtio-net-pci,netdev=net,mac=52:54:00:00:00:{number:02x},romfile="
        return ["-netdev", f"dgram,id=net,{ends}", "-device", device]

    def cut(self, name: str) -> None:
        """Take a machine off the network."""
        self._cut.add(name)

    def mend(self, name: str) -> None:
        self._cut.discard(name)

    def _switch(self, name: str) -> Path:
        return self._directory / f"{name}.switch"

    def _machine(self, name: str) -> Path:
        return self._directory / f"{name}.net"

    def _pass_on(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                # A frame that cannot be delivered is lost, as on a wire.
                with contextlib.suppress(OSError):
                    self._forward(key.data, self._ports[key.data].recv(FRAME_BYTES))

    def _forward(self, source: str, frame: bytes) -> None:
        for name in list(self._ports):
            if name != source and not {name, source} & self._cut:
                with contextlib.suppress(OSError):
                    self._ports[name].sendto(frame, str(self._machine(name)))
