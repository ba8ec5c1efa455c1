"""The table `kv`: what it shows, and that what a query does not want is not read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from jobs._native import CompactedError, FutureRevisionError, NativeError, SqlSnapshot, Store
from jobs.store import Compact, Delete, LeaseGrant, Op, Put
from tests.support.sqlstore import answer, open_session, plan, table_of, write

ROWS = 20_000
VALUE = b"v" * 100


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 keys of 100 bytes, and some others."""
    directory = tmp_path_factory.mktemp("store")
    ops: list[Op] = [Put(b"/data/n/%06d" % number, VALUE) for number in range(ROWS)]
    ops += [LeaseGrant(7, 5_000), Put(b"/data/leased", b"x", 7), Put(b"/system/key", b"secret")]
    write(directory, ops)
    return directory


def test_every_column_is_as_the_store_has_it(filled: Path) -> None:
    with open_session(filled) as (snapshot, context):
        assert pa.schema(snapshot.table("kv", owner=None).schema).names == [
            "key", "value", "version", "create_revision", "mod_revision", "lease_id", "lease_ttl_ms", "expires_at",
        ]  # fmt: skip
        assert answer(context, "SELECT * FROM kv WHERE key = '/data/leased'") == [
            {
                "key": "/data/leased", "value": b"x", "version": 1, "create_revision": snapshot.revision,
                "mod_revision": snapshot.revision, "lease_id": 7, "lease_ttl_ms": 5_000, "expires_at": None,
            }
        ]  # fmt: skip
        plain = "SELECT lease_id, lease_ttl_ms FROM kv WHERE key = '/system/key'"
        assert answer(context, plain) == [{"lease_id": None, "lease_ttl_ms": None}]


def test_all_rows_are_counted_and_summed(filled: Path) -> None:
    with open_session(filled) as (_, context):
        query = (
            "SELECT count(*) AS n, count(DISTINCT key) AS keys, sum(octet_length(encode(value, 'hex'))) AS hex FROM kv"
        )
        assert answer(context, query) == [{"n": ROWS + 2, "keys": ROWS + 2, "hex": 2 * (ROWS * 100 + 7)}]


@pytest.mark.parametrize(
    ("where", "rows", "looked_at"),
    [
        ("key = '/data/n/000777'", 1, 1),
        ("'/data/n/000777' = key", 1, 1),
        ("key IN ('/data/n/000001', '/data/n/019999', '/data/none')", 2, 2),
        ("key LIKE '/data/n/0001%'", 100, 100),
        ("starts_with(key, '/data/n/0001')", 100, 100),
        ("key BETWEEN '/data/n/000010' AND '/data/n/000019'", 10, 10),
        ("key > '/data/n/000010' AND key <= '/data/n/000019'", 9, 9),
        ("key < '/data/n/000003' AND key >= '/data/n/'", 3, 3),
        ("key = '/data/n/000001' OR key LIKE '/data/n/00000_'", 10, 10),
        ("key LIKE '/data/n/00%5'", 1_000, 10_000),
        ("key LIKE '/data/n/0000%' AND key != '/data/n/000000'", 99, 100),
        ("key NOT LIKE '/data/n/%' AND key LIKE '/data/%'", 1, ROWS + 1),
        ("key = '/data/n/000001' AND mod_revision < 0", 0, 1),
    ],
)
def test_only_the_keys_that_can_match_are_looked_at(filled: Path, where: str, rows: int, looked_at: int) -> None:
    with open_session(filled) as (snapshot, context):
        assert answer(context, f"SELECT count(*) AS n FROM (SELECT key FROM kv WHERE {where})") == [{"n": rows}]
        assert snapshot.rows_read == looked_at


def test_values_are_not_read_unless_they_are_wanted(filled: Path) -> None:
    with open_session(filled) as (snapshot, context):
        answer(context, "SELECT max(mod_revision) FROM kv WHERE key LIKE '/data/n/%'")
        without = snapshot.bytes_read
        answer(context, "SELECT max(value) FROM kv WHERE key LIKE '/data/n/%'")
    assert without == ROWS * len("/data/n/000000")
    assert snapshot.bytes_read - without == without + ROWS * len(VALUE)


def test_a_limit_ends_the_scan(filled: Path) -> None:
    with open_session(filled) as (snapshot, context):
        assert len(answer(context, "SELECT value FROM kv LIMIT 10")) == 10
        assert snapshot.rows_read == 10
        assert len(answer(context, "SELECT value FROM kv WHERE mod_revision > 1 LIMIT 10 OFFSET 5")) == 10
        assert snapshot.rows_read < 3_000


def test_a_plan_shows_what_is_pushed_down(filled: Path) -> None:
    with open_session(filled) as (_, context):
        shown = plan(context, "SELECT value FROM kv WHERE key LIKE '/data/n/0001%' AND version = 1 LIMIT 3")
        assert "KvScan: columns=[value], keys=[/data/n/0001*]" in shown
        assert "version = 1" in shown
        assert "limit=3" in shown
        assert "FilterExec" not in shown
        assert "partitions=2" in plan(context, "SELECT count(value) FROM kv")
        # What the table does not understand is the engine's.
        assert "FilterExec" in plan(context, "SELECT key FROM kv WHERE upper(key) = 'X' AND key > '/data/'")


def test_partitions_share_the_work(filled: Path) -> None:
    with open_session(filled) as (_, context):
        rows = answer(context, "EXPLAIN ANALYZE SELECT count(value) FROM kv")
        assert "output_rows=20.00 K" in str(rows) or "output_rows=20002" in str(rows)


def test_a_user_sees_the_part_of_users(filled: Path) -> None:
    with open_session(filled, owner=1_000) as (snapshot, context):
        assert answer(context, "SELECT count(*) AS n FROM kv") == [{"n": ROWS + 1}]
        read = snapshot.rows_read
        for where in ("key = '/system/key'", "key LIKE '/system%'", "key > '/data/z' OR key < '/data/'"):
            assert answer(context, f"SELECT * FROM kv WHERE {where}") == []
        assert snapshot.rows_read == read


def test_an_older_revision_is_seen_as_it_was(tmp_path: Path) -> None:
    # Given a key that came, changed and went
    first = write(tmp_path, [Put(b"/data/a", b"1"), Put(b"/data/b", b"1")])
    second = write(tmp_path, [Put(b"/data/a", b"2"), Delete(b"/data/b"), Put(b"/data/c", b"2")])
    third = write(tmp_path, [Delete(b"/data/a")])
    # When each revision is asked for, then it is all there
    seen = {}
    for revision in (first, second, third):
        with open_session(tmp_path, revision=revision) as (snapshot, context):
            assert snapshot.revision == revision
            rows = answer(context, "SELECT key, value FROM kv ORDER BY key")
            seen[revision] = {row["key"]: row["value"] for row in rows}
    assert seen == {
        first: {"/data/a": b"1", "/data/b": b"1"},
        second: {"/data/a": b"2", "/data/c": b"2"},
        third: {"/data/c": b"2"},
    }
    # And one that is not reached, or no longer kept, is refused by name
    with pytest.raises(FutureRevisionError, match=f"revision {third + 1} has not been reached"):
        SqlSnapshot(str(tmp_path), revision=third + 1)
    write(tmp_path, [Compact(third)])
    with pytest.raises(CompactedError):
        SqlSnapshot(str(tmp_path), revision=first)


def test_a_store_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NativeError, match="open the store in"):
        SqlSnapshot(str(tmp_path / "none"))


def test_snapshots_share_the_files_and_let_go_of_them(tmp_path: Path) -> None:
    # Given two views of one store
    write(tmp_path, [Put(b"/data/a", b"1")])
    with open_session(tmp_path) as (one, context), open_session(tmp_path) as (other, _):
        assert one.revision == other.revision
        # When one is closed, its queries fail with a word, and the other's go on
        other.close()
        other.close()
        assert len(answer(context, "SELECT * FROM kv")) == 1
    with pytest.raises(Exception, match="the snapshot is closed"):
        answer(context, "SELECT * FROM kv")


def test_a_store_that_was_put_in_its_place_is_seen(tmp_path: Path) -> None:
    # Given a store that has been read
    write(tmp_path / "a", [Put(b"/data/a", b"1")])
    write(tmp_path / "b", [Put(b"/data/b", b"1"), Put(b"/data/c", b"1")])
    with open_session(tmp_path / "a") as (_, context):
        assert len(answer(context, "SELECT * FROM kv")) == 1
    # When another file takes its place, as after a power cut, then that is what is read
    (tmp_path / "b" / "data.mdb").rename(tmp_path / "a" / "data.mdb")
    with open_session(tmp_path / "a") as (_, context):
        assert len(answer(context, "SELECT * FROM kv")) == 2


def test_keys_that_are_no_text_are_named(tmp_path: Path) -> None:
    write(tmp_path, [Put(b"/data/\xff\xfe", b"1")])
    with open_session(tmp_path) as (_, context), pytest.raises(Exception, match=r"key /data/\\xff\\xfe"):
        answer(context, "SELECT key FROM kv")


def test_an_empty_store_has_no_rows(tmp_path: Path) -> None:
    Store(str(tmp_path)).close()
    with open_session(tmp_path) as (_, context):
        assert table_of(context, "SELECT * FROM kv").num_rows == 0
        assert answer(context, "SELECT count(*) AS n FROM kv") == [{"n": 0}]


def test_filters_with_functions_and_subqueries_are_answered(filled: Path) -> None:
    with open_session(filled) as (_, context):
        last = "SELECT key FROM kv WHERE mod_revision = (SELECT max(mod_revision) FROM kv) ORDER BY key LIMIT 1"
        assert answer(context, last) == [{"key": "/data/leased"}]
        cased = "SELECT count(*) AS n FROM kv WHERE CASE WHEN lower(key) LIKE '/data/n/%7' THEN true ELSE false END"
        assert answer(context, cased) == [{"n": ROWS // 10}]
        joined = "SELECT count(*) AS n FROM kv a JOIN kv b ON a.key = b.key WHERE a.key LIKE '/data/n/00000%'"
        assert answer(context, joined) == [{"n": 10}]
        exists = "SELECT count(*) AS n FROM kv a WHERE EXISTS (SELECT 1 FROM kv b WHERE b.key = a.key || 'x')"
        assert answer(context, exists) == [{"n": 0}]
        regular = "SELECT count(*) AS n FROM kv WHERE regexp_like(key, '^/data/n/0000[0-4].$')"
        assert answer(context, regular) == [{"n": 50}]


def test_results_of_one_query_are_of_one_revision_for_all_tables(filled: Path) -> None:
    with open_session(filled) as (snapshot, context):
        both = answer(context, "SELECT (SELECT count(*) FROM kv) AS a, (SELECT count(key) FROM kv) AS b")
        assert both == [{"a": ROWS + 2, "b": ROWS + 2}]
        assert snapshot.revision > 0
