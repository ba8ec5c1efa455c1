"""Sessions are made ahead and made light: no query is to notice, not by what it may, nor by what it can call."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from jobs import Client, QueryFailed, SqlLimits
from jobs.testing import EmbeddedNode

MEBIBYTE = 1 << 20
SORTED = (
    "SELECT max(n) AS n FROM (SELECT row_number() OVER (ORDER BY value % 1001) AS n FROM generate_series(1, 1000000))"
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    """One whose queries all have the same process."""
    directory = tmp_path_factory.mktemp("sessions")
    env = {"JOBS_WORKERS__SQL__SPILL_DIR": str(directory / "spill"), "JOBS_WORKERS__SQL__SLOTS": "1"}
    with EmbeddedNode(directory / "node", types=("sql",), env=env) as made:
        yield made


@pytest.fixture
def client(node: EmbeddedNode) -> Iterator[Client]:
    with node.client() as made:
        yield made


ROW = b"""{"a": 1, "s": "x", "l": [1, 2], "st": {"f": 1}, "current_date": 5}"""


@pytest.mark.parametrize(
    "expression",
    [
        "a, s, l, st",
        "st.f",
        "t.st.f",
        "st['f']",
        "l[1]",
        "l[1:2]",
        "l[a]",
        "[1, 2]",
        "array[1, 2]",
        "{'a': 1}",
        "map {'a': 1}",
        "l @> [1]",
        "[1] <@ l",
        "l || [3]",
        "l || 3",
        "3 || l",
        "s || 'a'",
        "s LIKE 'a%'",
        "s ILIKE '%a'",
        "s SIMILAR TO 'a'",
        "s ~* 'a'",
        "s !~ 'a'",
        "s IS NOT DISTINCT FROM 'x'",
        "a BETWEEN 0 AND 2",
        "-a",
        "a % 2",
        "a & 1",
        "a << 1",
        "a / 2",
        "NOT true",
        "s::varchar",
        "INTERVAL '1 day'",
        "DATE '2020-01-01' + INTERVAL '1 day'",
        "TIMESTAMP '2020-01-01' AT TIME ZONE 'UTC'",
        "current_date",
        "current_timestamp IS NULL",
        "CASE a WHEN 1 THEN 'x' END",
        "x'00'",
        'a AS "abs"',
        "NULL",
    ],
)
def test_what_has_no_brackets_is_the_same_within_some(client: Client, expression: str) -> None:
    """A statement without brackets has a session without the functions that it does not name."""
    alone, within = (
        client.sql(statement, files={"t": ("json", ROW)})
        for statement in (f"SELECT {expression} FROM t ORDER BY 1", f"SELECT * FROM (SELECT {expression} FROM t)")
    )
    assert alone.rows() == within.rows()
    assert alone.columns == within.columns


def test_a_look_up_leaves_the_next_query_all_functions(client: Client) -> None:
    client.sql("SELECT key FROM kv WHERE key = '/data/a'")
    assert client.sql("SELECT upper('a') AS x").rows() == [{"x": "A"}]
    client.sql("SELECT key FROM kv WHERE key = '/data/a'")
    assert {"upper", "sum"} <= {row["function_name"] for row in client.sql("SHOW FUNCTIONS").rows()}


def test_each_query_has_its_own_bounds(client: Client) -> None:
    """Whatever those of the query before it were, for which a session of the same bounds was made ahead."""
    little = SqlLimits(memory_bytes=MEBIBYTE, spill_bytes=0)
    for _ in range(2):
        assert client.sql(SORTED).rows() == [{"n": 1_000_000}]
        for _ in range(2):
            with pytest.raises(QueryFailed, match="Memory Exhausted"):
                client.sql(SORTED, limits=little)


def test_no_query_has_settings_of_another(client: Client) -> None:
    show = "SHOW datafusion.execution.batch_size"
    before = client.sql(show).rows()
    with pytest.raises(QueryFailed):
        client.sql("SET datafusion.execution.batch_size = 7")
    assert client.sql(show).rows() == before


def test_a_session_made_ahead_knows_what_time_it_is(client: Client) -> None:
    for _ in range(3):
        asked = datetime.now(UTC)
        (row,) = client.sql("SELECT CAST(now() AS TIMESTAMP(6)) AS at").rows()
        assert row["at"].replace(tzinfo=UTC) >= asked


def test_without_a_place_to_spill_queries_fail_and_their_process_stays(client: Client, node: EmbeddedNode) -> None:
    client.sql("SELECT 1 AS one")
    (place,) = (node.directory.parent / "spill").glob("jobs-sql-*/*")
    place.rmdir()
    place.touch()
    told = []
    for _ in range(3):
        try:
            client.sql("SELECT 1 AS one")
        except QueryFailed as error:
            told.append(str(error))
    assert len(told) >= 2
    assert all("Not a directory" in text for text in told), told
    place.unlink()
    place.mkdir()
    assert client.sql("SELECT 1 AS one").rows() == [{"one": 1}]
    assert place.exists(), "the process was another one, with another place"
