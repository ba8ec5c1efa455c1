"""What jobs of type blob have their node do: fetch, replicate, gc, verify, add a snapshot. Told step by step."""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, Protocol

from msgspec import structs

from jobs._native import DiskFullError
from jobs.blobs import messages as m
from jobs.blobs.catalogue import Entry, NewBlob
from jobs.blobs.link import LeaderLink
from jobs.blobs.members import Members
from jobs.blobs.replication import Replicator
from jobs.blobs.store import BlobStore
from jobs.blobs.together import each
from jobs.control.queries import check_admin
from jobs.errors import BlobDamaged, BlobUnavailable, InvalidRequest, JobsError, StorageFull
from jobs.forward.orders import Unreached
from jobs.operations import MAX_LINES, News, told
from jobs.protocol.model import (
    BlobAdd,
    BlobCollect,
    BlobDone,
    BlobFetch,
    BlobGc,
    BlobPeer,
    BlobPerform,
    BlobReplicate,
    BlobResult,
    BlobTagSet,
    BlobVerify,
    OperationNews,
)
from jobs.service import Caller

logger = logging.getLogger(__name__)

SWEEP_PAGE: Final = 500
COLLECT_PAGE: Final = 500
CHILDREN_AT_ONCE: Final = 16
MAX_PASSES: Final = 64
"""Over the catalogue in one collection: a collection in a collection goes one level a pass."""
NOTHING: Final = m.Advance()


class Snapshots(Protocol):
    """The store of this node, as a snapshot of it is made."""

    async def reach(self, revision: int) -> None:
        """Return once the store is so far."""

    async def make(self) -> int:
        """Write a snapshot and return a descriptor of its file, which the caller closes."""


class Operations:
    """Implements `service.BlobOperations`."""

    def __init__(
        self, store: BlobStore, link: LeaderLink, members: Members, replicator: Replicator, snapshots: Snapshots
    ) -> None:
        self._store = store
        self._link = link
        self._members = members
        self._replicator = replicator
        self._snapshots = snapshots

    def perform(self, caller: Caller, wanted: BlobPerform) -> AsyncGenerator[OperationNews | BlobDone]:
        return told(lambda news: self._done(caller, wanted, news))

    async def _done(self, caller: Caller, wanted: BlobPerform, news: News) -> BlobDone:
        began_s = time.monotonic()
        result = await self._carry_out(caller, wanted, news)
        return BlobDone(result=structs.replace(result, seconds=round(time.monotonic() - began_s, 6)))

    async def _carry_out(self, caller: Caller, wanted: BlobPerform, news: News) -> BlobResult:
        match wanted.payload:
            case BlobFetch() as payload:
                return await self._fetch(caller, payload, news)
            case BlobReplicate() as payload:
                return await self._replicate(caller, payload, news)
            case BlobGc() as payload:
                return await self._gc(caller, payload, news)
            case BlobVerify() as payload:
                return await self._verify(caller, payload, news)
            case BlobAdd() as payload:
                return await self._add(caller, payload, news)

    # --- fetch --------------------------------------------------------------------------------------------------------

    async def _fetch(self, caller: Caller, payload: BlobFetch, news: News) -> BlobResult:
        """Have a blob here, and keep it."""
        if (payload.hash is None) == (payload.ticket is None):
            raise InvalidRequest("neither a hash nor a ticket, or both", field="$.hash", expected="one of the two")
        providers = tuple(self._members.named(name) for name in payload.providers)
        if payload.ticket is not None:
            entry = await self._link.claim(caller, payload.ticket)
        else:
            assert payload.hash is not None
            entry = await self._link.readable(caller, payload.hash)
        names = ", ".join(payload.providers or map(self._members.name, entry.holders))
        news.advance(0, entry.size_bytes, f"from {names or 'nobody'}")
        fetched = await self._replicator.have_here(
            entry, providers=providers, on_advance=lambda now: news.advance(now.done_bytes, now.total_bytes)
        )
        if payload.tag is not None:
            await self._link.set_tag(caller, payload.tag, BlobTagSet(hash=entry.hash))
        return self._result("fetch", entry.hash, fetched)

    def _result(self, operation: str, blob: str, fetched: m.Fetched) -> BlobResult:
        peers = [
            BlobPeer(
                node=self._members.name(one.member), bytes=one.size_bytes, outcome=self._members.named_in(one.reason)
            )
            for one in fetched.sources
            if one.size_bytes or one.reason
        ]
        return BlobResult(
            operation=operation,
            hash=blob,
            bytes=fetched.size_bytes,
            blobs=len(fetched.here),
            peers=peers,
            seconds=0.0,
        )

    # --- replicate ----------------------------------------------------------------------------------------------------

    async def _replicate(self, caller: Caller, payload: BlobReplicate, news: News) -> BlobResult:
        """Have a blob and its children on so many nodes, or on named ones, and see that it stays so."""
        targets = [self._members.named(name) for name in dict.fromkeys(payload.nodes)]
        if not (payload.replicas or targets):
            raise InvalidRequest("no number of nodes, and none named", field="$.replicas", expected="one of the two")
        entry = await self._link.readable(caller, payload.hash)
        blobs = await self._replicator.blobs_of(entry)
        # To be on these nodes as well makes it no less safe than it was.
        count = payload.replicas or max(entry.replicas, len(targets))
        if payload.replicas or count > entry.replicas:
            entry = await self._link.replicate(caller, entry.hash, count)
        far: dict[str, m.Advance] = {}

        async def put(target: str) -> BlobPeer:
            def advanced(now: m.Advance) -> None:
                far[target] = now
                done = sum(one.done_bytes for one in far.values())
                news.advance(done, sum(one.total_bytes for one in far.values()), f"to {self._members.name(target)}")

            try:
                fetched = await self._replicator.put_on(entry, target, advanced)
            except Unreached as error:
                raise BlobUnavailable(
                    f"the blob {entry.hash} is not on all nodes that were named: {self._members.named_in(str(error))}",
                    expected="that node to run",
                    retry_after_s=1,
                ) from error
            given = sum(source.size_bytes for source in fetched.sources)
            return BlobPeer(node=self._members.name(target), bytes=given, outcome="" if given else "it had it")

        peers = await each(targets, len(targets), put)
        entry = structs.replace(entry, holders=tuple(dict.fromkeys((*entry.holders, *targets))))
        spread = await self._replicator.spread(entry, lambda now: news.advance(now.done_bytes, now.total_bytes))
        peers += [
            BlobPeer(node=self._members.name(holder), bytes=spread.size_bytes)
            for holder in spread.holders
            if holder not in entry.holders
        ]
        on = self._members.ids & frozenset(spread.holders)
        if len(on) < min(count, len(self._members.ids)):
            names = ", ".join(sorted(self._members.name(one) for one in self._members.ids - on))
            raise BlobUnavailable(
                f"the blob {entry.hash} is on {len(on)} of {count} nodes: {names} not reached",
                expected="those nodes to run: the leader goes on by itself then",
                retry_after_s=1,
            )
        return BlobResult(
            operation="replicate", hash=entry.hash, bytes=entry.size_bytes, blobs=len(blobs), peers=peers, seconds=0.0
        )

    # --- gc -----------------------------------------------------------------------------------------------------------

    async def _gc(self, caller: Caller, payload: BlobGc, news: News) -> BlobResult:
        """Take out of the catalogue what nothing refers to, and then have every member sweep its files."""
        check_admin(caller, "collect what nothing refers to")
        await self._collect(caller, payload, news)
        peers = await each(
            sorted(self._members.ids), len(self._members.ids), lambda member: self._sweep(member, payload, news)
        )
        return BlobResult(
            operation="gc",
            hash=None,
            bytes=sum(peer.bytes for peer, _ in peers),
            blobs=sum(count for _, count in peers),
            peers=[peer for peer, _ in peers],
            seconds=0.0,
        )

    async def _collect(self, caller: Caller, payload: BlobGc, news: News) -> None:
        """Look at the catalogue until a look finds nothing more, as what a collection kept goes after it."""
        for _ in range(1 if payload.dry_run else MAX_PASSES):
            cursor, condemned, examined = None, 0, 0
            while True:
                wanted = BlobCollect(
                    cursor=cursor, limit=COLLECT_PAGE, dry_run=payload.dry_run, grace_s=payload.grace_s
                )
                page = await self._link.collect(caller, wanted)
                for one in page.collected:
                    condemned += one.outcome == "condemned"
                    why = "nothing refers to it" if one.outcome == "condemned" else "it was referred to meanwhile"
                    await news.line(hash=one.hash, bytes=one.size_bytes, outcome=one.outcome, why=why)
                examined += page.examined
                news.advance(0, 0, f"{examined} blobs of the catalogue looked at")
                cursor = page.next_cursor
                if cursor is None:
                    break
            if not condemned:
                return

    async def _sweep(self, member: str, payload: BlobGc, news: News) -> tuple[BlobPeer, int]:
        """Have a member delete what it is not to have; its bytes and blobs."""
        name, after = self._members.name(member), ""
        freed = removed = 0
        spared: dict[str, int] = {}
        grace_ms = None if payload.grace_s is None else int(payload.grace_s * 1_000)
        try:
            while True:
                swept = await self._members.sweep(member, m.Sweep(after, SWEEP_PAGE, grace_ms, payload.dry_run))
                for one in swept.removed:
                    freed, removed = freed + one.size_bytes, removed + 1
                    outcome = "would go" if payload.dry_run else "deleted"
                    why = "this node is not to have it: it is in no catalogue, or a copy that others keep"
                    await news.line(hash=one.hash, bytes=one.size_bytes, node=name, outcome=outcome, why=why)
                for cause, count in swept.spared.items():
                    spared[cause] = spared.get(cause, 0) + count
                news.advance(0, 0, f"{name} has swept")
                if swept.after is None:
                    break
                after = swept.after
        except (Unreached, JobsError) as error:
            logger.warning("%s was not swept: %s", name, error)
            return BlobPeer(node=name, bytes=freed, outcome=f"not all of it was swept: {error}"), removed
        outcome = ", ".join(f"{count} {cause}" for cause, count in sorted(spared.items()))
        return BlobPeer(node=name, bytes=freed, outcome=outcome and f"stay for now: {outcome}"), removed

    # --- verify -------------------------------------------------------------------------------------------------------

    async def _verify(self, caller: Caller, payload: BlobVerify, news: News) -> BlobResult:
        """Hash a blob, with its children, on all that have it; or all blobs of all members."""
        count = _Verifying(self._members, news)
        if payload.hash is None:
            check_admin(caller, "verify all blobs")
            members = sorted(self._members.ids)
            await each(members, len(members), count.all_of)
        else:
            copies, count.total_bytes = await self._copies(caller, await self._link.readable(caller, payload.hash))
            await each(copies.items(), len(copies), lambda copy: count.these(*copy))
            if not count.blobs:
                why = "; ".join(f"{name}: {text}" for name, (_, text) in sorted(count.peers.items()))
                raise BlobUnavailable(
                    f"no copy was verified: {self._members.named_in(why)}",
                    expected="a node that has it to run",
                    retry_after_s=1,
                )
        result = BlobResult(
            operation="verify",
            hash=payload.hash,
            bytes=count.size_bytes,
            blobs=count.blobs,
            peers=[BlobPeer(node=name, bytes=size, outcome=text) for name, (size, text) in sorted(count.peers.items())],
            seconds=0.0,
            damaged=count.damaged,
            mended=count.mended,
        )
        if count.unmended:
            raise BlobDamaged(
                f"{len(count.unmended)} of {count.damaged} damaged copies were not mended: {count.unmended[0]}",
                expected="a good copy on a node that is reached",
            )
        return result

    async def _copies(self, caller: Caller, entry: Entry) -> tuple[dict[str, list[m.Sought]], int]:
        """Return what each member is to have of a blob and its children, and how many bytes all of that is.

        Raises BlobUnavailable for what none has.
        """
        size_bytes = 0
        blobs = await self._replicator.blobs_of(entry)
        children = await each(blobs[1:], CHILDREN_AT_ONCE, lambda child: self._link.readable(caller, child))
        copies: dict[str, list[m.Sought]] = defaultdict(list)
        for one in (entry, *children):
            holders = self._members.ids & frozenset(one.holders)
            if not holders:
                raise BlobUnavailable(f"no member has the blob {one.hash}", expected="it to be added again")
            for holder in sorted(holders):
                copies[holder] += self._replicator.sought((one.hash,), one.holders, holder)
                size_bytes += one.size_bytes
        return copies, size_bytes

    # --- add ----------------------------------------------------------------------------------------------------------

    async def _add(self, caller: Caller, payload: BlobAdd, news: News) -> BlobResult:
        """Add a snapshot of the whole store."""
        if not payload.source.snapshot:
            raise InvalidRequest("only a snapshot is added here", field="$.source", expected="snapshot: true")
        check_admin(caller, "add a snapshot of the store")
        # Of this node's own store, once that has all that was answered before.
        await self._snapshots.reach(await self._link.reached(caller))
        descriptor = await self._snapshots.make()
        try:
            total = os.fstat(descriptor).st_size
            new = await self._store.add_file(
                descriptor, lambda done: news.advance(done, total, "the snapshot is added")
            )
        except DiskFullError as error:
            raise StorageFull(f"the snapshot was not added: {error}", expected="more room on this node") from error
        finally:
            os.close(descriptor)
        async with self._store.reading(new.hash):
            wanted = NewBlob(hash=new.hash, size_bytes=new.size_bytes, replicas=payload.replicas, tag=payload.tag)
            entry, _ = await self._link.register(caller, wanted, self._members.me)
            entry = await self._replicator.spread(entry, lambda now: news.advance(now.done_bytes, now.total_bytes))
        peers = [BlobPeer(node=self._members.name(holder), bytes=new.size_bytes) for holder in entry.holders]
        return BlobResult(operation="add", hash=entry.hash, bytes=entry.size_bytes, blobs=1, peers=peers, seconds=0.0)


class _Verifying:
    """What hashing anew has found."""

    def __init__(self, members: Members, news: News) -> None:
        self._members = members
        self._news = news
        self.total_bytes = 0
        """To be hashed, as far as is known."""
        self._done_bytes: dict[str, int] = {}
        self.blobs = 0
        self.size_bytes = 0
        self.damaged = 0
        self.mended = 0
        self.unmended: list[str] = []
        self.peers: dict[str, tuple[int, str]] = {}

    async def all_of(self, member: str) -> None:
        """Verify all that a member is to have."""
        await self._member(member, None)

    async def these(self, member: str, sought: list[m.Sought]) -> None:
        await self._member(member, sought)

    async def _member(self, member: str, sought: list[m.Sought] | None) -> None:
        name, before = self._members.name(member), (self.damaged, self.mended)
        hashed = 0
        text = ""
        try:
            async for verified in self._pages(member, sought):
                hashed += verified.size_bytes
                await self._take(name, verified)
        except (Unreached, JobsError) as error:
            text = f"not all of it was verified: {error}"
        self.peers[name] = hashed, text
        if not text and (damaged := self.damaged - before[0]):
            self.peers[name] = hashed, f"{damaged} damaged, {self.mended - before[1]} mended"

    async def _pages(self, member: str, sought: list[m.Sought] | None) -> AsyncIterator[m.Verified]:
        before_bytes = 0

        def advanced(now: m.Advance) -> None:
            self._done_bytes[member] = before_bytes + now.done_bytes
            done_bytes = sum(self._done_bytes.values())
            self._news.advance(done_bytes, max(done_bytes, self.total_bytes), self._members.name(member))

        if sought is not None:
            for lot in m.lots(sought):
                verified = await self._members.verify(member, m.Verify(lot), advanced)
                before_bytes += verified.size_bytes
                advanced(NOTHING)
                yield verified
            return
        room = await self._members.survey(member)
        self.total_bytes += room.size_bytes
        after: str | None = ""
        while after is not None:
            verified = await self._members.verify(member, m.Verify(after=after), advanced)
            before_bytes += verified.size_bytes
            advanced(NOTHING)
            yield verified
            after = verified.after

    async def _take(self, name: str, verified: m.Verified) -> None:
        self.blobs += verified.blobs
        self.size_bytes += verified.size_bytes
        for damage in verified.damages:
            outcome = self._members.named_in(damage.outcome)
            await self._news.line(hash=damage.hash, node=name, found=damage.found, outcome=outcome)
            self.damaged += 1
            self.mended += damage.mended
            if not damage.mended and len(self.unmended) < MAX_LINES:
                self.unmended.append(f"{damage.hash} on {name}: {outcome}")
