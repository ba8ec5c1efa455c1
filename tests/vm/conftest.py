"""Fixtures of the tests that run in virtual machines (`make test-vm`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vm.image import Image, ImageError, base_image, locked, missing_tools
from tests.vm.machine import ROOT, Machine
from tests.vm.product import DISK, PRODUCT, mount_product, product, wheel

HERE = Path(__file__).parent
LOAD = "/usr/local/lib/load.py"
WORKERS = [f"jobs-worker@{name}" for name in ("shell", "sql", "blob", "maintenance", "replication")]


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
    try:
        return base_image()
    except ImageError as error:
        pytest.skip(f"no image for virtual machines: {error}")


@pytest.fixture
def machine(tmp_path: Path, image: Image) -> Iterator[Machine]:
    """A machine with nothing of Jobs in it, of this test alone."""
    with Machine("machine", tmp_path, image) as made:
        yield made


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a directory that is made by whichever of the processes of this run needs it first."""
    base = factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with locked(directory):
        if not directory.exists():
            made = directory.with_suffix(".new")
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            make(made)
            made.rename(directory)
    return directory


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel."""
    (made,) = once(tmp_path_factory, "wheel", wheel).glob("*.whl")
    return made


@pytest.fixture(scope="session")
def shares(tmp_path_factory: pytest.TempPathFactory, built: Path) -> dict[str, Path]:
    """The disk with the wheel and what it needs."""
    return {DISK: once(tmp_path_factory, "product", lambda directory: product(directory, built)) / PRODUCT}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, image: Image, shares: dict[str, Path]) -> Image:
    """An image with Jobs installed and nothing of it started yet; alice and bob may use it, bob as an admin."""
    directory = once(tmp_path_factory, "install", lambda directory: install(directory, image, shares))
    return Image(disk=directory / ROOT, kernel=image.kernel, initrd=image.initrd)


def install(directory: Path, image: Image, shares: dict[str, Path]) -> None:
    with Machine("install", directory, image, shares=shares) as made:
        mount_product(made)
        made.check(["jobctl", "install-units"])
        made.check("usermod --append --groups jobs alice && usermod --append --groups jobs,jobs-admin bob")
        # An emulated machine may take longer than a lease to restart a node.
        made.check(
            "sed -i 's/^#lease_s = .*/lease_s = 90/' /etc/jobs/node.toml && grep -qx 'lease_s = 90' /etc/jobs/node.toml"
        )
        made.put(LOAD, (HERE / "load.py").read_text())
        made.shut_down()


@pytest.fixture(scope="session")
def appliance(tmp_path_factory: pytest.TempPathFactory, installed: Image, shares: dict[str, Path]) -> Iterator[Machine]:
    """A machine with a node and a worker of each type as units, for tests that leave them running."""
    with Machine("appliance", tmp_path_factory.mktemp("appliance"), installed, shares=shares) as made:
        made.check(["jobctl", "install-units", "--enable"])
        # The workers by name: it is they that say when they are registered.
        made.check(["systemctl", "start", "jobs-node", *WORKERS], timeout_s=300)
        yield made
