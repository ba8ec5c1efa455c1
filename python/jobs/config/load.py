"""Where the configuration comes from: flags, then environment, then file, then defaults; and what is wrong with it."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from msgspec import Struct
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsError,
    TomlConfigSettingsSource,
)

from jobs.config.model import ENV_DELIMITER, ENV_PREFIX, NodeConfig, embedded_defaults

DEFAULT_FILE: Final = Path("/etc/jobs/node.toml")
FILE_VARIABLE: Final = "JOBS_CONFIG"
ENVIRONMENT: Final = "environment"
FLAGS: Final = "command line"

_Path: TypeAlias = tuple[str, ...]


class Problem(Struct, frozen=True, kw_only=True):
    """One thing that is wrong: where, what, and what would be right."""

    file: str
    """Path of the file, or `environment`, or `command line`."""
    line: int | None
    """From 1, where it is known."""
    key: str
    """Dotted, as in `api.mode`; "" for the whole file."""
    problem: str
    fix: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        key = f"{self.key}: " if self.key else ""
        return f"{where}: {key}{self.problem}; {self.fix}"


class ConfigError(Exception):
    """The configuration cannot be used; `problems` says why."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def load_config(
    file: Path | None = None, *, flags: Mapping[str, Any] | None = None, embedded: Path | None = None
) -> NodeConfig:
    """Return the configuration of this process.

    `file` is what `--config` names; without it $JOBS_CONFIG counts, and then /etc/jobs/node.toml if it is there.
    `flags` is nested like the file. With `embedded`, a directory, every path lies in it unless configured otherwise,
    and only a file that is named is read.

    Raises ConfigError with every problem that was found.
    """
    path = _find_file(file, embedded=embedded is not None)
    text = _read(path) if path is not None else ""
    stray = list(_stray_variables(os.environ))
    if stray:
        raise ConfigError(stray)
    flags = flags or {}
    defaults = embedded_defaults(embedded.absolute()) if embedded is not None else {}
    try:
        return _build(path, flags, defaults)
    except SettingsError as error:
        raise ConfigError([_variable_problem(error)]) from error
    except ValidationError as error:
        origin = _Origin(path, text, flags)
        raise ConfigError([origin.problem(item) for item in error.errors(include_url=False)]) from error


def check_config(file: Path | None = None, *, embedded: Path | None = None) -> list[Problem]:
    """Return what is wrong with the configuration that a node would start with; nothing when it would start."""
    try:
        load_config(file, embedded=embedded)
    except ConfigError as error:
        return list(error.problems)
    return []


def _build(path: Path | None, flags: Mapping[str, Any], defaults: dict[str, Any]) -> NodeConfig:
    class Loaded(NodeConfig):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            toml = (TomlConfigSettingsSource(settings_cls, toml_file=path),) if path is not None else ()
            return init_settings, env_settings, *toml, InitSettingsSource(settings_cls, init_kwargs=defaults)

    return Loaded(**flags)


def _find_file(file: Path | None, *, embedded: bool) -> Path | None:
    named = file or (Path(os.environ[FILE_VARIABLE]) if os.environ.get(FILE_VARIABLE) else None)
    if named is not None:
        return named
    return DEFAULT_FILE if DEFAULT_FILE.exists() and not embedded else None


def _read(path: Path) -> str:
    """Return the file's text once it is known to be TOML; raise ConfigError."""
    line = None
    try:
        text = path.read_text(encoding="utf-8")
        tomllib.loads(text)
        return text
    except FileNotFoundError:
        problem, fix = "does not exist", f"create it, or name another with --config or {FILE_VARIABLE}"
    except OSError as error:
        problem, fix = f"cannot be read: {error.strerror}", "name a file that this user may read"
    except UnicodeDecodeError as error:
        problem, fix = f"is not UTF-8: {error.reason} at byte {error.start}", "save it as UTF-8"
    except tomllib.TOMLDecodeError as error:
        problem, fix = f"is not TOML: {error}", "correct the syntax"
        at = re.search(r"\(at line (\d+), column \d+\)", problem)
        line = int(at[1]) if at else None
    raise ConfigError([Problem(file=str(path), line=line, key="", problem=problem, fix=fix)])


def _variable_problem(error: SettingsError) -> Problem:
    field = re.search(r'field "(\w+)"', str(error))
    key = field[1] if field else ""
    fix = f"set single keys instead, as in {ENV_PREFIX}{key.upper()}{ENV_DELIMITER}KEY=value"
    return Problem(file=ENVIRONMENT, line=None, key=key, problem="the variable's value is not JSON", fix=fix)


def _stray_variables(environ: Mapping[str, str]) -> Iterator[Problem]:
    """Yield a problem for each variable that is meant for a section that is not there."""
    sections = sorted(NodeConfig.model_fields)
    for name in sorted(environ):
        section, delimiter, _ = name.removeprefix(ENV_PREFIX).partition(ENV_DELIMITER)
        if name.startswith(ENV_PREFIX) and delimiter and section.lower() not in sections:
            fix = _nearest(section.lower(), sections, "section")
            yield Problem(file=ENVIRONMENT, line=None, key=name, problem="there is no such section", fix=fix)


_WORDS: Final = {
    "path_type": "should be a path, in quotes",
    "dict_type": "should be a table",
    "model_type": "should be a section",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
}
"""Kinds of errors whose own words are those of Python and not of TOML."""


class _Origin:
    """Finds out where a refused value came from."""

    def __init__(self, path: Path | None, text: str, flags: Mapping[str, Any]) -> None:
        self._path = path
        self._text = text
        self._flags = flags

    def problem(self, error: ErrorDetails) -> Problem:
        # What pydantic adds to the path: how it came there, and that it is the key itself that is wrong.
        own = ("function-", "constrained-", "[key]")
        loc = tuple(str(part) for part in error["loc"] if not str(part).startswith(own))
        file, line = self._source(loc)
        if error["type"] == "extra_forbidden":
            what, fix = "is not known", _nearest(loc[-1], sorted(_fields(loc[:-1])), "key")
        else:
            what = _WORDS.get(error["type"]) or error["msg"].removeprefix("Value error, ")
            if error["type"] == "string_pattern_mismatch":
                what = f"{str(error['input'])!r} is no name; it is to be as {error['ctx']['pattern'].strip('^$')}"
            what = what[:1].lower() + what[1:]
            field = _field(loc)
            meaning = " ".join((field.description or "").split()) if field is not None else ""
            fix = f"it means: {meaning}" if meaning else "see docs/config.md"
        return Problem(file=file, line=line, key=".".join(loc), problem=what, fix=fix)

    def _source(self, loc: _Path) -> tuple[str, int | None]:
        if _is_given(self._flags, loc):
            return FLAGS, None
        names = {ENV_PREFIX + ENV_DELIMITER.join(loc[:size]).upper() for size in range(1, len(loc) + 1)}
        if names & {name.upper() for name in os.environ}:
            return ENVIRONMENT, None
        if self._path is not None:
            for size in range(len(loc), 0, -1):
                line = line_of(self._text, loc[:size])
                if line is not None:
                    return str(self._path), line
            return str(self._path), None
        return "defaults", None


def _is_given(values: Mapping[str, Any], loc: _Path) -> bool:
    value: Any = values
    for part in loc:
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return bool(loc)


def _fields(section: _Path) -> dict[str, FieldInfo]:
    """Return the fields of a section, none for what is no section."""
    model: Any = NodeConfig
    for part in section:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return {}
        model = field.annotation
    return dict(model.model_fields)


def _field(loc: _Path) -> FieldInfo | None:
    """Return the innermost field on the way to `loc`."""
    for size in range(len(loc), 0, -1):
        found = _fields(loc[: size - 1]).get(loc[size - 1])
        if found is not None:
            return found
    return None


def _nearest(word: str, known: Sequence[str], kind: str) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"the {kind}s here are {', '.join(known)}" if known else f"remove the {kind}"


_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


def line_of(text: str, path: Sequence[str]) -> int | None:
    """Return the line, from 1, on which valid TOML sets `path` or opens it as a table; None where it cannot be told."""
    wanted = tuple(path)
    table: _Path = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header:
            at = table = _split_key(header[1])
        else:
            key = _KEY.match(line)
            at = table + _split_key(key[1]) if key else ()
        if at == wanted:
            return number
    return None


def _split_key(dotted: str) -> _Path:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
