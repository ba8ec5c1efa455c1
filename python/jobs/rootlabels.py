"""Root images that have names: workers say by labels which they have, and a job that names one requires its label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

ROOT_LABEL: Final = "root:"
"""What the names of these labels begin with."""


def root_labels(images: Iterable[str]) -> dict[str, str]:
    """Return the labels that stand for root images of these names."""
    return {f"{ROOT_LABEL}{name}": "yes" for name in images}
