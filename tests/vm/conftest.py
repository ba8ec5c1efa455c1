"""Fixtures of the tests that run in virtual machines (`make test-vm`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.image import Image, base_image, missing_tools
from tests.vm.machine import Machine

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = missing_tools()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vm)
            item.add_marker(pytest.mark.timeout(900))
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"no virtual machines without {', '.join(missing)}"))


@pytest.fixture(scope="session")
def image() -> Image:
    """The image that machines start from."""
    return base_image()


@pytest.fixture
def machine(tmp_path: Path, image: Image) -> Iterator[Machine]:
    """A machine with nothing of Jobs in it, of this test alone."""
    with Machine("machine", tmp_path, image) as made:
        yield made
