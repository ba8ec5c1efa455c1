"""Runs a program as a host would that lacks something: `without.py [--call NUMBER]… [--namespace KIND]… -- ARGV…`.

System calls are answered with ENOSYS by a seccomp filter, as an older kernel does. Namespaces of a kind cannot be made
any more, by the limit that a kernel has for each user namespace (`user.max_KIND_namespaces`): the program runs in one,
as an ordinary user.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import struct
from pathlib import Path

ALLOW, ANSWER_ENOSYS = 0x7FFF0000, 0x00050000 | 38
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
NEW_USER = 0x10000000
NO_NEW_PRIVILEGES, SET_SECCOMP, SECCOMP_FILTER = 38, 22, 2
INSIDE_ID = 1000

libc = ctypes.CDLL(None, use_errno=True)


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def forget_namespaces(kinds: list[str]) -> None:
    uid, gid = os.geteuid(), os.getegid()
    check(libc.unshare(NEW_USER))
    for name, content in (
        ("setgroups", "deny"),
        ("gid_map", f"{INSIDE_ID} {gid} 1"),
        ("uid_map", f"{INSIDE_ID} {uid} 1"),
    ):
        Path("/proc/self", name).write_text(content)
    for kind in kinds:
        Path(f"/proc/sys/user/max_{kind}_namespaces").write_text("0")


def forget_calls(numbers: list[int]) -> None:
    instruction = struct.Struct("HBBI")
    steps = [instruction.pack(LOAD, 0, 0, 0)]
    for number in numbers:
        steps += [instruction.pack(JUMP_EQUAL, 0, 1, number), instruction.pack(RETURN, 0, 0, ANSWER_ENOSYS)]
    steps.append(instruction.pack(RETURN, 0, 0, ALLOW))
    program = Program(len(steps), b"".join(steps))
    check(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    check(libc.prctl(SET_SECCOMP, SECCOMP_FILTER, ctypes.byref(program), 0, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--call", type=int, action="append", default=[])
    parser.add_argument("--namespace", action="append", default=[])
    parser.add_argument("argv", nargs="+")
    options = parser.parse_args()
    if options.namespace:
        forget_namespaces(options.namespace)
    if options.call:
        forget_calls(options.call)
    os.execv(options.argv[0], options.argv)


if __name__ == "__main__":
    main()
