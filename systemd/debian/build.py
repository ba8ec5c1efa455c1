"""Makes the Debian package: `make deb`, or `python systemd/debian/build.py WHEEL DIRECTORY`.

What the package needs of Python goes with it, in an environment of its own (/usr/lib/jobs): Debian's packages of these
libraries are older. It is taken from the environment that runs this, which `make setup` has made from the lock file,
and so the package is for that minor version of Python. dpkg-deb and nothing else of Debian's tools is needed.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

TREE: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).parent
HOME: Final = Path("/usr/lib/jobs")
PYTHON: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
COMMANDS: Final = {"jobctl": "jobs.cli.main", "jobs-node": "jobs.node", "jobs-worker": "jobs.worker"}
SCRIPTS: Final = ("postinst", "prerm", "postrm")
_CONTROL: Final = """\
Package: jobs
Version: {version}
Architecture: {architecture}
Maintainer: The authors of Jobs <jobs@localhost>
Installed-Size: {kibibytes}
Depends: python3 (>= {python}), python3 (<< {next_python}), libc6 (>= {libc}), systemd (>= 252)
Recommends: uidmap
Section: admin
Priority: optional
Description: distributed job execution with a replicated store and a sandbox
 Jobs runs commands on a cluster and keeps what came of them. A job is submitted,
 stored in Jobs' own replicated key-value store, scheduled to a worker, run in a
 sandbox, and its result is kept durably. `systemctl start jobs-node` starts a
 node and a worker of each type.
"""


def build(wheel: Path, directory: Path, compression: str = "zstd") -> Path:
    """Make the package of a wheel in a directory; return its path."""
    name, version, _, tags = parse_wheel_filename(wheel.name)
    platform = max(tag.platform for tag in tags)
    architecture = _said("dpkg", "--print-architecture")
    package = directory / f"{name}_{version}_{architecture}.deb"
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".deb-") as name_of_root:
        root = Path(name_of_root)
        root.chmod(0o755)
        lay_out(root, wheel)
        size = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir())
        control = root / "DEBIAN"
        control.mkdir()
        (control / "control").write_text(
            _CONTROL.format(
                version=version,
                architecture=architecture,
                kibibytes=size // 1024 + 1,
                python=f"{sys.version_info.major}.{sys.version_info.minor}",
                next_python=f"{sys.version_info.major}.{sys.version_info.minor + 1}",
                libc=libc(platform),
            )
        )
        for script in SCRIPTS:
            shutil.copy(HERE / script, control / script)
            (control / script).chmod(0o755)
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", f"-Z{compression}", "--build", str(root), str(package)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return package


def libc(platform: str) -> str:
    """Return the C library that a wheel of this platform needs: a plain Linux's is for what is here."""
    if named := re.match(r"manylinux_(\d+)_(\d+)_", platform):
        return f"{named[1]}.{named[2]}"
    return (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")


def lay_out(root: Path, wheel: Path) -> None:
    """Put everything of the package below `root`."""
    home = root / HOME.relative_to("/")
    site = home / "lib" / PYTHON / "site-packages"
    site.mkdir(parents=True)
    for distribution in needed(wheel):
        copy(distribution, site)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    compileall.compile_dir(
        site,
        quiet=2,
        stripdir=str(root),
        prependdir="/",
        # Debian's clocks and those of whoever builds are no part of it.
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
    programs = home / "bin"
    programs.mkdir()
    (programs / "python").symlink_to("/usr/bin/python3")
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (root / "usr/bin").mkdir(parents=True)
    for command, module in COMMANDS.items():
        program = programs / command
        program.write_text(f"#!{HOME}/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
        program.chmod(0o755)
        (root / "usr/bin" / command).symlink_to(HOME / "bin" / command)
    _install_units(root)
    shares = root / "usr/share"
    shutil.copytree(TREE / "docs", shares / "doc/jobs")
    for source, target in {"LICENSE": "copyright", "CHANGELOG.md": "changelog", "README.md": "README.md"}.items():
        shutil.copy(TREE / source, shares / "doc/jobs" / target)
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _install_units(root: Path) -> None:
    """By the command that installs them everywhere; the configuration is made by `postinst`, once."""
    install = ["install-units", "--root", str(root), "--prefix", "/usr", "--commands", "/usr/bin", "--systemd", "252"]
    subprocess.run([sys.executable, "-m", "jobs.cli.main", *install], check=True, stdout=subprocess.DEVNULL)
    (root / "usr/share/jobs").mkdir(parents=True)
    (root / "etc/jobs/node.toml").rename(root / "usr/share/jobs/node.toml")
    shutil.copy(TREE / "systemd/backoff.conf", root / "usr/share/jobs/backoff.conf")
    shutil.rmtree(root / "etc")


def needed(wheel: Path) -> Iterator[importlib.metadata.Distribution]:
    """Yield what the wheel needs to run, at any depth, as it is installed here."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        waiting = re.findall(r"(?m)^Requires-Dist: (.*)$", archive.read(metadata).decode())
    seen = {"jobs"}
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        found = importlib.metadata.distribution(name)
        if not requirement.specifier.contains(found.version, prereleases=True):
            raise SystemExit(f"{name} {found.version} is installed here, and {requirement} is needed: make setup")
        yield found
        waiting += found.requires or ()


def copy(distribution: importlib.metadata.Distribution, site: Path) -> None:
    """Copy the files of a distribution, but for its commands and what was compiled of it."""
    for file in distribution.files or ():
        if ".." in file.parts or file.suffix == ".pyc":
            continue
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(str(file.locate()), target)


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--compression", default="zstd", help="of dpkg-deb")
    options = parser.parse_args()
    print(build(options.wheel, options.directory, options.compression))
    return 0


if __name__ == "__main__":
    sys.exit(main())
