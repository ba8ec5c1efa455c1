"""`kv.expires_at`: when a key goes with its lease, as the leader knew it when the query was given to its worker."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jobs.client import Client
from jobs.store import LeaseGrant, Put
from tests.support.sqlstore import answer, open_session, session, write

SLACK = timedelta(seconds=5)
"""Between a call and what it changes, on a busy machine."""
QUERY = "SELECT key, expires_at FROM kv WHERE key LIKE '/data/expiry/%' ORDER BY key"


def test_a_lease_ends_when_it_is_known_to_and_not_before_a_new_one_can(tmp_path: Path) -> None:
    write(tmp_path, [LeaseGrant(5, 60_000), LeaseGrant(9, 30_000)])
    write(tmp_path, [Put(b"/data/a", b"", 5), Put(b"/data/b", b"", 9), Put(b"/data/c", b"")])
    wanted = "SELECT key, expires_at FROM kv WHERE key LIKE '/data/%' ORDER BY key"
    with open_session(tmp_path) as (snapshot, context):
        assert [row["expires_at"] for row in answer(context, wanted)] == [None, None, None], "nobody has told"
        now_ms = 1_790_000_000_000
        snapshot.know_leases(now_ms, {5: now_ms + 12_345})
        rows = answer(session(snapshot), wanted)
        at = datetime.fromtimestamp(now_ms / 1_000, UTC)
        assert [row["expires_at"] for row in rows] == [
            at + timedelta(seconds=12.345),
            at + timedelta(seconds=30),
            None,
        ]
        within = f"TIMESTAMP '{at:%FT%TZ}' + INTERVAL '20 seconds'"
        soon = answer(session(snapshot), f"SELECT key FROM kv WHERE expires_at < {within}")
        assert [row["key"] for row in soon] == ["/data/a"]


def test_a_query_tells_when_keys_go(sql_client: Client) -> None:
    lease = sql_client.kv.grant(600)
    sql_client.kv.put("/data/expiry/a", "1", lease=lease.id)
    sql_client.kv.put("/data/expiry/b", "2")
    before = datetime.now(UTC)
    first = sql_client.sql(QUERY).arrow().to_pylist()
    assert [row["key"] for row in first] == ["/data/expiry/a", "/data/expiry/b"]
    assert first[1]["expires_at"] is None
    ends = first[0]["expires_at"]
    assert before - SLACK <= ends - timedelta(seconds=600) <= datetime.now(UTC)
    time.sleep(0.05)
    sql_client.kv.keepalive(lease.id)
    (later, _) = sql_client.sql(QUERY, consistency="stale").arrow().to_pylist()
    assert later["expires_at"] > ends, "it was kept"
    sql_client.kv.revoke(lease.id)
    assert [row["key"] for row in sql_client.sql(QUERY).arrow().to_pylist()] == ["/data/expiry/b"]
