"""Uploads, downloads and collections over HTTP, byte by byte: the node's routes over its real store and catalogue."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs._native import Blake3
from jobs.api.ranges import Part, wanted_part
from jobs.errors import RangeNotSatisfiable
from tests.support.api import Answer, Raw
from tests.support.blobpeer import content
from tests.support.blobs import BlobApi, scenario
from tests.support.users import let_others_in

MIB = 1 << 20
GROUP = 16 << 10
"""Bytes of which each stands under one hash."""
CHUNKED = b"POST /v1/blobs HTTP/1.1\r\nHost: jobs\r\nTransfer-Encoding: chunked\r\n\r\n"
NOWHERE = "0" * 64
STRANGER = 12_345
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


def blake3(data: bytes) -> str:
    digest = Blake3()
    digest.update(data)
    return digest.digest().hex()


async def put(raw: Raw, data: bytes, target: str = "/v1/blobs", **headers: str) -> Answer:
    return await raw.ask("POST", target, data, **headers)


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def connect_as(api: BlobApi, uid: int) -> Raw:
    """Connect as another user: SO_PEERCRED tells the effective ids at that time."""
    let_others_in(api.directory)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        return await api.connect()
    finally:
        os.seteuid(0)
        os.setegid(0)


# --- uploads ----------------------------------------------------------------------------------------------------------


@scenario()
async def test_content_of_every_size_comes_back(api: BlobApi) -> None:
    async with await api.connect() as raw:
        for size in (0, 1, GROUP - 1, GROUP, GROUP + 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 7):
            data = content(size, size)
            added = await put(raw, data)
            assert added.status == 201
            assert added.json() == {
                "hash": blake3(data), "size_bytes": size, "kind": "raw", "created": True, "nodes": ["test"],
                "tag": None,
            }  # fmt: skip
            assert added.headers["location"] == f"/v1/blobs/{blake3(data)}"
            again = await put(raw, data)
            assert (again.status, again.json()["created"]) == (200, False)
            answer = await raw.ask("GET", added.headers["location"])
            assert answer.status == 200
            assert answer.body == data
            assert answer.headers["content-length"] == str(size)
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.headers["etag"] == f'"{blake3(data)}"'
            assert answer.headers["jobs-blob-kind"] == "raw"
            head = await raw.ask("HEAD", added.headers["location"])
            assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(size))


@scenario()
async def test_a_body_of_unknown_length_in_chunks_of_any_size(api: BlobApi) -> None:
    data = content(300_000, 1)
    async with await api.connect() as raw:
        await raw.send(CHUNKED)
        at = 0
        for size in (1, 2, 15, 65_536, 7, 200_000, 34_439):
            await raw.send(b"%x\r\n" % size + data[at : at + size] + b"\r\n")
            at += size
        assert at == len(data)
        await raw.send(b"0\r\n\r\n")
        assert (await raw.answer()).json()["hash"] == blake3(data)
        assert (await raw.ask("GET", f"/v1/blobs/{blake3(data)}")).body == data


@scenario(max_blob_bytes=1_000)
async def test_a_client_is_told_to_go_on_only_when_there_is_hope(api: BlobApi) -> None:
    """With `Expect: 100-continue` a refusal costs no upload."""
    async with await api.connect() as raw:
        head = "POST /v1/blobs HTTP/1.1\r\nHost: jobs\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n"
        await raw.send(head.format(1_000).encode())
        assert await raw.head() == (100, {})
        await raw.send(b"x" * 1_000)
        assert (await raw.answer()).status == 201
        await raw.send(head.format(1_001).encode())
        (await raw.answer()).problem(413, "payload_too_large")
        assert await raw.closed()
    # Where the length is not told, it is refused once it is known; the answer comes through all the same.
    async with await api.connect() as raw:
        await raw.send(CHUNKED)
        await raw.send(b"3e9\r\n" + b"x" * 1_001 + b"\r\n0\r\n\r\n")
        (await raw.answer()).problem(413, "payload_too_large")
    assert len(await api.store.page()) == 1
    assert api.drafts() == []


@scenario(min_free_bytes=1 << 60)
async def test_a_full_disk_takes_nothing(api: BlobApi) -> None:
    async with await api.connect() as raw:
        await raw.send(b"POST /v1/blobs HTTP/1.1\r\nHost: jobs\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        found = (await raw.answer()).problem(507, "storage_full")
        assert "room" in found["detail"]
    async with await api.connect() as raw:
        await raw.send(CHUNKED + b"1\r\nx\r\n")
        (await raw.answer()).problem(507, "storage_full")
    assert await api.store.page() == []
    assert api.drafts() == []


@scenario()
async def test_content_with_another_hash_than_the_expected_one_is_not_kept(api: BlobApi) -> None:
    async with await api.connect() as raw:
        wrong = await put(raw, b"abc", f"/v1/blobs?expected={blake3(b'other')}")
        assert blake3(b"abc") in wrong.problem(400, "invalid_request")["detail"]
        (await put(raw, b"abc", "/v1/blobs?expected=12")).problem(400, "invalid_request")
    assert await api.store.page() == []
    async with await api.connect() as raw:
        assert (await put(raw, b"abc", f"/v1/blobs?expected={blake3(b'abc')}")).status == 201


@scenario(body_timeout_s=0.3)
async def test_an_upload_may_take_long_but_not_stand_still(api: BlobApi) -> None:
    async with await api.connect() as raw:
        await raw.send(b"POST /v1/blobs HTTP/1.1\r\nHost: jobs\r\nContent-Length: 8\r\n\r\n")
        began = time.monotonic()
        for _ in range(7):
            await raw.send(b"x")
            await asyncio.sleep(0.15)
        assert time.monotonic() - began > 1.0
        await raw.send(b"x")
        assert (await raw.answer()).status == 201
        await raw.send(b"POST /v1/blobs HTTP/1.1\r\nHost: jobs\r\nContent-Length: 8\r\n\r\nxx")
        (await raw.answer()).problem(408, "request_timeout")
        assert await raw.closed()
    await until(lambda: api.drafts() == [])
    assert len(await api.store.page()) == 1


@scenario()
async def test_a_client_that_goes_away_leaves_nothing(api: BlobApi) -> None:
    for request in (
        b"POST /v1/blobs HTTP/1.1\r\nHost: jobs\r\nContent-Length: 9000000\r\n\r\n" + bytes(3 * MIB),
        CHUNKED + b"200000\r\n" + bytes(2 * MIB),
        b"POST /v1/blobs HTTP/1.1\r\nHost: jobs\r\nContent-Length: 9\r\n\r\n",
    ):
        raw = await api.connect()
        await raw.send(request)
        await until(lambda: len(api.drafts()) > 0)
        raw.close()
        await until(lambda: api.drafts() == [])
        assert api.server.desk.transfers.used == 0
    assert await api.store.page() == []


@scenario()
async def test_what_is_no_body_is_refused(api: BlobApi) -> None:
    async with await api.connect() as raw:
        await raw.send(
            b"POST /v1/blobs HTTP/1.1\r\nHost: jobs\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nzz\r\n"
        )
        assert (await raw.answer()).status == 400
    async with await api.connect() as raw:
        answer = await put(raw, b"abc", Content_Encoding="gzip")
        answer.problem(415, "unsupported_media_type")
    await until(lambda: api.drafts() == [])
    assert await api.store.page() == []


@needs_root
@scenario(mode=0o666, max_transfers_per_uid=1, max_transfers=2)
async def test_uploads_and_downloads_are_bounded_in_number(api: BlobApi) -> None:
    first, second = await api.connect(), await api.connect()
    others = [await connect_as(api, uid) for uid in (1_001, 1_002)]
    begun = b"POST /v1/blobs HTTP/1.1\r\nHost: jobs\r\nContent-Length: 2\r\n\r\nx"
    await first.send(begun)
    await until(lambda: api.server.desk.transfers.used == 1)
    assert "of uid 0" in (await put(second, b"abc")).problem(429, "too_many_requests")["detail"]
    await others[0].send(begun)
    await until(lambda: api.server.desk.transfers.used == 2)
    (await put(others[1], b"abc")).problem(429, "too_many_requests")
    for raw in (first, others[0]):
        await raw.send(b"y")
        assert (await raw.answer()).status == 201
    for raw in (first, second, *others):
        raw.close()


@needs_root
@scenario(mode=0o666)
async def test_what_the_catalogue_refuses_is_not_kept(api: BlobApi) -> None:
    """And what was here before is, whoever is refused it."""
    async with await api.connect() as raw, await connect_as(api, STRANGER) as refused:
        assert (await put(raw, b"first", "/v1/blobs?tag=mine")).json()["tag"] == "mine"
        (await put(refused, b"second", "/v1/blobs?tag=mine")).problem(403, "forbidden")
        (await put(refused, b"first", "/v1/blobs?tag=mine")).problem(403, "forbidden")
        assert [stat.hash for stat in await api.store.page()] == [blake3(b"first")]
        assert (await raw.ask("GET", f"/v1/blobs/{blake3(b'first')}")).body == b"first"


# --- downloads --------------------------------------------------------------------------------------------------------


@scenario()
async def test_parts_at_every_border(api: BlobApi) -> None:
    size = 2 * MIB + 17
    data = content(size, 3)
    borders = (0, 1, GROUP - 1, GROUP, GROUP + 1, MIB - 1, MIB, MIB + 1, 2 * MIB, size - 2, size - 1)
    async with await api.connect() as raw:
        target = (await put(raw, data)).headers["location"]
        for first in borders:
            for last in (first, *(border for border in borders if border > first)):
                answer = await raw.ask("GET", target, Range=f"bytes={first}-{last}")
                assert answer.status == 206
                assert answer.body == data[first : last + 1]
                assert answer.headers["content-range"] == f"bytes {first}-{last}/{size}"
            answer = await raw.ask("GET", target, Range=f"bytes={first}-")
            assert (answer.status, answer.body) == (206, data[first:])
            if first:
                answer = await raw.ask("GET", target, Range=f"bytes=-{first}")
                assert (answer.status, answer.body) == (206, data[-first:])
        answer = await raw.ask("GET", target, Range=f"bytes=5-{10 * size}")
        assert (answer.status, answer.body) == (206, data[5:])
        for beyond in (f"bytes={size}-", f"bytes={size}-{size + 5}", "bytes=-0"):
            answer = await raw.ask("GET", target, Range=beyond)
            answer.problem(416, "range_not_satisfiable")
            assert answer.headers["content-range"] == f"bytes */{size}"
        for passed_over in ("bytes=1-0", "bytes=0-1,5-6", "lines=1-2", "bytes=-", "nonsense"):
            answer = await raw.ask("GET", target, Range=passed_over)
            assert (answer.status, len(answer.body)) == (200, size)
        empty = (await put(raw, b"")).headers["location"]
        (await raw.ask("GET", empty, Range="bytes=0-")).problem(416, "range_not_satisfiable")


@scenario()
async def test_a_client_that_has_the_content_is_not_sent_it(api: BlobApi) -> None:
    async with await api.connect() as raw:
        target = (await put(raw, b"content")).headers["location"]
        etag = (await raw.ask("GET", target)).headers["etag"]
        for known in (etag, f'"x", {etag}', f"W/{etag}", "*"):
            await raw.send(f"GET {target} HTTP/1.1\r\nHost: jobs\r\nIf-None-Match: {known}\r\n\r\n".encode())
            answer = await raw.answer()
            assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag)
        assert (await raw.ask("GET", target, If_None_Match='"x"')).status == 200
        assert (await raw.ask("GET", target, Range="bytes=0-1", If_Range=etag)).status == 206
        assert (await raw.ask("GET", target, Range="bytes=0-1", If_Range='"x"')).body == b"content"


@scenario()
async def test_a_connection_goes_on_after_errors(api: BlobApi) -> None:
    async with await api.connect() as raw:
        target = (await put(raw, b"content")).headers["location"]
        for _ in range(3):
            (await raw.ask("GET", f"/v1/blobs/{NOWHERE}")).problem(404, "not_found")
            head = await raw.ask("HEAD", f"/v1/blobs/{NOWHERE}")
            assert (head.status, head.body) == (404, b"")
            (await raw.ask("GET", "/v1/blobs/nonsense")).problem(400, "invalid_request")
            (await raw.ask("GET", f"{target}?path=a")).problem(400, "invalid_request")
            (await put(raw, b"abc", f"/v1/blobs?expected={NOWHERE}")).problem(400, "invalid_request")
            (await raw.ask("PUT", "/v1/blobs", b"abc")).problem(405, "method_not_allowed")
            (await raw.ask("GET", target, Range="bytes=100-")).problem(416, "range_not_satisfiable")
            assert (await raw.ask("GET", target)).body == b"content"


@scenario(write_timeout_s=0.5)
async def test_a_client_that_takes_nothing_is_cut_off(api: BlobApi) -> None:
    async with await api.connect() as raw:
        target = (await put(raw, content(8 * MIB, 5))).headers["location"]
        await raw.send(f"GET {target} HTTP/1.1\r\nHost: jobs\r\n\r\n".encode())
        assert (await raw.head())[0] == 200
        await until(lambda: api.server.desk.transfers.used == 0)
        # It is told apart from the whole: the length was said.
        assert len(await raw.reader.read()) < 8 * MIB


@scenario()
async def test_damage_is_told_and_never_sent(api: BlobApi) -> None:
    data = content(4 * MIB, 6)
    async with await api.connect() as raw:
        target = (await put(raw, data)).headers["location"]
        blob = blake3(data)
        with (api.directory / "blobs/data" / blob[:2] / blob).open("r+b") as file:
            file.seek(3 * MIB)
            file.write(b"?")
        await raw.send(f"GET {target} HTTP/1.1\r\nHost: jobs\r\n\r\n".encode())
        assert (await raw.head())[0] == 200
        sent = await raw.reader.read()
        assert len(sent) < 3 * MIB + GROUP
        assert sent == data[: len(sent)]
    async with await api.connect() as raw:
        (await raw.ask("GET", target)).problem(503, "blob_unavailable")
        assert (await put(raw, data)).status == 200
        assert (await raw.ask("GET", target)).body == data


# --- owners -----------------------------------------------------------------------------------------------------------


@needs_root
@scenario(mode=0o666, worker_uids=frozenset({0, 777}))
async def test_owners_cannot_read_each_others(api: BlobApi) -> None:
    ours, theirs = await connect_as(api, 1_001), await connect_as(api, 1_002)
    worker = await connect_as(api, 777)
    target = (await put(ours, b"secret")).headers["location"]
    for method in ("GET", "HEAD"):
        assert (await theirs.ask(method, target)).status == 404
    (await theirs.ask("GET", f"{target}/files")).problem(404, "not_found")
    answer = await theirs.ask("POST", "/v1/blobs:collection", {"files": {"a": blake3(b"secret")}})
    answer.problem(404, "not_found")
    # A worker asks for the owner of its job, and for nobody without saying so; nobody else can.
    (await worker.ask("GET", target)).problem(404, "not_found")
    assert (await worker.ask("GET", target, Jobs_Act_For="1001")).body == b"secret"
    (await worker.ask("GET", target, Jobs_Act_For="1002")).problem(404, "not_found")
    assert (await worker.ask("GET", target, Jobs_Act_For="1002;admin")).body == b"secret"
    (await theirs.ask("GET", target, Jobs_Act_For="1001")).problem(403, "forbidden")
    for nobody in ("", "root", "-1", "1001;", "1001;root", "4294967296", "01"):
        (await worker.ask("GET", target, Jobs_Act_For=nobody)).problem(400, "invalid_request")
    # Who brings the content has it too.
    again = await put(theirs, b"secret")
    assert (again.status, again.json()["created"]) == (201, True)
    assert (await theirs.ask("GET", target)).body == b"secret"
    for raw in (ours, theirs, worker):
        raw.close()


# --- collections ------------------------------------------------------------------------------------------------------


@scenario()
async def test_files_are_one_blob_and_each_of_them_is_there(api: BlobApi) -> None:
    async with await api.connect() as raw:
        files = {"a.txt": b"one", "b/c": b"", "b/d é": content(40_000, 1), "same": b"one"}
        for data in set(files.values()):
            await put(raw, data)
        hashes = {name: blake3(data) for name, data in files.items()}
        made = await raw.ask("POST", "/v1/blobs:collection", {"files": hashes})
        assert (made.status, made.json()["kind"], made.json()["size_bytes"]) == (201, "collection", 5 * 32)
        again = await raw.ask("POST", "/v1/blobs:collection", {"files": hashes})
        assert (again.status, again.json()["hash"]) == (200, made.json()["hash"])
        target = made.headers["location"]
        listed = (await raw.ask("GET", f"{target}/files")).json()
        assert [(file["name"], file["hash"]) for file in listed["files"]] == list(hashes.items())
        whole = await raw.ask("GET", target)
        assert whole.headers["jobs-blob-kind"] == "collection"
        assert whole.body[32:].hex() == "".join(hashes.values())
        for name, data in files.items():
            quoted = name.replace(" ", "%20").replace("é", "%C3%A9")
            answer = await raw.ask("GET", f"{target}?path={quoted}")
            assert (answer.body, answer.headers["etag"]) == (data, f'"{blake3(data)}"')
        (await raw.ask("GET", f"{target}?path=b")).problem(404, "not_found")
        (await raw.ask("GET", f"/v1/blobs/{blake3(b'one')}/files")).problem(400, "invalid_request")


@scenario()
async def test_files_that_no_directory_can_have_are_refused(api: BlobApi) -> None:
    async with await api.connect() as raw:
        await put(raw, b"")
        empty = blake3(b"")
        for names in (["../a"], ["/a"], [""], ["a//b"], ["a/."], ["a", "a/b"], ["a\0"], ["x" * 300]):
            answer = await raw.ask("POST", "/v1/blobs:collection", {"files": dict.fromkeys(names, empty)})
            assert answer.problem(400, "invalid_request")["field"] == "$.files"
        answer = await raw.ask("POST", "/v1/blobs:collection", {"files": {"a": NOWHERE}})
        answer.problem(404, "not_found")
        assert (await raw.ask("POST", "/v1/blobs:collection", {"files": {}})).status == 201


# --- ranges alone -----------------------------------------------------------------------------------------------------


@given(size=st.integers(0, 50), first=st.none() | st.integers(0, 60), last=st.none() | st.integers(0, 60))
def test_a_range_is_what_the_standard_says(size: int, first: int | None, last: int | None) -> None:
    headers = {"Range": f"bytes={'' if first is None else first}-{'' if last is None else last}"}
    positions = set(range(size))
    if first is None and last is None:
        wanted = None
    elif first is None:
        assert last is not None
        wanted = {position for position in positions if position >= size - last}
    elif last is not None and last < first:
        wanted = None
    else:
        wanted = {position for position in positions if first <= position <= (size if last is None else last)}
    if wanted is None:
        assert wanted_part(headers, "e", size) is None
    elif not wanted:
        with pytest.raises(RangeNotSatisfiable):
            wanted_part(headers, "e", size)
    else:
        assert wanted_part(headers, "e", size) == Part(min(wanted), max(wanted) + 1)


@given(text=st.text(max_size=40), size=st.integers(0, 1 << 40))
def test_any_text_is_some_range_or_none(text: str, size: int) -> None:
    try:
        part = wanted_part({"Range": "bytes=" + text}, "e", size)
    except RangeNotSatisfiable:
        return
    assert part is None or 0 <= part.start < part.end <= size
