"""Secrets: who has which, what is told of them, that a value stands nowhere but with its job, and the key's life."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from jobs import keys, records
from jobs.control.secrets import SecretsConfig
from jobs.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    SecretKeyMissing,
    TooManyRequests,
)
from jobs.protocol.ids import RequestId
from jobs.protocol.model import AuditEntry, Content, Reason, Schedule, SecretKeyRotate, SecretPut, SecretView
from jobs.protocol.wire import Assignment, Lacking
from jobs.records import SecretRecord
from jobs.secrets.keyring import KeyFileError, Keyring, generate, keyring_of
from jobs.secrets.keys import Keys
from jobs.service import AuditFilter, Caller
from jobs.store import Put, Txn
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell

VALUE = "correct-horse-battery-staple"
ROTATE = SecretKeyRotate()
FORGET = SecretKeyRotate(forget_lost=True)


def plane_in(directory: Path, *, provided: Path | None = None, max_per_owner: int = 1_000) -> Plane:
    keyring = Keyring(provided or directory / "secrets.key", is_provided=provided is not None)
    keyring.load()
    return Plane(directory, secrets=SecretsConfig(max_per_owner=max_per_owner, keys=Keys(keyring)))


async def put(plane: Plane, name: str = "token", value: str = VALUE, caller: Caller = ALICE) -> SecretView:
    wanted = SecretPut(value=Content(text=value))
    view, _ = await plane.control.secrets.put(caller, name, wanted, owner=None)
    return view


async def names(plane: Plane, caller: Caller = ALICE, **where: object) -> list[tuple[int, str]]:
    query: dict[str, object] = {"owner": None, "everybody": False, "limit": 2, "cursor": None, **where}
    found: list[tuple[int, str]] = []
    while True:
        page = await plane.control.secrets.page(caller, **query)  # type: ignore[arg-type]
        found += [(view.owner, view.name) for view in page.secrets]
        if page.next_cursor is None:
            return found
        query["cursor"] = page.next_cursor


def scenario(tmp_path: Path, run: Callable[[Plane], Awaitable[None]], **options: object) -> None:
    async def all_of_it() -> None:
        async with plane_in(tmp_path, **options) as plane:  # type: ignore[arg-type]
            await run(plane)

    asyncio.run(all_of_it())


async def given(plane: Plane, worker: WorkerPeer, **secrets: str) -> Assignment:
    """What the worker is given of a job of Alice's that names these."""
    await plane.control.submit(ALICE, [job_with(**secrets)])
    return await worker.assigned()


def job_with(**secrets: str):  # type: ignore[no-untyped-def]
    job = shell()
    return replace(job, payload=replace(job.payload, secrets=secrets))


def everything_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


# --- owners ---------------------------------------------------------------------------------------------------------


def test_owners_have_their_own_and_administrators_deal_with_all(tmp_path: Path) -> None:
    async def run(plane: Plane) -> None:
        secrets = plane.control.secrets
        for name in ("c", "a", "b"):
            await put(plane, name)
        await put(plane, "a", "another value", BOB)
        assert await names(plane) == [(1001, "a"), (1001, "b"), (1001, "c")]
        assert await names(plane, BOB) == [(1002, "a")]
        assert await names(plane, ADMIN) == []
        assert await names(plane, ADMIN, owner=1001) == await names(plane)
        assert await names(plane, ADMIN, everybody=True) == [*await names(plane), (1002, "a")]
        for forbidden in (
            names(plane, BOB, owner=1001),
            names(plane, BOB, everybody=True),
            secrets.get(BOB, "a", owner=1001),
            secrets.delete(BOB, "a", owner=1001),
            secrets.put(BOB, "a", SecretPut(value=Content(text="x")), owner=1001),
            secrets.key(BOB),
            secrets.rotate(BOB, ROTATE),
        ):
            with pytest.raises(Forbidden):
                await forbidden
        await secrets.delete(ADMIN, "a", owner=1001)
        with pytest.raises(NotFound):
            await secrets.get(ALICE, "a", owner=None)
        with pytest.raises(NotFound):
            await secrets.delete(ALICE, "a", owner=None)
        assert (await secrets.get(BOB, "a", owner=None)).size_bytes == len("another value")

    scenario(tmp_path, run)


def test_a_value_is_bounded_and_so_is_their_number(tmp_path: Path) -> None:
    async def run(plane: Plane) -> None:
        await put(plane, "large", "x" * (64 << 10))
        with pytest.raises(PayloadTooLarge, match="65537"):
            await put(plane, "larger", "x" * (64 << 10) + "y")
        with pytest.raises(InvalidRequest, match="empty"):
            await put(plane, "empty", "")
        await put(plane, "second")
        with pytest.raises(TooManyRequests):
            await put(plane, "third")
        changed = await put(plane, "second", "another")
        assert (changed.version, changed.size_bytes) == (2, len("another"))
        await put(plane, "first of another", caller=BOB)

    scenario(tmp_path, run, max_per_owner=2)


def test_a_request_that_comes_twice_is_carried_out_once(tmp_path: Path) -> None:
    async def run(plane: Plane) -> None:
        secrets = plane.control.secrets
        caller = replace(ALICE, request_id=RequestId(b"r" * 16))
        first, created = await secrets.put(caller, "token", SecretPut(value=Content(text=VALUE)), owner=None)
        await put(plane, "token", "newer")
        again, created_again = await secrets.put(caller, "token", SecretPut(value=Content(text=VALUE)), owner=None)
        assert (first.version, created, again.version, created_again) == (1, True, 2, False)

    scenario(tmp_path, run)


# --- where a value is ------------------------------------------------------------------------------------------------


def test_a_value_is_nowhere_on_the_disk_and_the_key_is_not_in_the_store(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane_in(tmp_path) as plane:
            await put(plane)
            await put(plane, "token", VALUE + " newer")
            await plane.control.secrets.delete(ALICE, "token", owner=None)
            await put(plane)
            (tmp_path / "snapshot").mkdir()
            plane.store.snapshot()
        assert VALUE.encode() not in everything_in(tmp_path)
        key = tmp_path / "secrets.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        secret_half = next(line for line in key.read_bytes().splitlines() if line.startswith(b"AGE-SECRET-KEY-"))
        key.unlink()
        assert secret_half not in everything_in(tmp_path)
        assert VALUE.encode() not in everything_in(tmp_path)

    asyncio.run(run())


def test_the_audit_tells_of_changes_and_not_of_values(tmp_path: Path) -> None:
    async def run(plane: Plane) -> None:
        await put(plane)
        await plane.control.secrets.rotate(ADMIN, ROTATE)
        await plane.control.secrets.delete(ADMIN, "token", owner=1001)
        page = await plane.control.audit.page(ADMIN, AuditFilter(action="secret."), limit=100, cursor=None)
        entries: list[AuditEntry] = list(reversed(page.entries))
        told = [(entry.uid, entry.action, entry.detail) for entry in entries]
        assert told == [
            (1001, "secret.key", None),
            (1001, "secret.set", "of uid 1001"),
            (0, "secret.rotate-key", None),
            (0, "secret.delete", "of uid 1001"),
        ]
        assert VALUE not in repr(entries)

    scenario(tmp_path, run)


def test_no_text_is_made_of_a_value() -> None:
    assert VALUE not in repr(SecretPut(value=Content(text=VALUE)))
    assert "AGE-SECRET-KEY" not in repr(generate())


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_is_given_the_values_as_they_are_when_it_starts(tmp_path: Path) -> None:
    async def run(plane: Plane) -> None:
        await put(plane)
        await put(plane, "other", "of the other")
        await plane.control.submit(ALICE, [job_with(t="token", o="other")])
        await put(plane, "token", "changed while it waited")
        worker = WorkerPeer()
        await worker.register(plane.worker_socket)
        assignment = await worker.assigned()
        assert {file: value.data for file, value in assignment.secrets.items()} == {
            "t": b"changed while it waited",
            "o": b"of the other",
        }
        assert "changed while" not in repr(assignment)
        assert b"changed while" not in assignment.payload

    scenario(tmp_path, run)


def test_a_job_that_names_what_its_owner_has_not_is_not_taken(tmp_path: Path) -> None:
    async def run(plane: Plane) -> None:
        await put(plane)
        for caller in (BOB, ADMIN):
            with pytest.raises(NotFound) as raised:
                await plane.control.submit(caller, [shell(), job_with(t="token")])
            assert raised.value.field == "$.jobs[1].payload.secrets['t']"
        schedule = Schedule(every_s=60, job=job_with(t="token"))
        with pytest.raises(NotFound):
            await plane.control.schedules.put(BOB, "nightly", schedule, None)
        await plane.control.submit(BOB, [job_with(t="credential:of-the-worker")])

    scenario(tmp_path, run)


def test_a_job_whose_secret_has_gone_says_so(tmp_path: Path) -> None:
    async def run(plane: Plane) -> None:
        await put(plane)
        await plane.control.submit(ALICE, [job_with(t="token")])
        await plane.control.secrets.delete(ALICE, "token", owner=None)
        worker = WorkerPeer()
        await worker.register(plane.worker_socket)
        assignment = await worker.assigned()
        assert assignment.secrets == {}
        assert assignment.lacking == Lacking(reason=Reason.INVALID_PAYLOAD, message="uid 1001 has no secret 'token'")

    scenario(tmp_path, run)


def test_what_is_encrypted_is_of_no_use_under_another_name(tmp_path: Path) -> None:
    """Given somebody who can write to the store, and puts Bob's secret in the place of Alice's."""

    async def run(plane: Plane) -> None:
        await put(plane)
        await put(plane, "token", "of Bob's alone", BOB)
        found = plane.store.get(keys.secret(1002, "token"))
        assert found is not None
        await plane.consensus.propose(Txn(then=(Put(keys.secret(1001, "token"), found[1]),)))
        worker = WorkerPeer()
        await worker.register(plane.worker_socket)
        assignment = await given(plane, worker, t="token")
        assert assignment.lacking is not None
        assert "not what its place says" in assignment.lacking.message

    scenario(tmp_path, run)


# --- the key ----------------------------------------------------------------------------------------------------------


def test_the_key_outlives_a_restart_and_its_loss_is_said(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane_in(tmp_path) as plane:
            await put(plane)
        async with plane_in(tmp_path) as plane:
            await put(plane, "second")
            view = await plane.control.secrets.key(ADMIN)
            assert (view.secrets, view.to_rewrite, view.present) == (2, 0, True)
        kept = (tmp_path / "secrets.key").read_bytes()
        (tmp_path / "secrets.key").unlink()
        async with plane_in(tmp_path) as plane:
            assert not (await plane.control.secrets.key(ADMIN)).present
            for refused in (put(plane), plane.control.secrets.rotate(ADMIN, ROTATE)):
                with pytest.raises(SecretKeyMissing, match=view.fingerprint):
                    await refused
            worker = WorkerPeer(slots=2)
            await worker.register(plane.worker_socket)
            lacking = (await given(plane, worker, t="token")).lacking
            assert lacking is not None
            assert lacking.reason is Reason.SPAWN_FAILED
            assert view.fingerprint is not None
            assert view.fingerprint in lacking.message
        # then with the file everything is there again
        (tmp_path / "secrets.key").write_bytes(kept)
        (tmp_path / "secrets.key").chmod(0o600)
        async with plane_in(tmp_path) as plane:
            worker = WorkerPeer("other", slots=2)
            await worker.register(plane.worker_socket)
            assert (await given(plane, worker, t="token")).secrets["t"].data == VALUE.encode()

    asyncio.run(run())


def test_what_cannot_be_read_any_more_is_given_up_by_name_only(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane_in(tmp_path) as plane:
            for number in range(40):
                await put(plane, f"lost{number}")
        (tmp_path / "secrets.key").unlink()
        async with plane_in(tmp_path) as plane:
            done = await plane.control.secrets.rotate(ADMIN, FORGET)
            assert (done.rewritten, done.forgotten) == (0, 40)
            assert await names(plane) == []
            await put(plane)
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            assert (await given(plane, worker, t="token")).secrets["t"].data == VALUE.encode()

    asyncio.run(run())


def test_a_rotation_encrypts_everything_anew_and_the_former_key_is_forgotten(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane_in(tmp_path) as plane:
            for number in range(50):
                await put(plane, f"s{number}", f"value of {number:03}")
            before = await plane.control.secrets.key(ADMIN)
            done = await plane.control.secrets.rotate(ADMIN, ROTATE)
            assert (done.rewritten, done.forgotten) == (50, 0)
            assert done.fingerprint != before.fingerprint
            rows, _ = plane.store.range(keys.SECRETS, keys.SECRETS + b"\xff", limit=100)
            assert {records.decode(SecretRecord, value).key for _, value, *_ in rows} == {done.fingerprint}
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            assert (await given(plane, worker, t="s7")).secrets["t"].data == b"value of 007"

    asyncio.run(run())


def test_a_rotation_that_was_broken_off_goes_on_with_the_next_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a node that ends when a part of the secrets has been encrypted anew."""
    from jobs.control import secretkeys

    async def run() -> None:
        async with plane_in(tmp_path) as plane:
            for number in range(40):
                await put(plane, f"s{number}", f"value of {number:03}")
            whole = secretkeys.SecretKeys._rewritten
            left = 20

            def broken(self, *args):  # type: ignore[no-untyped-def]
                nonlocal left
                left -= 1
                if left < 0:
                    raise asyncio.CancelledError
                return whole(self, *args)

            monkeypatch.setattr(secretkeys.SecretKeys, "_rewritten", broken)
            with pytest.raises(asyncio.CancelledError):
                await plane.control.secrets.rotate(ADMIN, ROTATE)
            monkeypatch.undo()
            view = await plane.control.secrets.key(ADMIN)
            assert 0 < view.to_rewrite < 40
        async with plane_in(tmp_path) as plane:
            async with asyncio.timeout(30):
                while (await plane.control.secrets.key(ADMIN)).to_rewrite:
                    await asyncio.sleep(0.01)
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            assert (await given(plane, worker, t="s7")).secrets["t"].data == b"value of 007"

    asyncio.run(run())


def test_secrets_that_are_set_during_a_rotation_are_kept(tmp_path: Path) -> None:
    async def run(plane: Plane) -> None:
        for number in range(60):
            await put(plane, f"s{number}", "before it")
        setting = [put(plane, f"s{number}", "during it") for number in range(0, 60, 2)]
        done, *_ = await asyncio.gather(plane.control.secrets.rotate(ADMIN, ROTATE), *setting)
        for number in range(60):
            found = plane.control.secrets.values(1001, {"f": f"s{number}"})
            assert not isinstance(found, Lacking), found
            assert found["f"].data == (b"before it" if number % 2 else b"during it")
        assert (await plane.control.secrets.key(ADMIN)).to_rewrite == 0
        assert done.rewritten <= 60

    scenario(tmp_path, run)


def test_a_key_that_the_operator_provides_is_only_read_and_changed_by_another_before_it(tmp_path: Path) -> None:
    provided = tmp_path / "provided"
    first, second = generate(), generate()
    provided.write_text(first.identity + "\n")
    provided.chmod(0o600)
    directory = tmp_path / "node"
    directory.mkdir()

    async def run(plane: Plane) -> None:
        await put(plane)
        assert (await plane.control.secrets.key(ADMIN)).fingerprint == first.fingerprint
        with pytest.raises(InvalidRequest, match="in use"):
            await plane.control.secrets.rotate(ADMIN, ROTATE)
        provided.write_text(f"{second.identity}\n{first.identity}\n")
        done = await plane.control.secrets.rotate(ADMIN, ROTATE)
        assert (done.fingerprint, done.rewritten) == (second.fingerprint, 1)

    scenario(directory, run, provided=provided)
    assert provided.read_text() == f"{second.identity}\n{first.identity}\n"
    assert not (directory / "secrets.key").exists()


def test_a_key_that_systemd_gives_is_taken_and_said_if_it_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, given = tmp_path / "data", tmp_path / "given"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    assert keyring_of(None, own).path == own / "secrets.key"
    given.mkdir()
    key = generate()
    (given / "jobs.secrets-key").write_text(key.identity)
    (given / "jobs.secrets-key").chmod(0o440)  # as systemd leaves it where it gives access by an ACL
    keyring = keyring_of(None, own)
    keyring.load()
    assert (keyring.is_provided, keyring.held) == (True, {key.fingerprint})

    def refused(path: Path, *unused: object, **options: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refused)
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(KeyFileError, match="Permission denied"):
        keyring_of(None, own).load()


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    path.write_text(generate().identity + "\n")
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="others may read it"):
        Keyring(path).load()
    path.chmod(0o600)
    os.truncate(path, 20)
    with pytest.raises(KeyFileError, match="no secret key of age"):
        Keyring(path).load()
