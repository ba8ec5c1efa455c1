"""What of jobs refers to blobs: their submissions by `job`, what they left by `output`. Written with what refers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.control.blobs.references import References, Referred
from jobs.control.secrets import check_named
from jobs.control.transitions import scan
from jobs.protocol.ids import JobId
from jobs.protocol.model import Artefact, JobSubmit
from jobs.records import ResultRecord
from jobs.service import Caller
from jobs.store import Compare, Op, Store
from jobs.validate import named_blobs, named_secrets

if TYPE_CHECKING:
    from jobs.control.newjobs import NewJob

NOTHING: Final[Referred] = ((), ())


class JobReferences:
    """Says what stores and removes the references of jobs and schedules."""

    def __init__(self, store: Store, is_admin: Callable[[int], bool]) -> None:
        self._store = store
        self._references = References(store)
        self._is_admin = is_admin

    def of_new(self, news: Sequence[NewJob]) -> Referred:
        """Return what stores the references of jobs that are about to be. Raises NotFound with the field, for a secret
        that is not there as well."""
        for new in news:
            check_named(self._store, new.record.owner, new.secrets)
        if not any(new.blobs for new in news):
            return NOTHING
        now_ms = wall_ms()
        found = []
        for new in news:
            caller = self._owner(new.record.owner)
            found += [
                self._references.ops((blob,), "job", new.id, caller, now_ms, field=field)
                for blob, field in new.blobs.items()
            ]
        return _joined(found)

    def of_outputs(self, job: JobId, owner: int, artefacts: Sequence[Artefact]) -> Referred:
        """Return what stores the references of what an attempt has left. Raises NotFound."""
        hashes = [artefact.hash for artefact in artefacts]
        return self._references.ops(hashes, "output", job, self._owner(owner), wall_ms()) if hashes else NOTHING

    def of_schedule(self, name: str, owner: int, job: JobSubmit, former: bytes | None) -> Referred:
        """Return what stores the references of a schedule's job, and removes those of the job that it had before."""
        check_named(self._store, owner, named_secrets(job, "$.job"))
        now_ms, blobs = wall_ms(), named_blobs(job, "$.job")
        caller = self._owner(owner)
        found = [
            self._references.ops((blob,), "schedule", name, caller, now_ms, field=field)
            for blob, field in blobs.items()
        ]
        before = () if former is None else named_blobs(records.decode_spec(former))
        found.append(((), self._references.removal((blob for blob in before if blob not in blobs), "schedule", name)))
        return _joined(found)

    def schedule_removal(self, name: str, spec: bytes | None) -> tuple[Op, ...]:
        """Return what removes the references of a schedule that is deleted with this job."""
        named = () if spec is None else named_blobs(records.decode_spec(spec))
        return self._references.removal(named, "schedule", name)

    def removal(self, job: JobId) -> list[Op]:
        """Return what removes all references of a job that is deleted, its tasks' apart."""
        spec = self._store.get(keys.spec(job))
        named = () if spec is None else named_blobs(records.decode_spec(spec[1]))
        results = (value for _, value, *_ in scan(self._store, keys.results_prefix(job)))
        return [*self._references.removal(named, "job", job), *self.output_removal(job, results)]

    def output_removal(self, job: JobId, results: Iterable[bytes]) -> tuple[Op, ...]:
        """Return what removes the references of what a job's attempts have left, by their stored results."""
        return self._references.removal(_left(results), "output", job)

    def _owner(self, uid: int) -> Caller:
        return Caller(uid=uid, gid=uid, admin=self._is_admin(uid))


def _left(results: Iterable[bytes]) -> Iterator[str]:
    for value in results:
        yield from (artefact.hash for artefact in records.decode(ResultRecord, value).artefacts)


def _joined(found: Iterable[Referred]) -> Referred:
    """Return all of it, with what several of them say said once."""
    compares: dict[Compare, None] = {}
    ops: dict[Op, None] = {}
    for some, more in found:
        compares |= dict.fromkeys(some)
        ops |= dict.fromkeys(more)
    return tuple(compares), tuple(ops)
