"""A process that has secrets in memory leaves none of it on a disk when it crashes."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

NO_CORE_BYTES: Final = 1
"""Not 0: that would not keep a core from a program that the host's core_pattern pipes it to; 1 does."""


def forbid_core_dumps() -> None:
    """Have this process and those that it starts dump no core."""
    with contextlib.suppress(ValueError, OSError):  # a limit of 0 that cannot be raised: there is no file then either
        resource.setrlimit(resource.RLIMIT_CORE, (NO_CORE_BYTES, NO_CORE_BYTES))
