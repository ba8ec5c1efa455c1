"""A machine to try things in by hand: `python -m tests.vm [--product] [-- COMMAND]`.

Boots a machine of the tests' image, with what is built of this tree installed when asked for, runs one command of the
shell or, without one, each line that it is given; the machine is gone at the end.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from tests.vm.image import TOOLS, base_image, missing_tools
from tests.vm.machine import Command, Machine
from tests.vm.product import DISK, mount_product, product, wheel


def main() -> int:
    options = parser().parse_args()
    if options.packages:
        print(*sorted(set(TOOLS.values())))
        return 0
    if missing := missing_tools():
        print(f"missing packages: {' '.join(missing)} (make setup-vm)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="jobs-vm-", dir="/var/tmp") as directory:
        shares = {DISK: built(Path(directory))} if options.product else {}
        machine = Machine(
            "trial", Path(directory), base_image(), cores=options.cores, memory_mib=options.memory, shares=shares
        )
        with machine:
            if options.product:
                mount_product(machine)
            for path in options.put:
                machine.put(f"/root/{path.name}", path.read_bytes(), mode=0o755)
            print("up", file=sys.stderr)
            if options.command:
                return show(machine.start(shlex.join(options.command), directory="/root"), options.timeout)
            for line in sys.stdin:
                code = show(machine.start(line, directory="/root"), options.timeout)
                print(f"[{code}]", file=sys.stderr)
    return 0


def built(directory: Path) -> Path:
    wheel(directory)
    (made,) = directory.glob("*.whl")
    return product(directory, made)


def show(command: Command, timeout_s: float) -> int:
    ended = command.wait(timeout_s)
    sys.stdout.write(ended.stdout)
    sys.stdout.flush()
    sys.stderr.write(ended.stderr)
    return ended.code


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    made.add_argument("--product", action="store_true", help="with the wheel of this tree installed")
    made.add_argument("--put", type=Path, action="append", default=[], metavar="FILE", help="copy it into /root")
    made.add_argument("--cores", type=int, default=2)
    made.add_argument("--memory", type=int, default=2_048, metavar="MIB")
    made.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="for each command")
    made.add_argument("--packages", action="store_true", help="only list the Debian packages that this needs")
    made.add_argument("command", nargs="*", help="a command and its arguments")
    return made


if __name__ == "__main__":
    sys.exit(main())
