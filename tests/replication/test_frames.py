"""Frames, manifests and encryption: whatever is cut off, changed or added is found, and named."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pyrage import x25519

from jobs.backups import manifest as m
from jobs.backups.crypt import Encryption, IdentityError, check_recipients, decrypt, mark_of, read_identities
from jobs.backups.frames import FrameDecoder, FrameEncoder, FrameError
from jobs.errors import BackupInvalid, InvalidRequest
from jobs.sealed import seal

KIND = b"TEST"
HASH = "ab" * 32
FULL = m.Manifest(
    cluster="c",
    number=1,
    kind="full",
    parent=None,
    from_revision=0,
    to_revision=7,
    created_ms=1,
    release="0",
    files=[m.FileEntry(name="snapshot", size_bytes=3, blake3=HASH)],
    state=m.State(digest=HASH, rows=1, size_bytes=2),
)


def encoded(frames: list[bytes]) -> bytes:
    encoder = FrameEncoder(KIND)
    return encoder.head() + b"".join(encoder.frame(frame) for frame in frames) + encoder.end()


def decoded(data: bytes, step: int | None = None, kind: bytes = KIND) -> list[bytes]:
    decoder, found = FrameDecoder(kind), []
    for start in range(0, len(data), step or max(1, len(data))):
        found += decoder.feed(data[start : start + (step or len(data))])
    decoder.finish()
    return found


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.integers(1, 50))
def test_frames_come_back_however_they_arrive(frames: list[bytes], step: int) -> None:
    assert decoded(encoded(frames), step) == frames


def test_what_is_cut_off_anywhere_is_not_whole() -> None:
    data = encoded([b"one", b"two" * 20])
    for end in range(len(data)):
        with pytest.raises(FrameError):
            decoded(data[:end])


def test_what_is_changed_anywhere_is_found() -> None:
    data = encoded([b"one", b"two" * 20])
    for at in range(len(data)):
        for bit in (1, 128):
            damaged = bytearray(data)
            damaged[at] ^= bit
            with pytest.raises(FrameError):
                decoded(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"not a backup at all, by its looks", "does not begin"),
        (encoded([b"x"]) + b"more", "after the end"),
        (encoded([b"x"])[:8] + b"\x09\x00\x00\x00" + encoded([b"x"])[12:], "version 9"),
        (encoded([b"x"])[:16] + b"\xff\xff\xff\xff\x00\x00\x00\x00", "4294967295 bytes"),
        (encoded([b"x", b"y"])[:16] + encoded([b"x", b"y"])[25:], "says otherwise"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        decoded(data)


def test_frames_of_another_kind_are_refused() -> None:
    with pytest.raises(FrameError, match="OTHR"):
        decoded(encoded([b"x"]), kind=b"OTHR")


# --- manifests -------------------------------------------------------------------------------------------------------


def test_a_manifest_comes_back() -> None:
    assert m.decode(m.encode(FULL), "f") == seal(FULL)


def test_a_manifest_that_is_cut_off_or_changed_is_refused_by_name() -> None:
    data = m.encode(FULL)
    for end in range(len(data) - 1):
        with pytest.raises(BackupInvalid, match="somewhere/manifest"):
            m.decode(data[:end], "somewhere/manifest")
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        # White space can become other white space, which changes nothing.
        if not (data[at : at + 1].isspace() or bytes(damaged[at : at + 1]).isspace()):
            with pytest.raises(BackupInvalid):
                m.decode(bytes(damaged), "f")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": "incremental"}, "no file with the store's content"),
        ({"from_revision": 3}, "begins in the middle"),
        ({"recipients": ["age1"]}, "encrypted in part"),
        ({"files": [*FULL.files, *FULL.files]}, "twice"),
        ({"files": [m.FileEntry(name="changes", size_bytes=1, blake3=HASH)]}, "no file with the store's content"),
        (
            {
                "kind": "incremental",
                "parent": m.Parent(number=1, checksum=HASH),
                "files": [m.FileEntry(name="changes", size_bytes=1, blake3=HASH)],
            },
            "before what it is added to",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(fields: dict[str, object], why: str) -> None:
    with pytest.raises(BackupInvalid, match=why):
        m.decode(m.encode(replace(FULL, **fields)), "f")


def test_a_manifest_of_another_version_says_so() -> None:
    with pytest.raises(BackupInvalid, match="version 2; this build knows 1"):
        m.decode(m.encode(replace(FULL, version=2)), "f")
    with pytest.raises(BackupInvalid, match="no backup's manifest"):
        m.decode(msgspec.json.encode({"format": "tar"}), "f")


# --- encryption ------------------------------------------------------------------------------------------------------


def encrypted(data: bytes, *identities: x25519.Identity) -> bytes:
    out = io.BytesIO()
    encryption = Encryption([str(identity.to_public()) for identity in identities], lambda piece: _put(out, piece))
    for start in range(0, len(data), 100_000):
        encryption.write(data[start : start + 100_000])
    encryption.finish()
    return out.getvalue()


def _put(out: io.BytesIO, piece: bytes) -> None:
    out.write(piece)


def decrypted(data: bytes, *identities: x25519.Identity) -> bytes:
    out = io.BytesIO()
    decrypt(io.BytesIO(data), lambda piece: _put(out, piece), identities, "file.age")
    return out.getvalue()


def test_what_is_encrypted_is_read_by_each_of_those_it_is_for() -> None:
    one, two, other = (x25519.Identity.generate() for _ in range(3))
    data = bytes(range(256)) * 2_000
    sealed = encrypted(data, one, two)
    assert decrypted(sealed, two) == decrypted(sealed, other, one) == data
    with pytest.raises(BackupInvalid, match=r"file\.age: none of the secret keys fits"):
        decrypted(sealed, other)
    with pytest.raises(BackupInvalid, match="no secret key was given"):
        decrypted(sealed)
    for damaged in (sealed[:-1], sealed[:70_000], sealed[:30], b"", sealed[:500] + b"?" + sealed[501:]):
        with pytest.raises(BackupInvalid, match="cut short or damaged"):
            decrypted(damaged, one)


def test_a_file_that_cannot_be_written_is_told_as_itself() -> None:
    def full(piece: bytes) -> None:
        raise OSError(28, "No space left on device")

    encryption = Encryption([str(x25519.Identity.generate().to_public())], full)

    def write() -> None:
        for _ in range(100):
            encryption.write(bytes(100_000))
        encryption.finish()

    with pytest.raises(OSError, match="No space"):
        write()
    encryption.abandon()


def test_keys_are_checked(tmp_path: Path) -> None:
    identity = x25519.Identity.generate()
    public = str(identity.to_public())
    assert check_recipients([public, public]) == [public]
    assert mark_of([public]) != mark_of([public, str(x25519.Identity.generate().to_public())])
    with pytest.raises(InvalidRequest, match="no public key"):
        # Another character than the last one, whichever that is: the checksum does not hold.
        check_recipients([public[:-1] + ("p" if public[-1] == "q" else "q")])
    file = tmp_path / "key"
    file.write_text(f"# created: today\n{identity}\n")
    file.chmod(0o644)
    with pytest.raises(IdentityError, match="others may read it"):
        read_identities(file)
    file.chmod(0o600)
    assert str(read_identities(file)[0].to_public()) == public
    file.write_text("AGE-SECRET-KEY-1NONSENSE\n")
    with pytest.raises(IdentityError, match="line 1"):
        read_identities(file)
    file.write_text("# nothing\n")
    with pytest.raises(IdentityError, match="no secret key"):
        read_identities(file)
    with pytest.raises(IdentityError, match="No such file"):
        read_identities(tmp_path / "none")
