"""The body of the process that unpacks one image. Its answer goes to standard output: JSON, or what is wrong.

By descriptor and in no other way it is given the archive; it is in the empty directory.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

# All that is needed later is loaded here: once confined, no module can be found any more.
import jobs.unpack.oci as oci
import jobs.unpack.squashfs as squashfs
from jobs.unpack.errors import ImageError
from jobs.unpack.tree import Tree

MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def main(native: Any, archive: int, options: dict[str, Any]) -> int:
    """Give up everything else, unpack, and answer; return the exit code."""
    machine = os.uname().machine
    try:
        native.confine(**options["confine"])
        answer, code = json.dumps(_unpack(archive, MACHINES.get(machine, machine), options["tree"])), 0
    except (ImageError, RuntimeError) as error:
        answer, code = str(error), 1
    except MemoryError:
        answer, code = "it needs more memory than unpacking it may take", 1
    except OSError as error:
        answer, code = f"{error.strerror or error}", 1
    left = memoryview(answer.encode("utf-8", "replace"))
    while left:
        left = left[os.write(1, left) :]
    return code


def _unpack(archive: int, machine: str, bounds: dict[str, Any]) -> dict[str, Any]:
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    tree = Tree(root, **bounds)
    said: dict[str, Any] = {"env": [], "cwd": None}
    if os.pread(archive, 4, 0) == squashfs.MAGIC:
        squashfs.unpack(archive, tree)
    else:
        said = oci.unpack(archive, tree, machine)
    tree.finish()
    return {**said, "bytes": tree.bytes, "entries": tree.entries, "skipped": tree.skipped}
