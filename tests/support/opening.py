"""Open damaged copies of a store, each in a process of its own: LMDB follows pointers into nowhere.

`python -m tests.support.opening STORE SCRATCH SEED COUNT` flips one bit of the data file at a time and prints, a line a
copy, what came of it: `same`, `recovered`, `ended` (two processes, and the third one recovered) or `wrong`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from random import Random

from jobs._native import Store

SAME, RECOVERED, WRONG = 10, 11, 12


def look(directory: Path, truth: bytes) -> int:
    """Open a store in a process of its own; return how that ended."""
    child = os.fork()
    if child == 0:
        end = 1
        try:
            store = Store(str(directory))
            end = RECOVERED if store.recovered else SAME if store.state_hash() == truth else WRONG
            store.close()
        finally:
            os._exit(end)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(place: Path, scratch: Path, seed: int, count: int) -> None:
    store = Store(str(place))
    truth = store.state_hash()
    store.close()
    good = (place / "data.mdb").read_bytes()
    for number in range(count):
        chance = Random(f"{seed}/{number}")
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(place, scratch)
        data = bytearray(good)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (scratch / "data.mdb").write_bytes(data)
        end = look(scratch, truth)
        if end < 0:
            end = -end if look(scratch, truth) < 0 and look(scratch, truth) == RECOVERED else WRONG
        print({SAME: "same", RECOVERED: "recovered"}.get(end, "wrong" if end in (1, WRONG) else "ended"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
