"""Nodes with their workers as real processes, each with a network namespace, a small disk and a clock of its own; and
what can be done to them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Final, TypeVar

from jobs.client import Client
from jobs.errors import JobsError, MembershipConflict, NotFound
from jobs.testing import EmbeddedCluster, EmbeddedNode, NodeFailed
from tests.cluster import damage
from tests.cluster.disks import Disks
from tests.cluster.namespaces import Network, network, run
from tests.support.processes import Process, descendants, present

PORT: Final = 7420
MACHINE_SOURCE: Final = Path(__file__).with_name("machine.c")
BALLAST: Final = "ballast"
CHANGE_S: Final = 90.0
"""Time for one change of the members, whatever goes wrong meanwhile."""
ASK_S: Final = 1.0
POLL_S: Final = 0.05

T = TypeVar("T")


class Members(EmbeddedCluster):
    """The nodes `n1`, `n2`, …; a single one is a cluster of one. One more has its place, to join."""

    def __init__(self, directory: Path, net: Network, disks: Disks, size: int) -> None:
        self.net = net
        self._disks = disks
        self._machine_library = build_machine(directory)
        self._inside: set[int] = set()
        """Numbers of those who are members, or about to be."""
        self.beginning: set[int] = set()
        """Of them, those whose disk is being taken away and whose process is not there yet."""
        self._seen: set[Process] = set()
        """Every process that was below a node when it was killed."""
        super().__init__(directory, size)
        self.spare = size + 1

    def add(self, name: str) -> EmbeddedNode:
        assert name not in self.nodes
        number = int(name[1:])
        self._inside.add(number)
        self._disks.make(name)
        env = {
            "JOBS_NODE__ID": name,
            "JOBS_CLUSTER__LISTEN": f'["{self.net.address(number)}:{PORT}"]',
            "JOBS_WORKERS__LEASE_S": "5",
            # Small, so that logs are cut and members catch up by snapshots.
            "JOBS_LOG__SEGMENT_BYTES": "1MiB",
            "JOBS_LOG__SNAPSHOT_LOG_BYTES": "1MiB",
        }
        if self._machine_library is not None:
            self.set_machine(number)
            env |= {"LD_PRELOAD": str(self._machine_library), "JOBS_TEST_MACHINE": str(self._machine_file(number))}
        made = self.nodes[name] = EmbeddedNode(self.directory / name, env=env, prefix=self.net.inside(number))
        return made

    def numbers(self) -> list[int]:
        return sorted(self._inside)

    def node(self, number: int) -> EmbeddedNode:
        return self.nodes[f"n{number}"]

    def sockets(self) -> list[Path]:
        return [self.node(number).socket for number in self.numbers()]

    def leader_number(self) -> int:
        """Return the number of the node that leads. Raises NodeFailed when none does in time."""
        return int(self.leader().directory.name[1:])

    # --- processes --------------------------------------------------------------------------------------------------

    def kill(self, number: int) -> None:
        node = self.node(number)
        if node.is_running:
            self._seen.update(self.below(number))
            node.kill()

    def restart(self, number: int) -> None:
        if not self.node(number).is_running:
            self.node(number).start(wait=False)

    def ended(self) -> dict[int, str]:
        """Return the nodes whose process has ended though nobody told it to, and how."""
        found = {}
        for number in self.numbers():
            if self.node(number).is_running:
                end = os.waitid(os.P_PID, self.node(number).pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if end is not None:
                    found[number] = f"{'exit code' if end.si_code == os.CLD_EXITED else 'signal'} {end.si_status}"
        return found

    def revive(self, number: int) -> None:
        """Start a node again whose process has ended by itself."""
        if number in self.ended():
            self.kill(number)
            self.restart(number)

    def freeze(self, number: int) -> None:
        """Stop the node's process, as a host that swaps or a virtual machine that is moved does."""
        os.kill(self.node(number).pid, signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        os.kill(self.node(number).pid, signal.SIGCONT)

    def below(self, number: int) -> list[Process]:
        """Return every process below a node."""
        try:
            return present(descendants(self.node(number).pid))
        except OSError:  # the node has ended by itself
            return []

    def processes(self) -> list[Process]:
        """Return every process that there is below the nodes, or was when one was killed."""
        running = (number for number in self.numbers() if self.node(number).is_running)
        return [*self._seen, *(process for number in running for process in self.below(number))]

    # --- machines ---------------------------------------------------------------------------------------------------

    @property
    def no_power_cuts(self) -> str:
        """Why power cannot be cut here, "" when it can."""
        return self._disks.missing

    def fill_disk(self, number: int) -> None:
        """Leave no room on the node's disk."""
        with contextlib.suppress(OSError), (self.node(number).directory / BALLAST).open("ab", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass

    def free_disk(self, number: int) -> None:
        (self.node(number).directory / BALLAST).unlink(missing_ok=True)

    def cut_power(self, *numbers: int) -> None:
        """Let machines go down at once, with all that had not reached their disks."""
        for number in numbers:
            self._disks.cut_power(f"n{number}")
        for number in numbers:
            self.kill(number)
            self._disks.plug_in(f"n{number}")

    def set_machine(self, number: int, *, ahead_s: int = 0, sync_s: float = 0.0) -> None:
        """Let the node's wall clock jump, and those of its workers; let each sync of its disk take longer."""
        path = self._machine_file(number)
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(struct.pack("=qq", ahead_s, int(sync_s * 1e6)))

    def _machine_file(self, number: int) -> Path:
        return self.directory / f"n{number}.machine"

    def tear_log(self, number: int, noise: bytes) -> None:
        assert not self.node(number).is_running
        damage.tear_log(self.node(number).directory, noise)

    def damage_log(self, number: int, chance: Random) -> bool:
        assert not self.node(number).is_running
        return damage.damage_log(self.node(number).directory, chance)

    def damage_store(self, number: int, chance: Random) -> None:
        assert not self.node(number).is_running
        damage.damage_store(self.node(number).directory, chance)

    def damage_snapshot(self, number: int, chance: Random) -> bool:
        """Damage the newest snapshot, and let it be needed: the operating system went down with the store open."""
        assert not self.node(number).is_running
        self._disks.boot_anew(f"n{number}")
        return damage.damage_snapshot(self.node(number).directory, chance)

    # --- members ----------------------------------------------------------------------------------------------------

    def swap(self, leaving: int) -> None:
        """Let a fresh node join, and then remove another one, which runs on as one that belongs nowhere."""
        fresh = self.spare
        self._let_join(fresh)
        self._remove(leaving)
        self.spare = leaving

    def lose_disk(self, number: int) -> None:
        """Take a member's disk away, remove the member, and let its node join anew: by its name, with another key."""
        self.beginning.add(number)
        self.kill(number)
        self._remove(number)
        self._let_join(number)

    def retire(self) -> None:
        """End the node that was removed last."""
        if f"n{self.spare}" in self.nodes:
            self.kill(self.spare)

    def transfer(self, to: int | None) -> None:
        """Let another lead. Raises JobsError where that did not come about."""
        with Client(str(self.leader().socket), patience_s=ASK_S) as client:
            client.cluster.transfer(None if to is None else f"n{to}")

    def _let_join(self, number: int) -> None:
        """Start a node on an empty disk, and let it join until it has its vote."""
        name = f"n{number}"
        self.beginning.add(number)
        if name in self.nodes:
            self._disks.make(name)
            self._inside.add(number)
        else:
            self.add(name)
        self.restart(number)
        self.beginning.discard(number)
        deadline = time.monotonic() + CHANGE_S
        while not self._joins(number):
            assert time.monotonic() < deadline, f"{name} got no vote in time:\n{self.node(number).log_tail()}"
            time.sleep(POLL_S)

    def _joins(self, number: int) -> bool:
        """Go one step towards the vote of a node; tell whether it has it."""
        try:
            with Client(str(self.node(number).socket), patience_s=ASK_S) as client:
                view = client.cluster.view()
                if view.state == "unformed":
                    ticket = self._ask_another(number, lambda other: other.cluster.ticket(CHANGE_S)).ticket
                    try:
                        client.cluster.join(ticket)
                    except MembershipConflict:
                        # It was let in, and died before it knew: it has to go before it can join by another ticket.
                        self._remove(number)
                return any(one.id == view.id and one.role == "voter" for one in view.members)
        except JobsError:
            return False

    def _remove(self, number: int) -> None:
        self._inside.discard(number)
        name = f"n{number}"

        def remove(client: Client) -> None:
            with contextlib.suppress(NotFound):  # an answer was lost
                client.cluster.remove(name)

        self._ask_another(number, remove)

    def _ask_another(self, number: int, ask: Callable[[Client], T]) -> T:
        """Ask the members but one, by turns, until one of them has done it."""
        deadline = time.monotonic() + CHANGE_S
        while True:
            for other in self.numbers():
                if other == number:
                    continue
                try:
                    with Client(str(self.node(other).socket), patience_s=ASK_S) as client:
                        return ask(client)
                except JobsError as error:
                    failure = error
            if time.monotonic() > deadline:
                raise NodeFailed(f"no member has done it in time: {failure}")
            time.sleep(POLL_S)


def build_machine(directory: Path) -> Path | None:
    """Build the library that gives a process a wall clock and a disk of its own; None without a C compiler."""
    if shutil.which("cc") is None:
        return None
    library = directory / "machine.so"
    run("cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(MACHINE_SOURCE), "-ldl")
    return library


@contextlib.contextmanager
def members(directory: Path, size: int) -> Iterator[Members]:
    """Run a cluster for as long as the context lasts."""
    with network(size + 1) as net:
        disks = Disks(directory)
        try:
            with Members(directory, net, disks, size) as made:
                yield made
        finally:
            disks.unmount_all()
