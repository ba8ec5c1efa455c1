"""Collections: what is written is read again, whatever comes is read or refused, and no name leaves its directory."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.blobs import collection as c

HASH = "ab" * 32
OTHER = "cd" * 32
hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
parts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="/\0"), min_size=1, max_size=20).filter(
    lambda part: part not in (".", "..")
)
names = st.lists(parts, min_size=1, max_size=4).map("/".join)


def allowed(given_names: list[str]) -> bool:
    try:
        c.check_names(given_names)
    except c.CollectionError:
        return False
    return True


def blob(*given_names: bytes, count: int | None = None, rest: bytes = b"") -> bytes:
    """Return a blob of names as somebody else may have made it; each is shorter than 128 bytes."""
    body = b"".join(bytes((len(name),)) + name for name in given_names)
    return c.HEADER + bytes((len(given_names) if count is None else count,)) + body + rest


def test_the_bytes_are_those_of_iroh_blobs() -> None:
    """Its `Collection::to_blobs`: postcard of the header and the names; then the hashes, that of the names first."""
    assert c.encode_names(["a", "b/ü"]) == b"CollectionV0.\x02\x01a\x04b/\xc3\xbc"
    assert c.encode_names(["x" * 200]) == b"CollectionV0.\x01\xc8\x01" + b"x" * 200
    assert c.encode_names([]) == b"CollectionV0.\x00"
    assert c.encode_sequence(HASH, {"a": OTHER, "b/ü": OTHER}).hex() == HASH + OTHER + OTHER


@given(files=st.dictionaries(names, hashes, max_size=20), names_blob=hashes)
def test_what_is_written_is_read_again(files: dict[str, str], names_blob: str) -> None:
    if not allowed(list(files)):
        return
    found = c.decode(c.encode_sequence(names_blob, files), c.encode_names(files))
    assert found == c.Collection(names_blob, files)
    assert list(found.files) == list(files)
    assert sorted(found.children) == sorted({names_blob, *files.values()})


@given(data=st.binary(max_size=200) | st.binary(max_size=100).map(lambda rest: c.HEADER + rest))
def test_bytes_of_any_kind_are_names_or_refused(data: bytes) -> None:
    try:
        found = c.decode_names(data)
    except c.CollectionError:
        return
    assert allowed(found)
    # Numbers may be written longer than need be.
    assert c.decode_names(c.encode_names(found)) == found


@given(files=st.lists(names, min_size=1, max_size=5, unique=True), cut=st.integers(1, 50))
def test_a_part_of_a_collection_is_none(files: list[str], cut: int) -> None:
    if not allowed(files):
        return
    encoded = c.encode_names(files)
    with pytest.raises(c.CollectionError):
        c.decode_names(encoded[: -min(cut, len(encoded))])
    with pytest.raises(c.CollectionError):
        c.decode_names(encoded + b"\0")
    sequence = c.encode_sequence(HASH, dict.fromkeys(files, OTHER))
    with pytest.raises(c.CollectionError):
        c.decode(sequence[: -min(cut, len(sequence))], encoded)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"CollectionV1.\x00",
        c.HEADER,
        c.HEADER + b"\xff" * 9,
        c.HEADER + b"\xff" * 9 + b"\x7f",
        c.HEADER + b"\xff" * 20,
        c.HEADER + b"\x80\x80\x80\x80\x80\x01" + b"\x01a",
        blob(b"a", count=2),
        blob(b"a", count=0),
        blob(b"a", rest=b"\x00"),
        c.HEADER + b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01a",
        blob(b"\xff"),
    ],
    ids=repr,
)
def test_what_is_truncated_or_lies_about_lengths_is_refused(data: bytes) -> None:
    with pytest.raises(c.CollectionError):
        c.decode_names(data)


@pytest.mark.parametrize(
    "given_names",
    [
        [b"../a"], [b"a/../../b"], [b".."], [b"."], [b"/etc/passwd"], [b""], [b"a/"], [b"a//b"], [b"./a"], [b"a\0b"],
        [b"a", b"a"], [b"a/b", b"a"], [b"a", b"b", b"a/b/c"],
    ],
    ids=repr,
)  # fmt: skip
def test_names_that_leave_their_directory_or_exclude_each_other_are_refused(given_names: list[bytes]) -> None:
    with pytest.raises(c.CollectionError):
        c.decode_names(blob(*given_names))
    with pytest.raises(c.CollectionError):
        c.encode_names([name.decode() for name in given_names])


@given(name=st.text(max_size=30) | names)
def test_no_name_leaves_its_directory(name: str) -> None:
    try:
        c.check_name(name)
    except c.CollectionError:
        return
    assert posixpath.normpath(posixpath.join("/d", name)) == f"/d/{name}"


def test_limits_are_told() -> None:
    with pytest.raises(c.CollectionError, match="at most 10000"):
        c.encode_names(str(number) for number in range(c.MAX_FILES + 1))
    with pytest.raises(c.CollectionError, match="at most 10000"):
        c.decode_sequence(bytes(32 * (c.MAX_FILES + 2)))
    with pytest.raises(c.CollectionError, match="bytes, at most"):
        c.encode_names(f"{number}/" + "/".join(["x" * 200] * 9) for number in range(5_000))
    with pytest.raises(c.CollectionError, match="bytes, at most"):
        c.decode_names(bytes(c.MAX_NAMES_BYTES + 1))
    with pytest.raises(c.CollectionError, match="longer"):
        c.check_name("x" * 256)
    with pytest.raises(c.CollectionError, match="no UTF-8"):
        c.check_name("\ud800")
    c.check_names([f"{number:x}" for number in range(c.MAX_FILES)])
