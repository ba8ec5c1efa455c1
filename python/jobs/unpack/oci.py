"""Image layouts of the Open Container Initiative in a tar file: from the index to the layers, every digest verified."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from jobs.unpack.errors import ImageError, shown
from jobs.unpack.tree import Tree

MAX_MEMBERS: Final = 10_000
"""Blobs of a layout."""
MAX_DOCUMENT_BYTES: Final = 4 << 20
MAX_INDEXES: Final = 4
"""Indexes in indexes."""
MAX_LAYERS: Final = 1_000
PIECE_BYTES: Final = 256 << 10
MEMBER_BYTES: Final = 4 << 10
"""What a member takes in a layer besides its content."""
INDEXES: Final = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
WHITEOUT: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_DIGITS: Final = frozenset("0123456789abcdef")


def unpack(archive: int, tree: Tree, machine: str) -> dict[str, Any]:
    """Unpack the image for this machine (`amd64`, `arm64`); return what it says of how it is run."""
    layout = Layout(archive)
    manifest = _manifest(layout, machine)
    image = _mapping(layout.document(_mapping(manifest.get("config"))))
    made_for = (image.get("os") or "linux", image.get("architecture") or machine)
    if made_for != ("linux", machine):
        raise ImageError(f"it is made for {shown('/'.join(map(str, made_for)))}, this machine is linux/{machine}")
    layers = _list(manifest.get("layers"))
    contents = _list(_mapping(image.get("rootfs")).get("diff_ids"))
    if len(layers) > MAX_LAYERS or len(layers) != len(contents):
        raise ImageError("its manifest and its configuration have different layers, or too many")
    for layer, content in zip(layers, contents, strict=True):
        _apply(layout, _mapping(layer), str(content), tree)
    run = _mapping(image.get("config") or {})
    return {
        "env": [_text(one) for one in _list(run.get("Env") or [])],
        "cwd": _text(run.get("WorkingDir") or "") or None,
    }


class Layout:
    """The members of the tar file, by name."""

    def __init__(self, archive: int) -> None:
        self._archive = archive
        self._members: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(fileobj=_Reader(archive, 0, os.fstat(archive).st_size), mode="r:") as members:
                for member in members:
                    if member.isreg():
                        self._members[member.name.removeprefix("./")] = (member.offset_data, member.size)
                    if len(self._members) > MAX_MEMBERS:
                        raise ImageError(f"its layout has more than {MAX_MEMBERS} members")
        except tarfile.TarError as error:
            raise ImageError(f"it is neither a squashfs file nor a tar file: {error}") from None
        if "oci-layout" not in self._members or "index.json" not in self._members:
            raise ImageError("it is no OCI image layout: oci-layout or index.json is missing")

    def index(self) -> dict[str, Any]:
        return _parsed(self._read("index.json"), "index.json")

    def document(self, descriptor: Mapping[str, Any]) -> dict[str, Any]:
        """Return the document that a descriptor names, verified."""
        blob = self.blob(descriptor)
        text = self._whole(blob, "a document")
        _check(descriptor["digest"], hashlib.sha256(text).hexdigest())
        return _parsed(text, str(descriptor["digest"]))

    def blob(self, descriptor: Mapping[str, Any]) -> _Reader:
        """Return the blob that a descriptor names, of the size that it says."""
        digest = descriptor.get("digest")
        kind, _, digits = str(digest).partition(":")
        if kind != "sha256" or len(digits) != 64 or not _DIGITS.issuperset(digits):
            raise ImageError(f"{shown(str(digest))} is no digest by SHA-256")
        place = self._members.get(f"blobs/sha256/{digits}")
        if place is None:
            raise ImageError(f"{digest} is missing")
        if place[1] != descriptor.get("size"):
            raise ImageError(f"{digest} has another size than it should")
        return _Reader(self._archive, *place)

    def _read(self, name: str) -> bytes:
        return self._whole(_Reader(self._archive, *self._members[name]), name)

    @staticmethod
    def _whole(blob: _Reader, name: str) -> bytes:
        if blob.size > MAX_DOCUMENT_BYTES:
            raise ImageError(f"{name} has more than {MAX_DOCUMENT_BYTES} bytes")
        return blob.read()


def _manifest(layout: Layout, machine: str) -> dict[str, Any]:
    index = layout.index()
    for _ in range(MAX_INDEXES):
        chosen = _chosen([_mapping(one) for one in _list(index.get("manifests") or [])], machine)
        found = layout.document(chosen)
        if str(chosen.get("mediaType")) not in INDEXES:
            return found
        index = found
    raise ImageError(f"it has more than {MAX_INDEXES} indexes in each other")


def _chosen(manifests: list[dict[str, Any]], machine: str) -> dict[str, Any]:
    """Return the one for this machine, or the only one."""
    if len(manifests) > 1:
        manifests = [one for one in manifests if _fits(one.get("platform"), machine)]
    if not manifests:
        raise ImageError(f"it has no image for linux/{machine}")
    if len(manifests) > 1:
        raise ImageError(f"it has {len(manifests)} images, and nothing says which: make a layout of one")
    return manifests[0]


def _fits(platform: Any, machine: str) -> bool:
    if platform is None:
        return True
    wanted = _mapping(platform)
    return (wanted.get("os"), wanted.get("architecture")) == ("linux", machine)


def _apply(layout: Layout, descriptor: Mapping[str, Any], content: str, tree: Tree) -> None:
    blob: Any = _Hashed(layout.blob(descriptor))
    first = blob.peek(4)
    if first.startswith(_ZSTD):
        raise ImageError("a layer is compressed by zstd; use gzip, or none")
    limit = tree.max_bytes + tree.max_entries * MEMBER_BYTES
    unpacked: Any = _Hashed(gzip.GzipFile(fileobj=blob) if first.startswith(_GZIP) else blob, limit)
    ended: Any = _Ended(unpacked)
    try:
        with tarfile.open(fileobj=ended, mode="r|", bufsize=PIECE_BYTES, errorlevel=2) as members:
            for member in members:
                _apply_member(members, member, tree)
                members.members.clear()  # type: ignore[attr-defined]  # a million would take a gigabyte
        unpacked.drain()
        blob.drain()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ImageError(f"{descriptor['digest']}: {error}") from None
    _check(descriptor["digest"], blob.digest())
    _check(content, unpacked.digest())
    tree.next_layer()


def _apply_member(members: tarfile.TarFile, member: tarfile.TarInfo, tree: Tree) -> None:
    path = os.fsencode(member.name)
    parent, _, name = path.rstrip(b"/").rpartition(b"/")
    if name == OPAQUE:
        tree.opaque(parent)
    elif name.startswith(WHITEOUT):
        # Others that begin so (`.wh..wh.plnk`) are what one union file system kept for itself.
        if not name.startswith(WHITEOUT * 2):
            tree.whiteout(parent + b"/" + name.removeprefix(WHITEOUT))
    elif member.isdir():
        tree.directory(path)
    elif member.issym():
        tree.symbolic_link(path, os.fsencode(member.linkname))
    elif member.islnk():
        tree.hard_link(path, os.fsencode(member.linkname))
    elif member.isreg():
        file = members.extractfile(member)
        assert file is not None
        tree.file(path, member.mode, iter(lambda: file.read(PIECE_BYTES), b""))
    elif member.isdev():
        tree.skip(path)
    else:
        raise ImageError(f"{shown(path)}: a member of type {member.type!r}")


class _Reader(io.RawIOBase):
    """A part of the archive, from its beginning."""

    def __init__(self, archive: int, start: int, size: int) -> None:
        self._archive = archive
        self._start = start
        self.size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self.size - self._at)
        data = os.pread(self._archive, left if size is None or size < 0 else min(size, left), self._start + self._at)
        self._at += len(data)
        return data


class _Hashed:
    """A reader that knows the digest of what was read, which may not be endless."""

    def __init__(self, inner: Any, limit: int | None = None) -> None:
        self._inner = inner
        self._limit = limit
        self._hash = hashlib.sha256()
        self._count = 0
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        self._ahead = self._inner.read(size)
        return self._ahead

    def read(self, size: int = -1) -> bytes:
        data, self._ahead = self._ahead, b""
        if size < 0 or len(data) < size:
            data += self._inner.read(size if size < 0 else size - len(data))
        elif len(data) > size:
            data, self._ahead = data[:size], data[size:]
        self._hash.update(data)
        self._count += len(data)
        if self._limit is not None and self._count > self._limit:
            raise ImageError(f"a layer has more than {self._limit} bytes")
        return data

    def drain(self) -> None:
        """Read what comes after the last member: the digest is of all."""
        for _ in self._pieces():
            pass

    def digest(self) -> str:
        return self._hash.hexdigest()

    def _pieces(self) -> Iterator[bytes]:
        return iter(lambda: self.read(PIECE_BYTES), b"")


class _Ended:
    """The same with the zeros that end a tar file, which some who make layers leave out."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._count = 0
        self._is_over = False

    def read(self, size: int) -> bytes:
        data: bytes = self._inner.read(size)
        self._count += len(data)
        if data or self._is_over:
            return data
        self._is_over = True
        return bytes(-self._count % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


def _check(expected: Any, found: str) -> None:
    if expected != f"sha256:{found}":
        raise ImageError(f"{shown(str(expected))} is not what its digest says")


def _parsed(text: bytes, name: str) -> dict[str, Any]:
    try:
        return _mapping(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{shown(name)}: {error}") from None


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ImageError("a document of it has a value where there should be a mapping")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ImageError("a document of it has a value where there should be a list")
    return value


def _text(value: Any) -> str:
    try:
        if isinstance(value, str) and b"\0" not in value.encode():
            return value
    except UnicodeEncodeError:
        pass
    raise ImageError("a document of it has a value where there should be text")
