"""Submissions that the types accept and that could still never run."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from jobs.content import content_bytes, content_of
from jobs.errors import Forbidden, InvalidRequest, PayloadTooLarge
from jobs.protocol.model import (
    AddFrom,
    ArraySpec,
    BlobAdd,
    BlobExport,
    BlobFetch,
    BlobGc,
    BlobJob,
    BlobPayload,
    BlobReplicate,
    BlobVerify,
    Content,
    InputFile,
    JobSubmit,
    ShellJob,
    ShellPayload,
)
from jobs.validate import MAX_SPEC_BYTES, check_allowed, check_job, check_spec_size


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (ShellPayload(), "$.payload"),
        (ShellPayload(argv=["true"], script="true"), "$.payload"),
        (ShellPayload(argv=[""]), "$.payload.argv[0]"),
        (ShellPayload(argv=["echo", "a\x00b"]), "$.payload.argv[1]"),
        (ShellPayload(argv=["echo", "x" * (128 << 10)]), "$.payload.argv[1]"),
        (ShellPayload(argv=["echo", "\ud800"]), "$.payload.argv[1]"),
        (ShellPayload(argv=["env"], env={"A=B": "c"}), "$.payload.env"),
        (ShellPayload(argv=["env"], env={"": "c"}), "$.payload.env"),
        (ShellPayload(argv=["env"], env={"A": "\x00"}), "$.payload.env['A']"),
        (ShellPayload(argv=["pwd"], cwd="../.."), "$.payload.cwd"),
        (ShellPayload(argv=["cat"], stdin=Content()), "$.payload.stdin"),
        (ShellPayload(argv=["cat"], stdin=Content(text="a", base64="YQ==")), "$.payload.stdin"),
        (ShellPayload(argv=["cat"], stdin=Content(base64="not base64!")), "$.payload.stdin.base64"),
        *(
            (ShellPayload(argv=["cat"], files={name: InputFile(text="")}), f"$.payload.files[{name!r}]")
            for name in ("", "/etc/passwd", "../up", "a/../b", "dir/", "nul\x00", "x" * 256, "a/" * 600 + "a")
        ),
        (
            ShellPayload(argv=["cat"], files={"a": InputFile(text=""), "./a": InputFile(text="")}),
            "$.payload.files['./a']",
        ),
        (ShellPayload(argv=["cat"], files={"a": InputFile(text=""), "a/b": InputFile(text="")}), "$.payload.files"),
    ],
)
def test_what_could_never_run_is_refused_with_its_field(payload: ShellPayload, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_job(ShellJob(payload=payload))
    assert caught.value.field == field
    assert caught.value.expected


def test_what_can_run_is_accepted() -> None:
    check_job(
        ShellJob(
            payload=ShellPayload(
                argv=["sh", "-c", "wc -w <in"],
                env={"A": "=", "B": ""},
                cwd="sub/dir",
                stdin=Content(base64="AAE="),
                files={"in": InputFile(text="a b"), "sub/dir/x": InputFile(base64="")},
            )
        )
    )
    check_job(ShellJob(payload=ShellPayload(script="echo hi")))


def test_contents_come_out_as_bytes() -> None:
    assert content_bytes(Content(text="ä"), "$") == "ä".encode()
    assert content_bytes(Content(base64="AP8="), "$") == b"\x00\xff"
    for data in (b"", "ä\x00".encode(), b"\x00\xff"):
        assert content_bytes(content_of(data), "$") == data


def test_a_job_larger_than_a_value_of_the_store_is_refused_with_its_size() -> None:
    check_spec_size(MAX_SPEC_BYTES)
    with pytest.raises(PayloadTooLarge, match=str(MAX_SPEC_BYTES + 1)):
        check_spec_size(MAX_SPEC_BYTES + 1)


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"nope","payload":{"argv":["true"]}}',
        b'{"type":"shell","payload":{"argv":["true"]},"surprise":1}',
        b'{"type":"shell","payload":{"argv":["true"],"limits":{"memory":1}}}',
        b'{"type":"shell","payload":{"argv":["true"]},"priority":101}',
        b'{"type":"shell","payload":{"argv":["true"]},"queue":"a b"}',
        b'{"type":"shell","payload":{"argv":["true"]},"queue":"a\\n"}',
        b'{"type":"shell","payload":{"argv":["true"]},"timeout_s":-1}',
    ],
)
def test_unknown_fields_and_values_out_of_range_are_refused(body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body, type=JobSubmit)


HASH = "ab" * 32
TICKET = "blobticket1." + "A" * 86
DISTINCT = ["a", "b"]


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (BlobFetch(), "$.payload"),
        (BlobFetch(hash=HASH, ticket=TICKET), "$.payload"),
        (BlobFetch(hash=HASH, providers=["a", "a"]), "$.payload.providers"),
        *((BlobFetch(ticket=text), "$.payload.ticket") for text in ("", HASH, "blobticket1.", "blobticket1.A", "ü")),
        (BlobFetch(ticket=TICKET[:-1]), "$.payload.ticket"),
        (BlobFetch(ticket=TICKET + "!"), "$.payload.ticket"),
        (BlobReplicate(hash=HASH), "$.payload"),
        (BlobReplicate(hash=HASH, replicas=2, nodes=["a"]), "$.payload"),
        (BlobReplicate(hash=HASH, nodes=["a", "a"]), "$.payload.nodes"),
        *(
            (BlobExport(hash=HASH, file=path), "$.payload.file")
            for path in ("relative", "/", "/a/../b", "/..", "/nul\x00", f"/{'x' * 256}", "/a" * 2_100, "/\ud800")
        ),
        (BlobAdd(source=AddFrom()), "$.payload.source"),
        (BlobAdd(source=AddFrom(text="a", base64="YQ==")), "$.payload.source"),
        (BlobAdd(source=AddFrom(text="a", snapshot=True)), "$.payload.source"),
        (BlobAdd(source=AddFrom(text="a", stream="stderr")), "$.payload.source.stream"),
        (BlobAdd(source=AddFrom(base64="not base64!")), "$.payload.source.base64"),
        (BlobAdd(source=AddFrom(text="\ud800")), "$.payload.source.text"),
        (BlobAdd(source=AddFrom(file="../up")), "$.payload.source.file"),
        (BlobAdd(source=AddFrom(job="none")), "$.payload.source.job"),
    ],
)
def test_an_operation_on_blobs_that_could_never_be_carried_out_is_refused_with_its_field(
    payload: BlobPayload, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_job(BlobJob(payload=payload))
    assert caught.value.field == field
    assert caught.value.expected


@pytest.mark.parametrize(
    "payload",
    [
        BlobFetch(hash=HASH, providers=DISTINCT),
        BlobFetch(ticket=TICKET),
        BlobReplicate(hash=HASH, nodes=DISTINCT),
        BlobReplicate(hash=HASH, replicas=3),
        BlobGc(grace_s=0, dry_run=True),
        BlobVerify(),
        BlobExport(hash=HASH, file="/srv/out/file"),
        BlobAdd(source=AddFrom(text="")),
        BlobAdd(source=AddFrom(snapshot=True), tag="snapshots/today"),
        BlobAdd(source=AddFrom(job="01890a5d-ac96-774b-bcce-b302099a8057", stream="stderr")),
    ],
)
def test_an_operation_on_blobs_that_can_be_carried_out_is_accepted(payload: BlobPayload) -> None:
    check_job(BlobJob(payload=payload))


@pytest.mark.parametrize(
    "text",
    [
        '{"operation": "stat", "hash": "short"}',
        f'{{"operation": "stat", "hash": "{HASH.upper()}"}}',
        f'{{"operation": "stat", "hash": "{HASH}", "more": 1}}',
        f'{{"operation": "erase", "hash": "{HASH}"}}',
        f'{{"hash": "{HASH}"}}',
        f'{{"operation": "replicate", "hash": "{HASH}", "replicas": 0}}',
        '{"operation": "gc", "grace_s": -1}',
        '{"operation": "fetch", "ticket": "' + "x" * 5_000 + '"}',
    ],
)
def test_the_types_of_operations_on_blobs_are_closed(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(f'{{"type": "blob", "payload": {text}}}', type=JobSubmit)


def test_an_operation_on_blobs_has_no_tasks_and_no_heartbeat() -> None:
    job = BlobJob(payload=BlobGc())
    for changes, field in ((["1"], "$.array"), (None, "$.heartbeat_s")):
        wanted = replace(job, array=ArraySpec(lines=changes)) if changes else replace(job, heartbeat_s=1.0)
        with pytest.raises(InvalidRequest) as caught:
            check_job(wanted)
        assert caught.value.field == field


@pytest.mark.parametrize("payload", [BlobGc(dry_run=True), BlobVerify(), BlobAdd(source=AddFrom(snapshot=True))])
def test_what_concerns_everybodys_blobs_is_for_administrators(payload: BlobPayload) -> None:
    check_allowed(BlobJob(payload=payload), "$", admin=True)
    with pytest.raises(Forbidden, match="only administrators"):
        check_allowed(BlobJob(payload=payload), "$", admin=False)
    check_allowed(BlobJob(payload=BlobVerify(hash=HASH)), "$", admin=False)
