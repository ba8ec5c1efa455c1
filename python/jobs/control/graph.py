"""The jobs around a job: what it depends on and what depends on it, the nearest first, up to a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from jobs.control.dependencies import children_of, parents_of
from jobs.control.transitions import read_job
from jobs.protocol.ids import JobId
from jobs.protocol.model import GraphEdge, GraphNode, JobGraph
from jobs.store import Store

_Next = Callable[[JobId, int], tuple[list[JobId], bool]]

MAX_EDGES: Final = 10_000


class Graphs:
    """Reads graphs out of the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def around(self, job: JobId, limit: int) -> JobGraph:
        """Return at most `limit` jobs: ancestors and descendants of one, itself included."""
        found, truncated = self._walk(job, limit)
        nodes = [self._node(one) for one in found]
        edges: list[GraphEdge] = []
        for child in found:
            edges += (
                GraphEdge(parent=parent, child=child) for parent in parents_of(self._store, child) if parent in found
            )
        truncated = truncated or len(edges) > MAX_EDGES
        return JobGraph(job=job, nodes=nodes, edges=edges[:MAX_EDGES], truncated=truncated)

    def _walk(self, job: JobId, limit: int) -> tuple[dict[JobId, None], bool]:
        """Find the jobs, and whether some were left out."""
        found: dict[JobId, None] = {job: None}
        left: deque[tuple[JobId, _Next]] = deque([(job, self._parents), (job, self._children)])
        truncated, edges = False, 0
        while left and edges < MAX_EDGES:
            node, following = left.popleft()
            others, more = following(node, min(limit, MAX_EDGES - edges))
            edges += len(others)
            fresh = [other for other in others if other not in found]
            room = limit - len(found)
            truncated = truncated or more or len(fresh) > room
            for other in fresh[:room]:
                found[other] = None
                left.append((other, following))
        return found, truncated or bool(left)

    def _parents(self, job: JobId, limit: int) -> tuple[list[JobId], bool]:
        return parents_of(self._store, job), False

    def _children(self, job: JobId, limit: int) -> tuple[list[JobId], bool]:
        return children_of(self._store, job, limit)

    def _node(self, job: JobId) -> GraphNode:
        stored = read_job(self._store, job)
        if stored is None:
            return GraphNode(id=job, ref=None, state=None, reason=None)
        record = stored.record
        return GraphNode(id=job, ref=record.ref, state=record.state, reason=record.reason)
