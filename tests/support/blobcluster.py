"""Real nodes that form a cluster, and their parts in the blobs driven by a test."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from jobs.testing import EmbeddedCluster, EmbeddedNode, free_port

MODULE: Final = "tests.support.blobnode"
STEP_S: Final = 60.0
POLL_S: Final = 0.05


class Refused(Exception):
    """An order came to nothing."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class BlobNode(EmbeddedNode):
    def orders(self, timeout_s: float = STEP_S, **order: Any) -> Iterator[dict[str, Any]]:
        """Yield what is told of an order, its end last. Closing it gives the order up. Raises Refused, and OSError when
        the node goes."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(self.directory / "drive.sock"))
            connection.sendall(json.dumps(order).encode() + b"\n")
            with connection.makefile("rb") as lines:
                for line in lines:
                    news = json.loads(line)
                    if "error" in news:
                        raise Refused(news["error"], news["detail"])
                    yield news
                    if "end" in news:
                        return
        raise ConnectionResetError("the node has gone")

    def order(self, **order: Any) -> Any:
        """Return what an order comes to."""
        return list(self.orders(**order))[-1]["end"]

    def perform(self, operation: str, **payload: Any) -> Any:
        """Return the result of an operation."""
        return self.order(do="perform", payload={"operation": operation, **payload})

    def add(self, size: int, seed: int, **more: Any) -> Any:
        """Return the hash of a blob that was added, and the nodes that have it."""
        (added,) = self.order(do="add", size=size, seed=seed, **more)
        return added

    def has(self, blob: str) -> bool:
        return (self.directory / "data" / "blobs" / "data" / blob[:2] / blob).exists()


class BlobCluster(EmbeddedCluster):
    """Nodes without workers."""

    def __init__(self, directory: Path, size: int = 3, *, env: Mapping[str, str] | None = None) -> None:
        own = {"JOBS_BLOBS__MIN_FREE_BYTES": "0", "JOBS_BLOBS__GRACE_S": "1", **(env or {})}
        super().__init__(directory, size, env=own, types=())

    def add(self, name: str, *, env: Mapping[str, str] | None = None) -> EmbeddedNode:
        assert name not in self.nodes
        own = {"JOBS_NODE__ID": name, "JOBS_CLUSTER__LISTEN": f'["{self.listen(name)}"]', **(env or {})}
        made = self.nodes[name] = BlobNode(
            self.directory / name, env={**self._env, **own}, types=(), prefix=self.prefix(name), module=MODULE
        )
        return made

    def listen(self, name: str) -> str:
        return f"127.0.0.1:{free_port()}"

    def prefix(self, name: str) -> tuple[str, ...]:
        return ()

    def node(self, name: str) -> BlobNode:
        node = self.nodes[name]
        assert isinstance(node, BlobNode)
        return node

    def leading(self) -> BlobNode:
        node = self.leader()
        assert isinstance(node, BlobNode)
        return node

    def followers(self) -> list[BlobNode]:
        leader = self.leading()
        return [node for node in self.nodes.values() if isinstance(node, BlobNode) and node is not leader]

    def holders(self, blob: str) -> list[str]:
        """Return the names of the nodes that have a blob on their disks."""
        return sorted(name for name in self.nodes if self.node(name).has(blob))


def until(holds: Callable[[], Any], timeout_s: float = STEP_S) -> None:
    """Wait until it holds; what raises does not."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = holds()
        except (OSError, Refused) as error:
            last = error
        else:
            if last:
                return
        time.sleep(POLL_S)
    raise AssertionError(f"it did not hold within {timeout_s:g} s: {last}")
