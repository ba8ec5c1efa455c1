"""Small root images that tests make: of the host's shell and what it needs, and of what no honest image has."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, "")
PROGRAMS = ("sh", "cat", "ls", "id", "touch", "mkdir", "rm", "env", "head", "chmod", "ln", "stat", "sleep")
Change = Callable[[tarfile.TarFile], None]


def make_tree(directory: Path) -> Path:
    """Fill a directory with a shell, a few programs and their libraries; return it."""
    for name in PROGRAMS:
        program = Path(shutil.which(name) or f"/bin/{name}").resolve()
        place(directory, program, Path("/bin") / name)
        listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+)\s+\(0x", listed):
            place(directory, Path(library).resolve(), Path(library))
    for path, text in (("etc/passwd", "job:x:1000:1000::/work:/bin/sh\n"), ("etc/image", "of the image\n")):
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_text(text)
    for path in ("proc", "dev", "tmp", "work", ".job", "run/secrets", "app"):
        (directory / path).mkdir(parents=True, exist_ok=True)
    (directory / "etc/link").symlink_to("/etc/image")
    return directory


def place(directory: Path, source: Path, path: Path) -> None:
    target = directory / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy(source, target)


def squashfs(tree: Path, target: Path, *options: str) -> Path:
    subprocess.run(["mksquashfs", str(tree), str(target), "-quiet", "-no-progress", *options], check=True)
    return target


def layer(change: Change) -> bytes:
    """Return a layer that is made by adding to a tar file."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as file:
        change(file)
    return data.getvalue()


def add(
    file: tarfile.TarFile,
    name: str,
    content: bytes = b"",
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    mode: int = 0o644,
) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = kind, len(content), link, mode
    file.addfile(info, io.BytesIO(content))


def of_tree(tree: Path) -> bytes:
    return layer(lambda file: file.add(tree, arcname="."))


def layout(
    target: Path,
    layers: Sequence[bytes],
    config: Mapping[str, Any] | None = None,
    *,
    compress: bool = True,
    architecture: str = MACHINE,
    broken: str = "",
    said: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write an OCI image layout as a tar file; `broken`: what of it is not as it should be; `said`: what its
    documents (`image`, `manifest`, `entry` of the index) say in place of what they should."""
    said = said or {}
    blobs: dict[str, bytes] = {}

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    kind = "application/vnd.oci.image.layer.v1.tar"
    stored = [put(gzip.compress(data), f"{kind}+gzip") if compress else put(data, kind) for data in layers]
    image = {
        "os": "linux",
        "architecture": architecture,
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]},
    }
    if broken == "content":
        image["rootfs"]["diff_ids"][0] = f"sha256:{'0' * 64}"  # type: ignore[index]
    image |= said.get("image", {})
    described = put(json.dumps(image).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "config": described, "layers": stored, **said.get("manifest", {})}
    entry = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    entry |= said.get("entry", {})
    if broken == "digest":
        digest = stored[0]["digest"].removeprefix("sha256:")
        blobs[digest] = blobs[digest][:-1] + bytes([blobs[digest][-1] ^ 1])
    with tarfile.open(target, "w") as file:
        add(file, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        add(file, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        for digest, data in blobs.items():
            if broken != "missing" or data is not blobs[stored[0]["digest"].removeprefix("sha256:")]:
                add(file, f"blobs/sha256/{digest}", data)
    return target
