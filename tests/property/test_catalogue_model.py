"""The catalogue of blobs against a model that is plain to read: operations beside collections, and leaderships that end
at any step. What is referred to is never gone; what is not goes; sums, holders and references are exact."""

from __future__ import annotations

import asyncio
import os
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jobs import keys
from jobs._native import NativeError
from jobs.blobs.catalogue import NewBlob
from jobs.consensus import ConsensusError
from jobs.consensus.membership import MemberRecord, Role, put_member, remove_member
from jobs.control.blobs import BlobConfig, Blobs, collect, collections, entries, sharing, stage
from jobs.errors import JobsError, NotFound, Unavailable
from jobs.protocol.model import BlobCollect, BlobShare, BlobTagSet
from jobs.records import BlobRecord, BlobTagRecord, BlobTouchRecord
from jobs.service import Caller
from jobs.store import Txn
from tests.support.blobmodel import BLOBS, COLLECTIONS, OWNERS, TAGS, Known, Model, Op, size_of
from tests.support.catalogue import ME, check_catalogue, hash_of, lacking_is_known, read, rows
from tests.support.clock import Clock
from tests.support.plane import ADMIN, Plane

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
GRACE_S: Final = 3_600
MEMBERS: Final = (ME, "b" * 64, "c" * 64)
NAMES: Final = {hash_of(name): name for name in BLOBS}
TIMEOUT_S: Final = 30.0


class NotLeading(Exception):
    """The plane is stopped."""


def caller(uid: int) -> Caller:
    return Caller(uid=uid, gid=uid, admin=False)


CUT_OFF: Final = (Unavailable, ConsensusError, NativeError, NotLeading)
"""What an operation meets whose plane is stopped."""


class World:
    """The real thing beside the model."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.directory = directory
        self.clock = clock
        self.model = Model()

    async def start(self) -> None:
        self.plane = await Plane(self.directory, blobs=BlobConfig(grace_ms=GRACE_S * 1_000)).start()

    async def join(self, member: str) -> None:
        role = Role.VOTER if member == ME else Role.LEARNER
        record = MemberRecord(id=member, name=f"n-{member[:1]}", role=role)
        await self.plane.consensus.change_members(put_member(self.plane.consensus.members, record))

    @property
    def _blobs(self) -> Blobs:
        if self.plane.site.control is None:
            raise NotLeading
        return self.plane.site.control.blobs

    # --- operations -------------------------------------------------------------------------------------------------

    async def perform(self, op: Op) -> None:
        await getattr(self, f"_{op[0]}")(*op[1:])

    async def _add(self, uid: int, name: str, member: str, tag: str | None, replicas: int | None) -> None:
        children = tuple(hash_of(child) for child in COLLECTIONS.get(name, ()))
        kind = "collection" if children else "raw"
        new = NewBlob(
            hash=hash_of(name), size_bytes=size_of(name), kind=kind, children=children, tag=tag, replicas=replicas
        )
        await self._blobs.register(caller(uid), new, member)

    async def _tag(self, uid: int, tag: str, name: str) -> None:
        await self._blobs.set_tag(caller(uid), tag, BlobTagSet(hash=hash_of(name)))

    async def _untag(self, uid: int, tag: str) -> None:
        await self._blobs.delete_tag(caller(uid), tag)

    async def _refer(self, uid: int, plan: str, name: str) -> None:
        succeeded = False
        while not succeeded:
            await self.plane.consensus.barrier()
            now_ms = self.clock.now_ms()
            compares, ops = self._blobs.references.ops([hash_of(name)], "schedule", plan, caller(uid), now_ms)
            succeeded = (await self.plane.consensus.propose(Txn(compares, ops))).succeeded

    async def _unrefer(self, plan: str, name: str) -> None:
        removal = self._blobs.references.removal([hash_of(name)], "schedule", plan)
        await self.plane.consensus.propose(Txn((), removal))

    async def _forget(self, uid: int, name: str) -> None:
        await self._blobs.forget(caller(uid), hash_of(name))

    async def _give(self, uid: int, other: int, name: str) -> None:
        shared = await self._blobs.share(caller(uid), hash_of(name), BlobShare())
        await self._blobs.claim(caller(other), shared.ticket)

    async def _held(self, member: str, name: str, is_here: bool) -> None:
        here, gone = ((hash_of(name),), ()) if is_here else ((), (hash_of(name),))
        await self._blobs.held(member, here, gone)

    async def _replicate(self, uid: int, name: str, replicas: int) -> None:
        await self._blobs.replicate(caller(uid), hash_of(name), replicas)

    async def _leave(self, member: str) -> None:
        members = self.plane.consensus.members
        if members.get(member) is not None:
            await self.plane.consensus.change_members(remove_member(members, member))
        async with asyncio.timeout(TIMEOUT_S):
            while rows(self.plane.store, keys.blobs_on_prefix(member)):
                await asyncio.sleep(0.001)
        await self.join(member)

    async def _nothing(self) -> None:
        pass

    async def collect(self) -> None:
        """Go through all pages once."""
        cursor, first = None, True
        while first or cursor is not None:
            page = await self._blobs.collect(ADMIN, BlobCollect(cursor=cursor, limit=4))
            cursor, first = page.next_cursor, False

    # --- steps ------------------------------------------------------------------------------------------------------

    async def step(self, op: Op, beside: bool, crash: int | None, repeat: bool) -> None:
        """Do it, with a collection beside it; end the leadership after so many turns of the loop, and do it again."""
        began_ms = self.clock.now_ms()
        refused, finished = await self._run(op, beside, crash)
        if not finished and not repeat and op[0] == "add":
            await self._settle()
            self._compare_given_up(op, began_ms, beside)
            return
        if not finished:
            refused, finished = await self._run(op, False, None)
            assert finished
        await self._settle()
        self._compare(op, refused, began_ms, beside, repeated=crash is not None)

    async def _run(self, op: Op, beside: bool, crash: int | None) -> tuple[type[JobsError] | None, bool]:
        """Return what refused the operation, and whether it came to an end."""
        running: list[asyncio.Future[Any]] = [asyncio.ensure_future(self.perform(op))]
        if beside:
            running.append(asyncio.ensure_future(self.collect()))
        if crash is not None:
            for _ in range(crash):
                await asyncio.sleep(0)
            await self.plane.stop()
        _, hanging = await asyncio.wait(running, timeout=TIMEOUT_S)
        assert not hanging, f"{op} is not answered"
        done = await asyncio.gather(*running, return_exceptions=True)
        if crash is not None:
            await self.start()
        outcome = done[0]
        for one in done:
            cut_off = crash is not None and isinstance(one, CUT_OFF)
            if isinstance(one, BaseException) and not isinstance(one, JobsError) and not cut_off:
                raise one
        if crash is not None and isinstance(outcome, CUT_OFF):
            return None, False
        return None if outcome is None else type(outcome), True

    async def _settle(self) -> None:
        """Wait until nothing goes on by itself."""
        store = self.plane.store
        members = len(self.plane.consensus.members.records)
        async with asyncio.timeout(TIMEOUT_S):
            while rows(store, keys.BLOBS_CLEARED) or not lacking_is_known(store, members=members):
                await asyncio.sleep(0.001)

    # --- comparison -------------------------------------------------------------------------------------------------

    def _compare(self, op: Op, refused: type[JobsError] | None, began_ms: int, beside: bool, *, repeated: bool) -> None:
        """Find what the operation and the collection came to, in one of their orders."""
        before = self._without_dropped_drafts(began_ms, beside)
        lost = self._lost(before)
        after = deepcopy(before)
        after.apply(op)
        before_ms = self.clock.now_ms() - GRACE_S * 1_000
        allowed = before.may_go(before_ms) | after.may_go(before_ms) if beside else set()
        assert lost <= allowed, f"{lost - allowed} was kept by something"
        found = self._stored().shown()
        tried = []
        for collected_first in (True, False):
            model = deepcopy(before)
            if collected_first:
                model.drop(lost)
            expected = model.apply(op)
            if not collected_first:
                # What was lost and came again is as after the operation.
                model.drop({name for name in lost if not self._stored_entry(name)})
            tried.append((expected, model.shown()))
            may_repeat = repeated and refused is NotFound and op[0] in ("forget", "untag")
            if model.shown() == found and (refused == expected or may_repeat):
                break
        else:
            pytest.fail(f"{op} was refused by {refused}, and there is\n{found}\nwhich is none of\n{tried}")
        self._note(model, op if refused is None else None, before, began_ms)
        self.model = model

    def _compare_given_up(self, op: Op, began_ms: int, beside: bool) -> None:
        """Find what an addition came to that was cut off: all of it, nothing, or a draft."""
        before = self._without_dropped_drafts(began_ms, beside)
        lost = self._lost(before)
        before_ms = self.clock.now_ms() - GRACE_S * 1_000
        assert not lost or (beside and lost <= before.may_go(before_ms))
        before.drop(lost)
        found = self._stored()
        whole = deepcopy(before)
        whole.apply(op)
        if found.shown() not in (before.shown(), whole.shown()):
            name = op[2]
            assert found.drafts - before.drafts <= {name}
            expected = deepcopy(before)
            expected.drafts |= found.drafts
            for child in COLLECTIONS[name]:
                reference = f"collection/{name}"
                if child in found.blobs and reference in found.blobs[child].references:
                    expected.blobs[child].references.add(reference)
            assert found.shown() == expected.shown()
        self._note(found, None, before, began_ms)
        self.model = found

    def _lost(self, model: Model) -> set[str]:
        """Return what has gone, though it may have come again."""
        return {name for name, known in model.blobs.items() if self._revision(name) != known.revision}

    def _without_dropped_drafts(self, began_ms: int, beside: bool) -> Model:
        """Return the model from before, without the drafts that the collection has dropped since."""
        model = deepcopy(self.model)
        for name in self.model.drafts:
            entry = self._stored_entry(name)
            if entry is not None and entry.kind == "collection":
                continue
            if self.plane.store.get(keys.blob_draft(hash_of(name))) is None:
                assert beside
                model.clear(name)
        return model

    def _note(self, model: Model, op: Op | None, before: Model, began_ms: int) -> None:
        """Take over the times and revisions, which are the store's to choose within bounds."""
        at = {"add": 2, "tag": 3, "refer": 3}.get("" if op is None else op[0])
        target = None if op is None or at is None else op[at]
        for name, known in model.blobs.items():
            found = read(self.plane.store, keys.blob_touched(hash_of(name)), BlobTouchRecord)
            assert found is not None
            former = before.blobs.get(name)
            assert name != target or found.at_ms >= began_ms
            assert former is None or found.at_ms >= former.touched_ms
            known.touched_ms = found.at_ms
            known.revision = self._revision(name)

    def _revision(self, name: str) -> int:
        found = self.plane.store.get(keys.blob(hash_of(name)))
        return 0 if found is None else found[3]

    def _stored_entry(self, name: str) -> BlobRecord | None:
        return read(self.plane.store, keys.blob(hash_of(name)), BlobRecord)

    def _stored(self) -> Model:
        """Return what the store has, as a model, having checked that its keys agree."""
        store = self.plane.store
        entries_ = check_catalogue(store, members=len(self.plane.consensus.members.records))
        model = Model()
        for blob_hash, record in entries_.items():
            references = {
                "/".join((kind, NAMES[name] if kind == "collection" else name))
                for kind, _, name in (
                    key.decode().partition("/") for key in rows(store, keys.blob_references_prefix(blob_hash))
                )
            }
            model.blobs[NAMES[blob_hash]] = Known(
                kind=record.kind,
                owners=set(record.owners),
                holders=set(record.holders),
                replicas=record.replicas,
                references=references,
            )
        for name in TAGS:
            tag = read(store, keys.blob_tag(name), BlobTagRecord)
            if tag is not None:
                model.tags[name] = NAMES[tag.hash], tag.owner
        model.drafts = {NAMES[key.decode()] for key in rows(store, keys.BLOB_DRAFTS)}
        return model

    async def check_garbage(self) -> None:
        """What nothing keeps goes, whatever became of it before; what is kept stays."""
        while True:
            self.clock.jump(2 * GRACE_S)
            before_ms = self.clock.now_ms() - GRACE_S * 1_000
            for name in list(self.model.drafts):
                self.model.clear(name)
            gone = self.model.may_go(before_ms)
            await self.collect()
            await self._settle()
            self.model.drop(self._lost(self.model))
            found = self._stored()
            assert set(found.blobs) >= set(self.model.blobs) - gone
            if not gone:
                assert not found.drafts
                assert found.shown() == self.model.shown()
                assert {key.decode().partition("/")[0] for key in rows(self.plane.store, keys.BLOB_CHILDREN)} == {
                    hash_of(name) for name, known in self.model.blobs.items() if known.kind == "collection"
                }
                return


uids = st.sampled_from(OWNERS)
blobs = st.sampled_from(BLOBS)
members = st.sampled_from(MEMBERS)
numbers = st.integers(1, 4)
operations = st.one_of(
    st.tuples(st.just("add"), uids, blobs, members, st.none() | st.sampled_from(TAGS), st.none() | numbers),
    st.tuples(st.just("add"), uids, blobs, members, st.none(), st.none()),
    st.tuples(st.just("tag"), uids, st.sampled_from(TAGS), blobs),
    st.tuples(st.just("untag"), uids, st.sampled_from(TAGS)),
    st.tuples(st.just("refer"), uids, st.sampled_from(("s0", "s1")), blobs),
    st.tuples(st.just("unrefer"), st.sampled_from(("s0", "s1")), blobs),
    st.tuples(st.just("forget"), uids, blobs),
    st.tuples(st.just("give"), st.just(OWNERS[0]), st.just(OWNERS[1]), blobs),
    st.tuples(st.just("held"), members, blobs, st.booleans()),
    st.tuples(st.just("replicate"), uids, blobs, numbers),
    st.tuples(st.just("leave"), st.sampled_from(MEMBERS[1:])),
    st.tuples(st.just("nothing")),
)
steps = st.tuples(
    operations,
    st.booleans(),
    st.none() | st.none() | st.integers(0, 40),
    st.booleans(),
    st.sampled_from((0.0, 0.0, 0.6 * GRACE_S)),
)


def small(patch: pytest.MonkeyPatch, most_ops: int) -> None:
    """Make steps small, so that everything takes several of them."""
    patch.setattr(stage, "MAX_OPS", most_ops)
    for module, name in (
        (collections, "ADDED_A_STEP"),
        (collections, "CLEARED_A_STEP"),
        (collections, "CHILD_ROWS"),
        (entries, "HELD_A_STEP"),
        (sharing, "GIVEN_A_STEP"),
        (sharing, "TAGS_A_STEP"),
        (sharing, "TAG_ROWS"),
        (collect, "OWNERS_A_STEP"),
    ):
        patch.setattr(module, name, 1 if name == "TAGS_A_STEP" else 2)


# Without shrinking: what depends on when a leadership ends does not fail every time.
@settings(max_examples=40 * SCALE, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.lists(steps, min_size=10, max_size=40), st.sampled_from((8, 40, 900)))
def test_the_catalogue_is_as_the_model_says(todo: list[tuple[Any, ...]], most_ops: int) -> None:
    async def scenario(directory: Path, clock: Clock) -> None:
        world = World(directory, clock)
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        await world.start()
        try:
            for member in MEMBERS:
                await world.join(member)
            for name in ("r0", "r1", "r2", "r3"):
                await world.step(("add", OWNERS[0], name, ME, None, None), False, None, True)
            for op, beside, crash, repeat, jump_s in todo:
                clock.jump(jump_s)
                await world.step(op, beside, crash, repeat)
            await world.check_garbage()
        finally:
            await world.plane.stop()
        await asyncio.sleep(0)
        assert not faults

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        small(patch, most_ops)
        asyncio.run(scenario(Path(directory), Clock(patch)))
