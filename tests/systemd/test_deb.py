"""The Debian package: what its scripts name is what there is, and it holds what a machine needs.

Its installation, upgrade and removal belong to a machine with systemd.
"""

from __future__ import annotations

import os
import platform as platform_of_here
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jobs import appliance

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "systemd" / "debian"
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here")


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_its_scripts_are_of_the_shell(script: str) -> None:
    subprocess.run(["/bin/sh", "-n", str(DEBIAN / script)], check=True)
    assert (DEBIAN / script).read_text().startswith("#!/bin/sh\nset -e\n")


def test_its_scripts_name_the_units_that_there_are() -> None:
    postinst = (DEBIAN / "postinst").read_text()
    workers = set(re.findall(r"jobs-worker@\w+\.service", postinst))
    assert workers == set(appliance.worker_units(appliance.worker_types()))
    preset = re.search(r"systemctl preset --quiet (.*) \$WORKERS", postinst)
    assert preset is not None
    assert sorted(preset[1].split()) == sorted(appliance.NODE_UNITS)


@needs_dpkg
@pytest.mark.parametrize(
    ("platform", "libc"),
    [("manylinux_2_34_x86_64", "2.34"), ("linux_x86_64", platform_of_here.libc_ver()[1])],
)
def test_it_holds_commands_units_and_guides_and_leaves_the_configuration_to_the_operator(
    tmp_path: Path, platform: str, libc: str
) -> None:
    # Given a wheel that needs nothing: what a real one needs is some hundred megabytes
    wheel = tmp_path / f"jobs-9.8.7-cp311-abi3-{platform}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("jobs/__init__.py", "")
        archive.writestr("jobs-9.8.7.dist-info/METADATA", "Name: jobs\nVersion: 9.8.7\n")
    # When it is made a package
    command = ["systemd/debian/build.py", str(wheel), str(tmp_path / "dist"), "--compression", "none"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    package = done.stdout.strip()
    listed = subprocess.run(["dpkg-deb", "-c", package], check=True, capture_output=True, text=True).stdout
    held = {line.split()[5].removeprefix("."): line.split()[1] for line in listed.splitlines()}
    # Then everything is there, and root's
    assert set(held.values()) == {"root/root"}
    for path in (
        "/usr/bin/jobctl",
        "/usr/bin/jobs-node",
        "/usr/lib/jobs/bin/jobs-worker",
        "/usr/lib/systemd/system/jobs-node.service",
        "/usr/lib/sysusers.d/jobs.conf",
        "/usr/share/jobs/node.toml",
        "/usr/share/doc/jobs/operations.md",
        "/usr/share/doc/jobs/copyright",
    ):
        assert path in held
    # And nothing that an operator may change is overwritten by the next one, and nothing half-made is left
    assert not [path for path in held if path.startswith("/etc")]
    assert [path.name for path in (tmp_path / "dist").iterdir()] == [Path(package).name]
    fields = subprocess.run(["dpkg-deb", "-f", package], check=True, capture_output=True, text=True).stdout
    assert "Version: 9.8.7\n" in fields
    assert f"libc6 (>= {libc})" in fields
