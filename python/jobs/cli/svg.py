"""Draws a graph of jobs as SVG: parents above their children, a box a job, coloured by its state. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from xml.sax.saxutils import escape

from jobs import graphs
from jobs.cli.graph import parents_of, state_of
from jobs.protocol.ids import JobId
from jobs.protocol.model import GraphNode, JobGraph

BOX_WIDTH: Final = 200
BOX_HEIGHT: Final = 44
GAP: Final = 20
LAYER_GAP: Final = 60
MARGIN: Final = 20
ROW_BOXES: Final = 16
"""A wider layer is broken into rows."""
NAME_CHARS: Final = 26
ID_CHARS: Final = 12
"""From the end of an id: its beginning is the time, which jobs of one request share."""
FILLS: Final = {
    "pending": "#dfe4ea",
    "running": "#bcd9ff",
    "completed": "#c4e8c5",
    "failed": "#f8c4bf",
    "gone": "#ffffff",
}
_ARROW: Final = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M0 0 8 4 0 8z" fill="#7a828c"/></marker></defs>'
)
_Places = dict[JobId, tuple[float, float]]
"""Left upper corners."""


def draw(graph: JobGraph) -> str:
    """Return the drawing as one XML document."""
    nodes = {node.id: node for node in graph.nodes}
    places, width, height = _layout(graphs.untangled(parents_of(graph)))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" font-size="13" text-anchor="middle">',
        f"<title>{escape(_title(graph))}</title>",
        _ARROW,
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
        *(_edge(places[edge.parent], places[edge.child]) for edge in graph.edges),
        *(line for job, place in places.items() for line in _box(nodes[job], place, asked=job == graph.job)),
        "</svg>",
    ]
    return "\n".join(lines)


def _title(graph: JobGraph) -> str:
    left_out = "; others are left out" if graph.truncated else ""
    return f"Jobs around {graph.job}: {len(graph.nodes)}{left_out}"


def _layout(layers: Sequence[Sequence[JobId]]) -> tuple[_Places, float, float]:
    """Return where each box stands, and the size of the whole."""
    rows = [
        (layer[start : start + ROW_BOXES], start > 0) for layer in layers for start in range(0, len(layer), ROW_BOXES)
    ]
    widest = max(len(row) for row, _ in rows)
    width = widest * (BOX_WIDTH + GAP) - GAP + 2 * MARGIN
    places: _Places = {}
    y = float(MARGIN)
    for index, (row, continues) in enumerate(rows):
        if index:
            y += BOX_HEIGHT + (GAP if continues else LAYER_GAP)
        x = (width - (len(row) * (BOX_WIDTH + GAP) - GAP)) / 2
        for job in row:
            places[job] = (x, y)
            x += BOX_WIDTH + GAP
    return places, width, y + BOX_HEIGHT + MARGIN


def _edge(parent: tuple[float, float], child: tuple[float, float]) -> str:
    x1, y1 = parent[0] + BOX_WIDTH / 2, parent[1] + BOX_HEIGHT
    x2, y2 = child[0] + BOX_WIDTH / 2, child[1]
    bend = (y2 - y1) / 2
    path = f"M{x1:g} {y1:g}C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}"
    return f'<path d="{path}" fill="none" stroke="#7a828c" marker-end="url(#arrow)"/>'


def _box(node: GraphNode, place: tuple[float, float], *, asked: bool) -> Iterator[str]:
    state, (x, y) = state_of(node), place
    full = f"{node.ref} " if node.ref is not None else ""
    name = node.ref if node.ref is not None else f"…{node.id[-ID_CHARS:]}"
    shown = name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 1]}…"
    said = state if node.reason is None else f"{state}: {node.reason}"
    border = 'stroke="#1f2328" stroke-width="3"' if asked else 'stroke="#7a828c"'
    dashes = ' stroke-dasharray="4 3"' if state == "gone" else ""
    middle = x + BOX_WIDTH / 2
    yield f"<g><title>{escape(f'{full}{node.id} {said}')}</title>"
    size = f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}"'
    yield f'<rect x="{x:g}" y="{y:g}" {size} rx="6" fill="{FILLS[state]}" {border}{dashes}/>'
    yield f'<text x="{middle:g}" y="{y + 18:g}" font-weight="bold">{escape(shown)}</text>'
    yield f'<text x="{middle:g}" y="{y + 35:g}" font-size="11">{escape(said)}</text></g>'
