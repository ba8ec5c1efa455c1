"""Directed graphs of what waits for what: circles, and layers to show them in. Pure; nothing recurses, because a graph
may be deep.

A graph is given as each node's parents: those that have to come first.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Final, TypeVar

SWEEPS: Final = 4
N = TypeVar("N", bound=Hashable)


def find_circle(parents: Mapping[N, Sequence[N]]) -> list[N] | None:
    """Return nodes of which each waits for the next one, the last being the first again; None when there are none."""
    done: set[N] = set()
    for root in parents:
        if root in done:
            continue
        path = [root]
        on_path = {root}
        left = [iter(parents[root])]
        while path:
            parent = next(left[-1], None)
            if parent is None:
                left.pop()
                on_path.discard(path[-1])
                done.add(path.pop())
            elif parent in on_path:
                return [*path[path.index(parent) :], parent]
            elif parent not in done:
                path.append(parent)
                on_path.add(parent)
                left.append(iter(parents.get(parent, ())))
    return None


def path_back(came_from: Mapping[N, N], node: N) -> list[N]:
    """Return the way from a node to where a search began, given from which node the search came to each."""
    path = [node]
    while node in came_from:
        node = came_from[node]
        path.append(node)
    return path


def layers(parents: Mapping[N, Sequence[N]]) -> list[list[N]]:
    """Return the nodes in layers: each stands below all of its parents, and as high as that allows.

    Within a layer they stand in the order in which they were given. Parents that are no nodes themselves are passed
    over. Raises ValueError for a graph with a circle.
    """
    children: dict[N, list[N]] = {node: [] for node in parents}
    missing: dict[N, int] = {}
    for node, above in parents.items():
        known = {parent for parent in above if parent in children}
        missing[node] = len(known)
        for parent in known:
            children[parent].append(node)
    order = {node: index for index, node in enumerate(parents)}
    made: list[list[N]] = []
    layer = [node for node in parents if not missing[node]]
    while layer:
        made.append(layer)
        below: list[N] = []
        for node in layer:
            for child in children[node]:
                missing[child] -= 1
                if not missing[child]:
                    below.append(child)
        layer = sorted(below, key=order.__getitem__)
    if sum(map(len, made)) != len(parents):
        raise ValueError("the graph has a circle")
    return made


def untangled(parents: Mapping[N, Sequence[N]]) -> list[list[N]]:
    """Return the layers with each node near its parents and children, so that few edges cross.

    Layer by layer, down and up again, nodes are put in the order of the mean place of those that they are joined to.
    """
    made = layers(parents)
    children: dict[N, list[N]] = {node: [] for node in parents}
    for node, above in parents.items():
        for parent in above:
            if parent in children:
                children[parent].append(node)
    places: dict[N, float] = {}
    for layer in made:
        _place(layer, places)
    for _ in range(SWEEPS):
        for layer in made:
            _sort(layer, parents, places)
        for layer in reversed(made):
            _sort(layer, children, places)
    return made


def _sort(layer: list[N], joined: Mapping[N, Sequence[N]], places: dict[N, float]) -> None:
    def wish(node: N) -> float:
        near = [places[other] for other in joined[node] if other in places]
        return sum(near) / len(near) if near else places[node]

    layer.sort(key=wish)
    _place(layer, places)


def _place(layer: Sequence[N], places: dict[N, float]) -> None:
    """Give every layer the same width, so that places in different layers can be compared."""
    for index, node in enumerate(layer):
        places[node] = (index + 0.5) / len(layer)
