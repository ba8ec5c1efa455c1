"""The OpenAPI 3.1 document, generated from the table of routes and the types that decode requests."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from jobs._native import __version__
from jobs.api.problem import CONTENT_TYPE
from jobs.api.routes import ALWAYS, PLACEHOLDER, ROUTES, Route
from jobs.errors import JobsError, PayloadTooLarge, UnsupportedMediaType
from jobs.protocol.ids import REQUEST_ID_HEADER
from jobs.protocol.model import HASH_PATTERN, NAME_PATTERN, SECRET_NAME_PATTERN, Problem
from jobs.tracing.context import PARENT_HEADER, STATE_HEADER

_REF: Final = "#/components/schemas/{name}"
_JOB_PATTERN: Final = "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
_ID_PATTERNS: Final = {
    "jobs": _JOB_PATTERN,
    "workers": "^[^/]+$",
    "dead-letters": _JOB_PATTERN,
    "queues": NAME_PATTERN,
    "owners": "^[0-9]{1,10}$",
    "schedules": NAME_PATTERN,
    "blobs": HASH_PATTERN,
    "blob-tags": NAME_PATTERN,
    "leases": "^[0-9]{1,18}$",
    "members": "^[^/]+$",
    "tickets": "^[^/]+$",
    "links": NAME_PATTERN,
    "syncs": NAME_PATTERN,
    "secrets": SECRET_NAME_PATTERN,
}
"""What stands in a path's placeholder, by the path's beginning."""
_BODY_ERRORS: Final = (PayloadTooLarge, UnsupportedMediaType)
_REQUEST_ID_PARAMETER: Final = {
    "name": REQUEST_ID_HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "format": "uuid"},
    "description": "A new UUID (best a UUIDv7) for each request, the same when that is sent again: it is done once",
}

_TRACE_PARAMETERS: Final = tuple(
    {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": description}
    for name, description in (
        (
            PARENT_HEADER,
            "The span that the request is part of, as W3C trace context has it; jobs that it makes are too",
        ),
        (STATE_HEADER, "What tracing systems say of it for each other"),
    )
)


def document() -> bytes:
    """Return the document as JSON."""
    types: list[Any] = [Problem]
    for route in ROUTES:
        types += [kind for kind in (route.body, route.answer, route.query) if kind is not None]
    schemas, components = _portable(msgspec.json.schema_components(types, ref_template=_REF))
    schema_of = dict(zip(map(id, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of, components)
    for route in ROUTES:
        components.pop(route.query.__name__, None)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Jobs", "version": __version__, "summary": "Distributed job execution"},
            "paths": paths,
            "components": {"schemas": components},
        }
    )


def _portable(schema: Any) -> Any:
    """Return a schema with patterns of ECMA-262, whose `$` is what `\\Z` is to Python."""
    if isinstance(schema, dict):
        return {
            key: value.replace(r"\Z", "$") if key == "pattern" and isinstance(value, str) else _portable(value)
            for key, value in schema.items()
        }
    return type(schema)(map(_portable, schema)) if isinstance(schema, list | tuple) else schema


def _operation(route: Route, schema_of: dict[int, Any], components: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "parameters": [*_path_parameters(route), *_query_parameters(route.query, components)],
        "responses": _responses(route, schema_of),
    }
    if route.repeat is not None:
        made["description"] = f"Sent again with the same {REQUEST_ID_HEADER}: {route.repeat}"
        made["parameters"] += [_REQUEST_ID_PARAMETER, *_TRACE_PARAMETERS]
    if route.body is not None:
        content = {"application/json": {"schema": schema_of[id(route.body)]}}
        made["requestBody"] = {"required": True, "content": content}
    if route.takes_stream:
        made["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": {}}}}
    return made


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    if PLACEHOLDER not in route.path:
        return []
    kind = route.path.removeprefix("/v1/").partition("/")[0]
    schema = _portable({"type": "string", "pattern": _ID_PATTERNS[kind]})
    return [{"name": "id", "in": "path", "required": True, "schema": schema}]


def _query_parameters(query: type[Struct], components: dict[str, Any]) -> list[dict[str, Any]]:
    schema = components.get(query.__name__, {})
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _nullable_away(field)}
        for name, field in schema.get("properties", {}).items()
    ]


def _nullable_away(field: dict[str, Any]) -> dict[str, Any]:
    """A query parameter cannot be null: it is given or not."""
    options = [option for option in field.get("anyOf", []) if option.get("type") != "null"]
    if len(options) == 1:
        return dict(options[0])
    return field


def _responses(route: Route, schema_of: dict[int, Any]) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "Success"}
    if route.streams:
        success["content"] = {kind: {"schema": {"type": "string"}} for kind in route.streams}
    elif route.answer is not None:
        success["content"] = {"application/json": {"schema": schema_of[id(route.answer)]}}
    responses = {str(route.status): success}
    for status, meaning in route.also:
        responses[str(status)] = {**success, "description": meaning}
    if route.again is not None:
        responses["200"] = {**success, "description": route.again}
    possible: tuple[type[JobsError], ...] = (*ALWAYS, *route.errors, *(_BODY_ERRORS if route.body is not None else ()))
    for error in sorted(possible, key=lambda kind: kind.status):
        response = responses.setdefault(
            str(error.status),
            {"description": "", "content": {CONTENT_TYPE: {"schema": schema_of[id(Problem)]}}},
        )
        texts = [response["description"], f"{error.code}: {error.title}"]
        response["description"] = "; ".join(text for text in texts if text)
    return responses
