"""Clusters of real nodes on a network of their own, each node in a namespace of its own, and links between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Final

from jobs.protocol.model import LinkScopes
from jobs.testing import EmbeddedCluster, EmbeddedNode
from tests.cluster.namespaces import Network

PORT: Final = 7420
ALL: Final = LinkScopes(read=["/data/"], write=["/data/"], read_tags=[""], write_tags=[""])


class ApartCluster(EmbeddedCluster):
    """Its nodes are in the namespaces from number `first` on."""

    def __init__(
        self,
        directory: Path,
        net: Network,
        *,
        first: int,
        size: int,
        types: Sequence[str] = ("replication",),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.net = net
        self.numbers: dict[str, int] = {}
        """Which namespace each node is in, by name."""
        self._first = first
        super().__init__(directory, size, env=env, types=types)

    def add(self, name: str, *, env: Mapping[str, str] | None = None) -> EmbeddedNode:
        assert name not in self.nodes
        number = self.numbers[name] = self._first + len(self.nodes)
        own = {"JOBS_NODE__ID": name, "JOBS_CLUSTER__LISTEN": f'["{self.net.address(number)}:{PORT}"]', **(env or {})}
        made = self.nodes[name] = EmbeddedNode(
            self.directory / name, env={**self._env, **own}, types=self._types, prefix=self.net.inside(number)
        )
        return made

    def link(self, name: str, other: ApartCluster, scopes: LinkScopes = ALL) -> None:
        """Make a link to another cluster, which may do this here."""
        with other.client() as there:
            invitation = there.replication.invitation().invitation
        with self.client() as here:
            here.replication.link(name, invitation, scopes)

    def part(self, other: ApartCluster) -> None:
        """Lose all that goes from one cluster to the other, both ways."""
        for one, far in product(self.numbers.values(), other.numbers.values()):
            self.net.lose(one, far)
            self.net.lose(far, one)
