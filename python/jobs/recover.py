"""The command `jobs-node recover`."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from jobs._native import NativeError
from jobs.cluster import ClusterFileError
from jobs.cluster.recovery import Recovery, RecoveryError, Remains
from jobs.config import NodeConfig
from jobs.consensus import ConsensusError
from jobs.errors import JobsError

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_UNCONFIRMED: Final = 2


def recover(config: NodeConfig, *, confirmed: bool) -> int:
    """Say what a stopped node holds and, once that is confirmed, make it a cluster of its own; return the exit code."""
    try:
        recovery = Recovery(
            config.node.id, config.node.data_dir, config.log_dir, config.store_dir, 2 * config.store.max_bytes
        )
        try:
            remains = recovery.remains()
            print(warning(config.node.id, remains), file=sys.stderr)
            if not confirmed:
                print("Nothing was changed. To do it: the same command with --yes", file=sys.stderr)
                return EXIT_UNCONFIRMED
            cluster = asyncio.run(recovery.go_alone())
        finally:
            recovery.close()
    except (NativeError, RecoveryError, ClusterFileError, ConsensusError, JobsError, OSError) as error:
        print(f"jobs-node recover: {error}", file=sys.stderr)
        if "open already" in str(error):
            print("The node runs: stop it first (systemctl stop jobs-node).", file=sys.stderr)
        return EXIT_FAILED
    print(f"{config.node.id} is the only member of cluster {cluster}; start it, then let others join: jobctl cluster")
    return EXIT_OK


def warning(name: str, remains: Remains) -> str:
    others = ", ".join(remains.others) or "none"
    applied, unsure = remains.applied_index, remains.last_index - remains.applied_index
    return f"""\
THIS CAN LOSE DATA THAT WAS ACKNOWLEDGED. It is for when a majority of the disks is lost for good.

{name} has been a member of cluster {remains.cluster} (voters: {", ".join(remains.voters) or "none"}).
The last entry on its disk is {remains.last_index}, of term {remains.last_term}. All up to entry {applied}
have taken effect here, and {unsure} behind that have not.

It would become the only member of a new cluster, with all of these entries: also those of the {unsure} of which
nobody ever learnt what became of them.
LOST is whatever the other members ({others}) acknowledged and this disk does not hold. Of several nodes
that are left, recover the one whose last entry has the highest term, and of these the highest number.
The other members must not run on: empty their node.data_dir, and let them join anew with tickets."""
