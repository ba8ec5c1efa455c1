"""What the catalogue of blobs is to be, as plain as it can be said. Pure."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from msgspec import Struct, field

from jobs.errors import Forbidden, JobsError, NotFound

COLLECTIONS: Final = {
    "c0": ("r0",),
    "c1": ("r0", "r1", "r2", "r3", "r4", "r5"),
    "c2": ("r1", "r2", "c0"),
    "c3": ("r3", "r4", "r5", "r2"),
}
"""A collection's hash says what it consists of."""
RAW: Final = ("r0", "r1", "r2", "r3", "r4", "r5")
BLOBS: Final = (*RAW, *COLLECTIONS)
OWNERS: Final = (1001, 1002)
TAGS: Final = ("t0", "t1", "t2")
Op: TypeAlias = tuple[Any, ...]


def size_of(name: str) -> int:
    return BLOBS.index(name) + 1


class Known(Struct):
    """One blob."""

    kind: str = "raw"
    owners: set[int] = field(default_factory=set)
    holders: set[str] = field(default_factory=set)
    replicas: int | None = None
    references: set[str] = field(default_factory=set)
    """As KIND/NAME, a collection by its name here."""
    touched_ms: int = 0
    revision: int = 0
    """At which its entry was made: it may go, and come again."""


class Model(Struct):
    """Everything that is known."""

    blobs: dict[str, Known] = field(default_factory=dict)
    tags: dict[str, tuple[str, int]] = field(default_factory=dict)
    drafts: set[str] = field(default_factory=set)
    """Collections that were begun, and given up by a crash."""

    def apply(self, op: Op) -> type[JobsError] | None:
        """Change this as an operation does; return the error that it is refused with."""
        handler = getattr(self, f"_{op[0]}")
        refused: type[JobsError] | None = handler(*op[1:])
        return refused

    # --- operations -------------------------------------------------------------------------------------------------

    def _add(self, uid: int, name: str, member: str, tag: str | None, replicas: int | None) -> type[JobsError] | None:
        children = COLLECTIONS.get(name, ())
        for child in children:
            if uid not in self._owners(child):
                return NotFound
        if tag is not None and tag in self.tags and self.tags[tag][1] != uid:
            return Forbidden
        is_new = name not in self.blobs
        found = self.blobs.setdefault(name, Known())
        found.owners.add(uid)
        found.holders.add(member)
        if replicas is not None and (is_new or replicas > (found.replicas or 1)):
            found.replicas = replicas
        if children:
            found.kind = "collection"
            self.drafts.discard(name)
            for child in children:
                self.blobs[child].references.add(f"collection/{name}")
        if tag is not None:
            self._set_tag(uid, tag, name)
        return None

    def _tag(self, uid: int, tag: str, name: str) -> type[JobsError] | None:
        if tag in self.tags and self.tags[tag][1] != uid:
            return Forbidden
        if uid not in self._owners(name):
            return NotFound
        self._set_tag(uid, tag, name)
        return None

    def _set_tag(self, uid: int, tag: str, name: str) -> None:
        if tag in self.tags:
            self.blobs[self.tags[tag][0]].references.discard(f"tag/{tag}")
        self.tags[tag] = name, uid
        self.blobs[name].references.add(f"tag/{tag}")

    def _untag(self, uid: int, tag: str) -> type[JobsError] | None:
        if tag not in self.tags:
            return NotFound
        if self.tags[tag][1] != uid:
            return Forbidden
        name, _ = self.tags.pop(tag)
        self.blobs[name].references.discard(f"tag/{tag}")
        return None

    def _refer(self, uid: int, plan: str, name: str) -> type[JobsError] | None:
        if uid not in self._owners(name):
            return NotFound
        self.blobs[name].references.add(f"schedule/{plan}")
        return None

    def _unrefer(self, plan: str, name: str) -> None:
        if name in self.blobs:
            self.blobs[name].references.discard(f"schedule/{plan}")

    def _forget(self, uid: int, name: str) -> type[JobsError] | None:
        if uid not in self._owners(name):
            return NotFound
        for tag in [tag for tag, found in self.tags.items() if found == (name, uid)]:
            self._untag(uid, tag)
        self.blobs[name].owners.discard(uid)
        return None

    def _give(self, uid: int, other: int, name: str) -> type[JobsError] | None:
        """By a ticket."""
        if uid not in self._owners(name):
            return NotFound
        for one in (name, *(COLLECTIONS.get(name, ()) if self.blobs[name].kind == "collection" else ())):
            if uid in self._owners(one):
                self.blobs[one].owners.add(other)
        return None

    def _held(self, member: str, name: str, is_here: bool) -> None:
        if name in self.blobs:
            (self.blobs[name].holders.add if is_here else self.blobs[name].holders.discard)(member)

    def _replicate(self, uid: int, name: str, replicas: int) -> type[JobsError] | None:
        if uid not in self._owners(name):
            return NotFound
        found = self.blobs[name]
        if replicas < (found.replicas or 1) and found.owners != {uid}:
            return Forbidden
        found.replicas = replicas
        if found.kind == "collection":
            for child in COLLECTIONS[name]:
                known = self.blobs.get(child)
                if known is not None and (known.replicas or 1) < replicas:
                    known.replicas = replicas
        return None

    def _leave(self, member: str) -> None:
        """A member is removed, and comes again without anything."""
        for found in self.blobs.values():
            found.holders.discard(member)

    def _nothing(self) -> None:
        pass

    def _owners(self, name: str) -> set[int]:
        return self.blobs[name].owners if name in self.blobs else set()

    # --- garbage ----------------------------------------------------------------------------------------------------

    def may_go(self, before_ms: int) -> set[str]:
        """Return what nothing keeps, but what may go itself."""
        gone: set[str] = set()
        while True:
            more = {
                name
                for name, known in self.blobs.items()
                if name not in gone
                and known.touched_ms <= before_ms
                and all(self._goes(one, gone) for one in known.references)
            }
            if not more:
                return gone
            gone |= more

    def _goes(self, reference: str, gone: set[str]) -> bool:
        kind, _, name = reference.partition("/")
        return kind == "collection" and name in gone

    def drop(self, names: set[str]) -> None:
        """Have these be gone."""
        for name in names:
            self.blobs.pop(name, None)
        for name in names:
            self.clear(name)

    def clear(self, collection: str) -> None:
        """Have a collection keep nothing any more."""
        self.drafts.discard(collection)
        for known in self.blobs.values():
            known.references.discard(f"collection/{collection}")

    def shown(self) -> dict[str, object]:
        """Return all that is compared."""
        blobs = {
            name: (one.kind, one.owners, one.holders, one.replicas, one.references) for name, one in self.blobs.items()
        }
        return {"blobs": blobs, "tags": self.tags, "drafts": self.drafts}
