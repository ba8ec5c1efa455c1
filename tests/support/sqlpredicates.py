"""Random predicates over columns, whose literals are values that are there or near to them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

COMPARISONS = ("=", "!=", "<", "<=", ">", ">=")


def literal(value: Any) -> str:
    """Return a value as SQL that both engines understand alike."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, datetime):
        return f"TIMESTAMPTZ '{value.isoformat()}'"
    if isinstance(value, date):
        return f"DATE '{value.isoformat()}'"
    if isinstance(value, Decimal):
        # Without a cast it is a double to one engine, and compared as that.
        return f"CAST('{value}' AS DECIMAL(18, 3))"
    if isinstance(value, int):
        return str(value)
    assert isinstance(value, float)
    return f"CAST({value!r} AS DOUBLE)"


def predicates(columns: dict[str, Sequence[Any]]) -> st.SearchStrategy[str]:
    """Return predicates over columns, given values of each; at least one of each is not None."""
    leaves = st.one_of(
        [_leaf(name, [value for value in values if value is not None]) for name, values in columns.items()]
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(" ".join).map(lambda text: f"({text})"),
            inner.map(lambda text: f"(NOT {text})"),
        ),
        max_leaves=6,
    )


def _leaf(name: str, values: Sequence[Any]) -> st.SearchStrategy[str]:
    some = st.sampled_from(values)
    if isinstance(values[0], str):
        some = st.one_of(some, some.map(lambda text: text[: len(text) // 2]), some.map(lambda text: text + "0"))
    elif isinstance(values[0], int) and not isinstance(values[0], bool):
        some = st.one_of(some, st.tuples(some, st.integers(-2, 2)).map(sum))
    literals = some.map(literal)
    kinds = [
        st.tuples(st.sampled_from(COMPARISONS), literals).map(lambda pair: f"{name} {pair[0]} {pair[1]}"),
        st.tuples(literals, st.sampled_from(COMPARISONS)).map(lambda pair: f"{pair[0]} {pair[1]} {name}"),
        st.tuples(st.sampled_from(["", "NOT "]), st.lists(literals, min_size=1, max_size=5)).map(
            lambda pair: f"{name} {pair[0]}IN ({', '.join(pair[1])})"
        ),
        st.tuples(st.sampled_from(["", "NOT "]), literals, literals).map(
            lambda three: f"{name} {three[0]}BETWEEN {three[1]} AND {three[2]}"
        ),
        st.sampled_from([f"{name} IS NULL", f"{name} IS NOT NULL"]),
    ]
    if isinstance(values[0], bool):
        kinds = [st.sampled_from([name, f"NOT {name}", f"{name} = true", f"{name} != true", f"{name} IS NULL"])]
    if isinstance(values[0], str):
        patterns = st.one_of(
            some.map(lambda text: text[:3] + "%"),
            some.map(lambda text: "%" + text[-3:]),
            some.map(lambda text: text[:2] + "_" + text[3:]),
            some.map(lambda text: text[:4] + "%" + text[-1:]),
            st.just("%"),
        )
        kinds += [
            st.tuples(st.sampled_from(["", "NOT "]), patterns.map(literal)).map(
                lambda pair: f"{name} {pair[0]}LIKE {pair[1]}"
            ),
            literals.map(lambda text: f"starts_with({name}, {text})"),
            st.integers(0, 40).map(lambda length: f"length({name}) > {length}"),
        ]
    return st.one_of(kinds)
