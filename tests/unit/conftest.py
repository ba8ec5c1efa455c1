"""What several unit tests are given."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def untouched_root() -> Iterator[None]:
    """Leave the root logger as it was before a test that sets the program's log up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level
