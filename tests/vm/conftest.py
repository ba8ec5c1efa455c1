"""Fixtures of the tests that run in virtual machines (`make test-vm`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.image import Image, base_image, missing_tools
from tests.vm.machine import Machine
from tests.vm.product import DISK, mount_product, product

HERE = Path(__file__).parent
LOAD = "/usr/local/lib/load.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = missing_tools()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vm)
            # Of an emulated machine that has to share two cores with others.
            item.add_marker(pytest.mark.timeout(1_200))
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


@pytest.fixture(scope="session")
def shares(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The disk with the wheel and what it needs."""
    return {DISK: product(tmp_path_factory.mktemp("product"))}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, image: Image, shares: dict[str, Path]) -> Image:
    """An image with Jobs installed and nothing of it started yet; alice and bob may use it, bob as an admin."""
    with Machine("install", tmp_path_factory.mktemp("install"), image, shares=shares) as made:
        mount_product(made)
        made.check(["jobctl", "install-units"])
        made.check("usermod --append --groups jobs alice && usermod --append --groups jobs,jobs-admin bob")
        # An emulated machine may take longer than a lease to restart a node.
        made.check(
            "sed -i 's/^#lease_s = .*/lease_s = 90/' /etc/jobs/node.toml && grep -qx 'lease_s = 90' /etc/jobs/node.toml"
        )
        made.put(LOAD, (HERE / "load.py").read_text())
        made.shut_down()
        return Image(disk=made.root_disk, kernel=image.kernel, initrd=image.initrd)


@pytest.fixture(scope="session")
def appliance(tmp_path_factory: pytest.TempPathFactory, installed: Image, shares: dict[str, Path]) -> Iterator[Machine]:
    """A machine with a node and a worker of each type as units, for tests that leave them running."""
    with Machine("appliance", tmp_path_factory.mktemp("appliance"), installed, shares=shares) as made:
        made.check(["jobctl", "install-units", "--enable"])
        made.check(["systemctl", "start", "jobs-node"], timeout_s=300)
        yield made
