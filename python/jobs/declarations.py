"""What an operator declares of queues and schedules, and what it takes to make the cluster so. Pure: no requests.

Whatever a declaration makes carries its name (`managed_by`), so what it does not declare any more can be told from what
others have made, without a list kept elsewhere that could be lost or fall behind.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Struct, field
from msgspec.structs import asdict, replace

from jobs.errors import InvalidRequest
from jobs.invalid import invalid_body
from jobs.protocol.model import QueueSettings, QueueView, Schedule, ScheduleDetail, ScheduleView
from jobs.protocol.model.base import NAME_PATTERN, Model
from jobs.protocol.model.schedules import ScheduleSettings
from jobs.schedules import check_template, check_timetable
from jobs.validate import check_job

DEFAULT_NAME: Final = "default"

T = TypeVar("T", QueueSettings, Schedule)


class Kind(StrEnum):
    QUEUE = "queue"
    SCHEDULE = "schedule"


class Action(StrEnum):
    """What becomes of an object."""

    CREATE = "create"
    CHANGE = "change"
    KEEP = "keep"
    REMOVE = "remove"


Wanted: TypeAlias = QueueSettings | Schedule


class Declaration(Struct, frozen=True, kw_only=True):
    """Queues and schedules as they are to be, by name."""

    name: str
    """Of the declaration; each object has it as its `managed_by`."""
    queues: Mapping[str, QueueSettings]
    schedules: Mapping[str, Schedule]


class Difference(Struct, frozen=True, kw_only=True):
    """A value that is to be another; null stands for none."""

    path: str
    """Such as `job.payload.argv`."""
    before: Any
    after: Any


class Step(Struct, frozen=True, kw_only=True):
    """What is to be done with one object."""

    kind: Kind
    name: str
    action: Action
    wanted: Wanted | None = None
    """None for one that is to be removed."""
    revision: int | None = None
    """At which the schedule was last set, as it was looked at; 0 for one that is not there."""
    fields: tuple[str, ...] = ()
    """What is other than before."""
    changes: tuple[Difference, ...] = ()
    """The same to the last value."""


class Conflict(Struct, frozen=True, kw_only=True):
    """An object that somebody else has made."""

    kind: Kind
    name: str
    detail: str


class Plan(Struct, frozen=True, kw_only=True):
    """The steps in the order in which they are taken, and what stands against them."""

    steps: Sequence[Step]
    conflicts: Sequence[Conflict]


class DeclarationError(Exception):
    """A declaration cannot be used; each problem names the field, what is wrong, and what would be right."""

    def __init__(self, problems: Sequence[InvalidRequest]) -> None:
        super().__init__("; ".join(problem.detail for problem in problems))
        self.problems = tuple(problems)


class _File(Model, frozen=True):
    """The file before each of its objects is looked at by itself: so that complaints have their names."""

    name: str | None = None
    queues: dict[str, Any] = field(default_factory=dict)
    schedules: dict[str, Any] = field(default_factory=dict)


# --- reading ---------------------------------------------------------------------------------------------------------


def parse(text: bytes, name: str | None = None) -> Declaration:
    """Return what TOML, or JSON where it begins with a brace, declares. `name` wins over the one in the file.

    Raises DeclarationError with everything that is wrong.
    """
    try:
        found = msgspec.convert(_untyped(text), _File)
    except msgspec.ValidationError as error:
        raise DeclarationError([invalid_body(error, _File)]) from error
    problems: list[InvalidRequest] = []
    declared = next(given for given in (name, found.name, DEFAULT_NAME) if given is not None)
    if re.match(NAME_PATTERN, declared) is None:
        problems.append(InvalidRequest(f"{declared!r} is no name", field="$.name", expected="a short name"))
    made = Declaration(
        name=declared,
        queues=_objects("queues", found.queues, QueueSettings, declared, problems),
        schedules=_objects("schedules", found.schedules, Schedule, declared, problems),
    )
    if problems:
        raise DeclarationError(problems)
    return made


def _untyped(text: bytes) -> Any:
    try:
        if text.lstrip().startswith(b"{"):
            return msgspec.json.decode(text)
        return tomllib.loads(text.decode())
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DeclarationError(
            [InvalidRequest(f"this is neither TOML nor JSON: {error}", field="$", expected="tables queues, schedules")]
        ) from error


def _objects(
    section: str, found: Mapping[str, Any], kind: type[T], managed_by: str, problems: list[InvalidRequest]
) -> dict[str, T]:
    """Return the objects of a section; add to `problems` what is wrong with them."""
    made: dict[str, T] = {}
    for name, value in found.items():
        path = f'$.{section}."{name}"'
        declared = _converted(path, value, kind, problems)
        if declared is None:
            continue
        try:
            _check(declared)
        except InvalidRequest as problem:
            problems.append(_below(path, problem))
        if re.match(NAME_PATTERN, name) is None:
            problems.append(InvalidRequest(f"{name!r} is no name", field=path, expected="a short name"))
        made[name] = replace(declared, managed_by=managed_by)
    return made


def _converted(path: str, value: Any, kind: type[T], problems: list[InvalidRequest]) -> T | None:
    """Return the object; None, and each of its keys with which something is wrong, if it is none."""
    refused: set[str] = set()
    while True:
        try:
            made = msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            problem = invalid_body(error, kind)
            key = re.split(r"[.\[]", problem.field or "")[1:2]
            if refused.issuperset(key) and refused:
                return None  # what is missing now is what was refused before
            problems.append(_below(path, problem))
            if not (key and isinstance(value, dict) and key[0] in value):
                return None
            refused.add(key[0])
            value = {name: one for name, one in value.items() if name != key[0]}
        else:
            return None if refused else made


def _check(declared: Wanted) -> None:
    """Raise InvalidRequest for what no node would take."""
    if declared.managed_by is not None:
        raise InvalidRequest("the declaration's own name is put here", field="$.managed_by", expected="nothing")
    if isinstance(declared, Schedule):
        check_timetable(declared)
        check_template(declared.job)
        check_job(declared.job, "$.job")


def _below(path: str, problem: InvalidRequest) -> InvalidRequest:
    return InvalidRequest(problem.detail, field=path + (problem.field or "$")[1:], expected=problem.expected)


# --- what to do ------------------------------------------------------------------------------------------------------


def plan(
    declared: Declaration,
    queues: Iterable[QueueView],
    schedules: Iterable[ScheduleView],
    details: Mapping[str, ScheduleDetail],
    *,
    uid: int,
    take_over: bool,
) -> Plan:
    """Return what makes the cluster as declared: queues before the schedules whose jobs go there, removals last.

    `details`: the schedules among `schedules` that are declared. What was made by hand, or by another uid than `uid`,
    is left alone unless `take_over`: anybody can write any declaration's name on schedules of their own.
    """
    there = {queue.name: settings_of(queue) for queue in queues}
    steps: list[Step] = []
    conflicts: list[Conflict] = []
    for name, settings in declared.queues.items():
        old = there.get(name, QueueSettings())
        step = _step(Kind.QUEUE, name, settings, None if old == QueueSettings() else old)
        maker = None if step.action is Action.CREATE else _maker(old.managed_by, declared.name)
        if maker is None or take_over:
            steps.append(step)
        else:
            conflicts.append(Conflict(kind=step.kind, name=name, detail=f"queue {name!r} {maker}"))
    for name, schedule in declared.schedules.items():
        detail = details.get(name)
        if detail is None:
            steps.append(_new(name, schedule))
            continue
        view, known = detail.schedule, schedule_of(detail)
        maker = f"belongs to uid {view.owner}" if view.owner != uid else _maker(view.managed_by, declared.name)
        if maker is not None and not take_over:
            conflicts.append(Conflict(kind=Kind.SCHEDULE, name=name, detail=f"schedule {name!r} {maker}"))
        elif view.owner != uid:
            # Replaced as a whole: a schedule stays with whoever made it first.
            steps += [_removal(view), _new(name, schedule)]
        else:
            steps.append(replace(_step(Kind.SCHEDULE, name, schedule, known), revision=view.revision))
    return Plan(steps=[*steps, *_removals(declared, there, schedules, uid, take_over)], conflicts=conflicts)


def _removals(
    declared: Declaration,
    queues: Mapping[str, QueueSettings],
    schedules: Iterable[ScheduleView],
    uid: int,
    take_over: bool,
) -> Iterator[Step]:
    """Yield the removals of what the declaration made and does not declare any more."""
    for view in schedules:
        is_ours = view.managed_by == declared.name and (view.owner == uid or take_over)
        if is_ours and view.name not in declared.schedules:
            yield _removal(view)
    for name, settings in queues.items():
        if settings.managed_by == declared.name and name not in declared.queues:
            yield Step(kind=Kind.QUEUE, name=name, action=Action.REMOVE)


def settings_of(queue: QueueView) -> QueueSettings:
    """Return what is set of a queue."""
    return QueueSettings(**{name: getattr(queue, name) for name in QueueSettings.__struct_fields__})


def schedule_of(detail: ScheduleDetail) -> Schedule:
    """Return a schedule as it was set."""
    settings = {name: getattr(detail.schedule, name) for name in ScheduleSettings.__struct_fields__}
    return Schedule(**settings, job=detail.job)


def _step(kind: Kind, name: str, wanted: Wanted, old: Wanted | None) -> Step:
    if old is None:
        return Step(kind=kind, name=name, action=Action.CREATE, wanted=wanted)
    fields = tuple(key for key in wanted.__struct_fields__ if getattr(wanted, key) != getattr(old, key))
    if not fields:
        return Step(kind=kind, name=name, action=Action.KEEP, wanted=wanted)
    changes = tuple(_differences("", old, wanted))
    return Step(kind=kind, name=name, action=Action.CHANGE, wanted=wanted, fields=fields, changes=changes)


def _differences(path: str, before: Any, after: Any) -> Iterator[Difference]:
    if isinstance(before, Struct) and type(before) is type(after):
        before, after = asdict(before), asdict(after)
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before | after:
            yield from _differences(f"{path}.{key}" if path else str(key), before.get(key), after.get(key))
    elif before != after:
        yield Difference(path=path, before=msgspec.to_builtins(before), after=msgspec.to_builtins(after))


def _new(name: str, schedule: Schedule) -> Step:
    return Step(kind=Kind.SCHEDULE, name=name, action=Action.CREATE, wanted=schedule, revision=0)


def _removal(view: ScheduleView) -> Step:
    return Step(kind=Kind.SCHEDULE, name=view.name, action=Action.REMOVE, revision=view.revision)


def _maker(managed_by: str | None, name: str) -> str | None:
    """Return whose an object is, in words; None for this declaration's."""
    if managed_by == name:
        return None
    return "was set by hand" if managed_by is None else f"belongs to the declaration {managed_by!r}"
