"""What a job is given to keep to itself: who reads it, where it is left, and that it does not come out by accident."""

from __future__ import annotations

import base64
import os
import time
from pathlib import Path

from jobs.protocol.model import Reason
from jobs.workers.sandbox import Notes

from .conftest import Sandbox, descendants_of, limits
from .test_ends import end

WAIT = "trap 'exit 0' TERM; while :; do sleep 0.02; done"
TOKEN = b"correct-horse-battery"
KEY = b"-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEA\n-----END KEY-----\n"


def said_of(pid: int) -> bytes:
    """What anybody may read of a process, as far as it is still there."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def test_a_secret_is_a_file_that_its_job_reads_and_nobody_writes(sandbox: Sandbox) -> None:
    """Given a job that reads its secret, and tries each way to change it or to leave something beside it."""
    script = """
    test "$(wc -c < $JOBS_SECRETS/token)" = 21 && cp /run/secrets/token copy && cmp copy /run/secrets/token && echo same
    stat -c '%a %u %g' /run/secrets /run/secrets/token
    exec 2>/dev/null
    echo x > /run/secrets/token; echo x > /run/secrets/new; rm -f /run/secrets/token; chmod 777 /run/secrets/token
    chmod 777 /run/secrets; mv /run/secrets/token elsewhere; ln /run/secrets/token linked; touch /run/secrets/token
    mount -o remount,rw /run/secrets; umount /run/secrets; umount -l /run/secrets
    stat -c '%a %u %g %s' /run/secrets/token
    """
    result = sandbox.run(script=script, secrets={"token": TOKEN})
    assert result.outcome.reason is None, result
    assert result.stdout == "same\n500 1000 1000\n400 1000 1000\n400 1000 1000 21\n"


def test_a_secret_is_in_no_argument_and_no_variable_and_goes_with_its_job(sandbox: Sandbox) -> None:
    """Given a job with a secret that runs, and another one beside it."""
    holder = sandbox.start(
        script="cat /proc/*/cmdline /proc/*/environ | tr '\\0' '\\n' | grep -c '[h]orse-batt'; echo ready; " + WAIT,
        secrets={"token": TOKEN},
    )
    sandbox.wait_output(holder, b"ready")
    # when the other looks for it
    other = sandbox.run(script='ls -A /run/secrets; echo "<$JOBS_SECRETS>"; mount | grep -c secrets')
    # then there is nothing of it, for the neighbour, in our own process list, or in the host's mounts
    assert other.stdout.splitlines() == ["<>", "0"]
    assert TOKEN not in b"".join(said_of(pid) for pid in (sandbox.launcher.pid, *descendants_of(sandbox.launcher.pid)))
    assert "secrets" not in Path("/proc/self/mounts").read_text()
    sandbox.launcher.send([end(holder)])
    assert sandbox.wait(holder).stdout == "0\nready\n"


def test_what_a_job_writes_of_its_secrets_is_hidden_in_all_it_writes(sandbox: Sandbox) -> None:
    script = """
    cat /run/secrets/token; echo; cat /run/secrets/token >&2
    printf correct-; sleep 0.3; printf 'horse-battery and on\\n'
    base64 /run/secrets/token; printf 'user:%s' "$(cat /run/secrets/token)" | base64
    cat /run/secrets/key; sed -n 2p /run/secrets/key; base64 /run/secrets/key
    echo correct-horse
    echo "progress 40 with $(cat /run/secrets/token)" >&3
    printf 'ends with corr'
    """
    job = sandbox.start(script=script, secrets={"token": TOKEN, "key": KEY})
    result = sandbox.wait(job)
    lines = result.stdout.splitlines()
    assert lines[:3] == ["***", "*** and on", "***"], lines
    assert lines[3].startswith("dXNlc")
    assert lines[3].count("***") == 1
    assert lines[4:6] == ["***", "***"], lines
    assert lines[-2:] == ["correct-horse", "ends with corr"]
    assert not any(text in result.stdout for text in ("MIIE", "AQEF", base64.b64encode(KEY).decode()[8:40]))
    assert result.stderr == "***"
    notes = b"".join(event.lines for event in sandbox.events if isinstance(event, Notes) and event.job == job)
    assert notes == b"progress 40 with ***\n"
    assert result.outcome.stdout.bytes == len(result.stdout), "what is counted is what is kept"


def test_output_is_not_held_back_for_a_secret(sandbox: Sandbox) -> None:
    job = sandbox.start(script="echo 10 percent; printf 'correct or no'; " + WAIT, secrets={"token": TOKEN})
    sandbox.pump(lambda: sandbox.output(job) == b"10 percent\ncorrect or no")
    sandbox.launcher.send([end(job)])
    assert sandbox.wait(job).outcome.reason is Reason.CANCELLED


def test_the_limit_of_output_counts_what_is_told(sandbox: Sandbox) -> None:
    script = "i=0; while [ $i -lt 100 ]; do cat /run/secrets/token; echo; i=$((i + 1)); done"
    result = sandbox.run(script=script, secrets={"token": TOKEN}, limits=limits(output_bytes=10))
    assert (result.stdout, result.outcome.stdout.bytes) == ("***\n***\n**", 400)


def test_secrets_that_cannot_be_files_are_refused(sandbox: Sandbox) -> None:
    for secrets in ({"../up": b"x"}, {"a/b": b"x"}, {"": b"x"}, {"large": bytes(200_000)}):
        result = sandbox.run("true", secrets=secrets)
        assert result.outcome.reason is Reason.INVALID_PAYLOAD, secrets


def test_many_secrets_of_many_lines_fit(sandbox: Sandbox) -> None:
    secrets = {f"s{number}": os.urandom(2_000).hex(" ", 30).replace(" ", "\n").encode() for number in range(30)}
    result = sandbox.run(script="cat /run/secrets/* | sort; ls /run/secrets | wc -l", secrets=secrets)
    assert result.outcome.reason is None
    assert set(result.stdout.splitlines()) == {"***", "30"}


def test_a_flood_is_looked_through_about_as_fast_as_it_comes(sandbox: Sandbox) -> None:
    """Given output that begins again and again like the secret."""
    began = time.monotonic()
    secret = b"a" * 30_000 + b"b"
    result = sandbox.run(
        script="head -c 8000000 /dev/zero | tr '\\0' a", secrets={"worst": secret}, limits=limits(output_bytes=1 << 20)
    )
    assert result.outcome.reason is None
    assert time.monotonic() - began < 30
