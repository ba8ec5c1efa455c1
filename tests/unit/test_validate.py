"""Submissions that the types accept and that could still never run."""

from __future__ import annotations

import msgspec
import pytest

from jobs.content import content_bytes, content_of
from jobs.errors import InvalidRequest, PayloadTooLarge
from jobs.protocol.model import Content, JobSubmit, ShellJob, ShellPayload
from jobs.validate import MAX_SPEC_BYTES, check_job, check_spec_size


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
            (ShellPayload(argv=["cat"], files={name: Content(text="")}), f"$.payload.files[{name!r}]")
            for name in ("", "/etc/passwd", "../up", "a/../b", "dir/", "nul\x00", "x" * 256, "a/" * 600 + "a")
        ),
        (
            ShellPayload(argv=["cat"], files={"a": Content(text=""), "./a": Content(text="")}),
            "$.payload.files['./a']",
        ),
        (ShellPayload(argv=["cat"], files={"a": Content(text=""), "a/b": Content(text="")}), "$.payload.files"),
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
                files={"in": Content(text="a b"), "sub/dir/x": Content(base64="")},
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
