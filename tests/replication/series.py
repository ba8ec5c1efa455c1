"""A real node that makes backups, and what a series of them is to give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs import Client
from jobs._native import Store
from jobs.backups.rebuild import rebuild
from jobs.backups.series import Series
from jobs.backups.shelf import Shelf
from jobs.testing import EmbeddedNode

USERS = b"/data/"
END = b"/data0"


def backup_node(directory: Path, place: Path, **env: str) -> EmbeddedNode:
    """A node with a worker for replication, which may use a directory."""
    allowed = {"JOBS_WORKERS__REPLICATION__ALLOW_FILES": f'["{place}"]'}
    return EmbeddedNode(directory, types=("shell", "replication"), env={**allowed, **env})


@contextmanager
def opened(directory: Path) -> Iterator[Series]:
    with Shelf.open(directory) as shelf:
        yield Series(shelf)


@contextmanager
def restored(directory: Path, aside: Path, revision: int | None = None) -> Iterator[Store]:
    """A store that is made of a series."""
    with opened(directory) as series:
        chain = series.chain(revision)
        series.verify(chain)
        with series.parts(chain) as parts:
            store = rebuild(parts, aside, revision=revision, max_bytes=64 << 20)
    try:
        yield store
    finally:
        store.close()


def users_rows(store: Store, revision: int = 0) -> dict[str, str]:
    rows, more = store.range(USERS, END, limit=10_000, revision=revision)
    assert not more
    return {key.decode(): value.decode() for key, value, *_ in rows}


def write_some(client: Client, number: int, *, keys: int = 20) -> None:
    """Put, change and delete keys, some of them together."""
    for at in range(keys):
        client.kv.put(f"/data/k/{(at * 7 + number) % (2 * keys):03d}", f"{number}.{at}")
    client.kv.delete(f"/data/k/{number % keys:03d}")
    lease = client.kv.grant(600)
    client.kv.put(f"/data/leased/{number}", "for a while", lease=lease.id)
    client.kv.delete("/data/k/00", prefix=True)
