"""What is tried in the machines, as disks for them: the tree as it is built here, or a wheel with all that it needs."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

from tests.vm.machine import Machine

TREE: Final = Path(__file__).parents[2]
SITE: Final = "lib/python3.11/site-packages"
COMMANDS: Final = {"jobctl": "jobs.cli.main", "jobs-node": "jobs.node", "jobs-worker": "jobs.worker"}
PREFIX: Final = "/opt/jobs"


def from_tree(disk: Path) -> Path:
    """Make a disk of the package as it stands in this tree, with its extension and what it needs of this environment.

    It is a virtual environment for the image's Python, to be mounted at /opt/jobs: up in seconds, for trials by hand.
    """
    with tempfile.TemporaryDirectory(dir=disk.parent) as name:
        root = Path(name)
        site = root / SITE
        site.mkdir(parents=True)
        for distribution in needed():
            copy_distribution(distribution, site)
        shutil.copytree(TREE / "python" / "jobs", site / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
        programs = root / "bin"
        programs.mkdir()
        (programs / "python").symlink_to("/usr/bin/python3")
        for command, module in COMMANDS.items():
            program = programs / command
            program.write_text(
                f"#!{PREFIX}/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n", encoding="ascii"
            )
            program.chmod(0o755)
        compiled = [sys.executable, "-m", "compileall", "-q", "-s", str(root), "-p", PREFIX]
        subprocess.run([*compiled, "--invalidation-mode", "unchecked-hash", str(site)], check=True)
        plain = ["-noI", "-noD", "-noF", "-noX", "-all-root", "-quiet", "-no-progress"]
        subprocess.run(["mksquashfs", str(root), str(disk), "-noappend", *plain], check=True)
    return disk


def mount_product(machine: Machine) -> None:
    """Put the disk of `from_tree` in its place."""
    links = " ".join(f"{PREFIX}/bin/{command}" for command in COMMANDS)
    machine.check(
        f"mkdir -p {PREFIX} && mount -o ro /dev/disk/by-id/virtio-product {PREFIX} && ln -sf {links} /usr/bin/"
    )


def needed() -> list[importlib.metadata.Distribution]:
    """Return what the package needs to run, at any depth."""
    from packaging.requirements import Requirement

    found: dict[str, importlib.metadata.Distribution] = {}
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    waiting: list[str] = list(project["dependencies"])
    while waiting:
        requirement = Requirement(waiting.pop())
        key = canonical(requirement.name)
        if key not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found[key] = importlib.metadata.distribution(key)
            waiting.extend(found[key].requires or ())
    return [found[key] for key in sorted(found)]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def copy_distribution(distribution: importlib.metadata.Distribution, site: Path) -> None:
    for file in distribution.files or ():
        if ".." in file.parts or file.suffix == ".pyc":
            continue
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(str(file.locate()), target)
