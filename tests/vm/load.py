"""Submits jobs and writes keys, without end, and says of each when it was acknowledged; or tells what became of them.

`load.py write WRITERS`: a line for each that was acknowledged: the job's id, and the key that holds it.
`load.py read`: takes such lines; a line for each that is not as it was acknowledged, or whose job did not complete.
"""

from __future__ import annotations

import sys
import threading
import uuid

from jobs import Client, shell_job
from jobs.protocol.model import Retry

WAIT_S = 240


def write(writers: int) -> None:
    threads = [threading.Thread(target=write_one, args=(uuid.uuid4().hex,)) for _ in range(writers)]
    for thread in threads:
        thread.start()


def write_one(name: str) -> None:
    with Client(patience_s=WAIT_S) as client:
        number = 0
        while True:
            key = f"/data/load/{name}/{number}"
            job = client.submit(shell_job(["true"], retry=Retry(max_attempts=10, backoff="none"))).job
            client.kv.put(key, job.id)
            sys.stdout.write(f"{job.id} {key}\n")
            sys.stdout.flush()
            number += 1


def read() -> None:
    count = 0
    with Client(patience_s=WAIT_S) as client:
        for line in sys.stdin:
            job, key = line.split()
            count += 1
            value = client.kv.get(key)
            if value is None or value.value.text != job:
                print("lost:", key, value)
            ended = client.wait(job, timeout_s=WAIT_S)
            results = [attempt for attempt in client.attempts(job) if attempt.state == "completed"]
            if ended.state != "completed" or len(results) != 1:
                print("not completed once:", ended, results)
    print("read", count)


if __name__ == "__main__":
    write(int(sys.argv[2])) if sys.argv[1] == "write" else read()
