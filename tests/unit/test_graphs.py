"""Circles and layers of graphs, small and large, against what is plain to see of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.graphs import find_circle, layers, path_back, untangled

Graph = dict[int, list[int]]
NODES = 12

any_graph = st.dictionaries(st.integers(0, NODES), st.lists(st.integers(0, NODES), max_size=4), max_size=NODES)


@st.composite
def tree_like(draw: st.DrawFn) -> Graph:
    """Draw a graph without circles: parents have lower numbers, though not everything stands in that order."""
    graph = {node: draw(st.lists(st.integers(0, node - 1), max_size=4)) if node else [] for node in range(NODES)}
    order = draw(st.permutations(range(NODES)))
    return {node: graph[node] for node in order}


def reaches(graph: Mapping[int, Sequence[int]], start: int) -> set[int]:
    found: set[int] = set()
    left = list(graph.get(start, ()))
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += graph.get(node, ())
    return found


@given(any_graph)
def test_a_circle_is_found_exactly_when_a_node_reaches_itself(graph: Graph) -> None:
    circle = find_circle(graph)
    if circle is None:
        assert not any(node in reaches(graph, node) for node in graph)
    else:
        assert circle[0] == circle[-1]
        assert len(set(circle)) == len(circle) - 1
        assert all(parent in graph[node] for node, parent in itertools.pairwise(circle))


@given(tree_like())
def test_a_layer_is_below_all_parents_and_as_high_as_can_be(graph: Graph) -> None:
    assert find_circle(graph) is None
    made = layers(graph)
    level = {node: number for number, layer in enumerate(made) for node in layer}
    assert sorted(level) == sorted(graph)
    for node, parents in graph.items():
        assert level[node] == max((level[parent] + 1 for parent in parents), default=0)
    place = {node: index for index, node in enumerate(graph)}
    assert all(layer == sorted(layer, key=place.__getitem__) for layer in made)
    # What is drawn has the same layers, in another order each
    assert [sorted(layer) for layer in untangled(graph)] == [sorted(layer) for layer in made]


def test_a_graph_with_a_circle_has_no_layers() -> None:
    with pytest.raises(ValueError, match="circle"):
        layers({1: [2], 2: [1], 3: []})


def test_parents_that_are_not_shown_are_passed_over() -> None:
    assert layers({1: [99], 2: [1, 98]}) == [[1], [2]]
    assert untangled({1: [99], 2: [1, 98]}) == [[1], [2]]


def test_layers_are_untangled() -> None:
    # Given two pairs whose children stand crosswise
    assert untangled({"a": [], "b": [], "of b": ["b"], "of a": ["a"]})[1] == ["of a", "of b"]


def test_depth_is_no_matter() -> None:
    deep = {node: [node - 1] if node else [] for node in range(100_000)}
    assert find_circle(deep) is None
    assert len(layers(deep)) == len(untangled(deep)) == 100_000
    deep[0] = [99_999]
    circle = find_circle(deep)
    assert circle is not None
    assert len(circle) == 100_001


def test_the_way_back_ends_where_the_search_began() -> None:
    assert path_back({"c": "b", "b": "a"}, "c") == ["c", "b", "a"]
    assert path_back({}, "a") == ["a"]
