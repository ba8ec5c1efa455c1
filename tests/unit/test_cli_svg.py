"""The drawing of a graph: well-formed, everything in it once, nothing outside or on top of another."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from jobs.cli.svg import BOX_HEIGHT, BOX_WIDTH, FILLS, ROW_BOXES, draw
from jobs.protocol.ids import JobId, uuid7
from jobs.protocol.model import GraphEdge, GraphNode, JobGraph, JobState, Reason

SVG = "{http://www.w3.org/2000/svg}"


def job(number: int) -> JobId:
    return uuid7(1_000, number)


def graph(parents: Sequence[Sequence[int]], **changes: object) -> JobGraph:
    """Return a graph of jobs by the numbers of their parents."""
    nodes = [GraphNode(id=job(n), ref=f"n{n}", state=JobState.PENDING, reason=None) for n in range(len(parents))]
    edges = [GraphEdge(parent=job(p), child=job(n)) for n, above in enumerate(parents) for p in above]
    fields: dict[str, object] = {"job": job(0), "nodes": nodes, "edges": edges, "truncated": False, **changes}
    return JobGraph(**fields)  # type: ignore[arg-type]


def boxes(drawing: ET.Element) -> dict[str, tuple[float, float]]:
    """Return the left upper corner of each box by its name."""
    found = {}
    for group in drawing.iter(f"{SVG}g"):
        rect, (name, _) = group.find(f"{SVG}rect"), group.findall(f"{SVG}text")
        assert rect is not None
        found[name.text or ""] = float(rect.attrib["x"]), float(rect.attrib["y"])
    return found


def test_every_job_and_edge_is_drawn_once_and_children_stand_below() -> None:
    # Given a diamond with a tail and an edge past a layer
    parents = [[], [0], [0], [1, 2], [3, 0]]
    drawing = ET.fromstring(draw(graph(parents)))
    found = boxes(drawing)
    assert sorted(found) == ["n0", "n1", "n2", "n3", "n4"]
    assert len(drawing.findall(f"{SVG}path")) == 6
    for child, above in enumerate(parents):
        assert all(found[f"n{child}"][1] >= found[f"n{parent}"][1] + BOX_HEIGHT for parent in above)
    titles = [title.text for title in drawing.iter(f"{SVG}title")]
    assert titles[0] == f"Jobs around {job(0)}: 5"
    assert f"n3 {job(3)} pending" in titles


def test_a_wide_layer_is_broken_into_rows_and_no_box_covers_another() -> None:
    count = 5 * ROW_BOXES + 3
    drawing = ET.fromstring(draw(graph([[], *[[0]] * count])))
    found = boxes(drawing)
    assert len(found) == count + 1
    width, height = float(drawing.attrib["width"]), float(drawing.attrib["height"])
    assert all(0 <= x <= width - BOX_WIDTH and 0 <= y <= height - BOX_HEIGHT for x, y in found.values())
    for (x1, y1), (x2, y2) in itertools.combinations(found.values(), 2):
        assert abs(x1 - x2) >= BOX_WIDTH or abs(y1 - y2) >= BOX_HEIGHT
    assert width < 2 * ROW_BOXES * BOX_WIDTH


def test_states_have_colours_and_text_cannot_break_out() -> None:
    states = [*JobState, None]
    nodes = [
        GraphNode(id=job(n), ref='<b a="1">&', state=state, reason=Reason.SIGNAL if state is JobState.FAILED else None)
        for n, state in enumerate(states)
    ]
    text = draw(graph([], nodes=nodes, edges=[], truncated=True))
    assert "<b" not in text
    drawing = ET.fromstring(text)
    rects = [group.find(f"{SVG}rect") for group in drawing.iter(f"{SVG}g")]
    assert [rect.attrib["fill"] for rect in rects if rect is not None] == list(FILLS.values())
    assert [name.text for group in drawing.iter(f"{SVG}g") for name in group.findall(f"{SVG}text")[1:]] == [
        "pending",
        "running",
        "completed",
        "failed: signal",
        "gone",
    ]
    assert "others are left out" in text


def test_names_are_cut_to_the_box_and_jobs_without_one_show_their_ids_end() -> None:
    nodes = [
        GraphNode(id=job(0), ref="r" * 128, state=JobState.RUNNING, reason=None),
        GraphNode(id=job(1), ref=None, state=JobState.RUNNING, reason=None),
    ]
    drawing = ET.fromstring(draw(graph([], nodes=nodes, edges=[])))
    assert sorted(boxes(drawing)) == ["r" * 25 + "…", "…" + job(1)[-12:]]


def test_a_job_alone_is_a_drawing_too() -> None:
    assert len(boxes(ET.fromstring(draw(graph([[]]))))) == 1
