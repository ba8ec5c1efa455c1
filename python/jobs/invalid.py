"""JSON as typed values; complaints name the field, what is wrong with it, and what would be right."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

from jobs.errors import InvalidRequest

T = TypeVar("T")

MAX_DETAIL_CHARS: Final = 500
"""Complaints repeat what was sent, which may be long."""
_COMPLAINT: Final = re.compile(r"(?P<detail>.*?)(?: - at (?:`key` in )?`(?P<path>\$[^`]*)`)?", re.DOTALL)
_EXPECTED: Final = re.compile(r"Expected (?P<expected>.*?)(?:, got (?P<got>.*))?", re.DOTALL)
_FIELD: Final = re.compile(r"Object (?P<what>missing required|contains unknown) field `(?P<name>.*)`", re.DOTALL)
_STEP: Final = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>[^\]]*)\]")


def decode_json(what: str, data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the typed value; raise InvalidRequest naming the field, or the byte where it is no JSON."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise invalid_body(error, decoder.type) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{what} is not JSON in UTF-8: {error}", field="$", expected="a JSON object") from error
    except RecursionError as error:
        raise InvalidRequest(f"{what} is nested too deeply", field="$", expected="fewer levels") from error


def invalid_body(error: msgspec.ValidationError, kind: Any) -> InvalidRequest:
    """Return the complaint about a body that was to be of type `kind`; `field` is a JSON path."""
    detail, path, expected = _parts(error, kind)
    return InvalidRequest(detail, field=path, expected=expected)


def invalid_query(error: msgspec.ValidationError, kind: Any) -> InvalidRequest:
    """Return the complaint about a query that was to be of type `kind`; `field` is the parameter's name."""
    detail, path, expected = _parts(error, kind)
    return InvalidRequest(detail, field=path.removeprefix("$").removeprefix("."), expected=expected)


def _parts(error: msgspec.ValidationError, kind: Any) -> tuple[str, str, str]:
    """Return what is wrong, where, and what would be right."""
    complaint = _COMPLAINT.fullmatch(str(error))
    assert complaint is not None
    detail, path = complaint["detail"][:MAX_DETAIL_CHARS], complaint["path"] or "$"
    field = _FIELD.fullmatch(detail)
    if field is not None:
        name = field["name"]
        wrong = "is missing" if field["what"] == "missing required" else "is unknown"
        return f"{name} {wrong}", f"{path}.{name}", _expected_field(kind, path, name, wrong)
    expected = _EXPECTED.fullmatch(detail)
    if expected is None:
        return detail, path, _choices(kind, path) or "a value within the bounds of /openapi.json"
    # msgspec shows a pattern as it stands in Python's source.
    right = expected["expected"].replace("\\\\", "\\")
    return f"got {expected['got']}" if expected["got"] else "not acceptable", path, right


def _expected_field(kind: Any, path: str, name: str, wrong: str) -> str:
    if wrong == "is missing":
        return _choices(kind, f"{path}.{name}") or "a value: it has no default"
    known = sorted({field for struct in _structs(_at(kind, path)) for field in _names(struct)})
    return f"one of {', '.join(known)}" if known else "no parameters"


def _names(struct: inspect.StructType) -> Iterator[str]:
    if struct.tag_field is not None:
        yield struct.tag_field
    yield from (field.encode_name for field in struct.fields)


def _choices(kind: Any, path: str) -> str | None:
    """Return the values that are possible at a path, None where they are not a list."""
    parent, _, name = path.rpartition(".")
    tags = [str(struct.tag) for struct in _structs(_at(kind, parent or "$")) if struct.tag_field == name]
    values = [str(value) for found in _at(kind, path) for value in _values(found)]
    possible = sorted({*tags, *values})
    return f"one of {', '.join(possible)}" if possible else None


def _values(found: inspect.Type) -> list[Any]:
    if isinstance(found, inspect.EnumType):
        return [member.value for member in found.cls]
    return list(found.values) if isinstance(found, inspect.LiteralType) else []


def _at(kind: Any, path: str) -> list[inspect.Type]:
    """Return the types that a value at this path may have."""
    found = _plain(_type_info(kind))
    for step in _STEP.finditer(path):
        found = [into for one in found for into in _step(one, step["name"])]
    return found


def _step(found: inspect.Type, name: str | None) -> list[inspect.Type]:
    if name is not None and isinstance(found, inspect.StructType):
        return [into for field in found.fields if field.encode_name == name for into in _plain(field.type)]
    if name is None and isinstance(found, inspect.CollectionType):
        return _plain(found.item_type)
    if name is None and isinstance(found, inspect.DictType):
        return _plain(found.value_type)
    return []


def _plain(found: inspect.Type) -> list[inspect.Type]:
    """Return the alternatives of a type, without what only describes it."""
    if isinstance(found, inspect.Metadata):
        return _plain(found.type)
    if isinstance(found, inspect.UnionType):
        return [one for option in found.types for one in _plain(option)]
    return [found]


def _structs(found: list[inspect.Type]) -> list[inspect.StructType]:
    return [one for one in found if isinstance(one, inspect.StructType)]


_type_info = functools.cache(inspect.type_info)
