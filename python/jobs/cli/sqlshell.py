"""The dialogue of `jobctl sql`: statements over several lines, history, completion."""

from __future__ import annotations

import os
import readline
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from jobs.cli import exits
from jobs.cli import sql as command
from jobs.cli.interrupts import Detached
from jobs.cli.output import note
from jobs.cli.statements import Scanner
from jobs.client import Client, QueryFailed
from jobs.client.sql import SqlOptions
from jobs.errors import JobsError

PROMPT: Final = "jobs=> "
GOES_ON: Final = "jobs-> "
HISTORY_LINES: Final = 10_000
SHOWN_ROWS: Final = 1_000
KEYWORDS: Final = (
    *("SELECT", "FROM", "WHERE", "GROUP BY", "HAVING", "ORDER BY", "LIMIT", "OFFSET", "DISTINCT", "WITH", "AS", "JOIN"),
    *("LEFT", "RIGHT", "FULL", "INNER", "CROSS", "ON", "USING", "UNION", "ALL", "EXCEPT", "INTERSECT", "CASE", "WHEN"),
    *("THEN", "ELSE", "END", "AND", "OR", "NOT", "NULL", "IS", "IN", "LIKE", "ILIKE", "BETWEEN", "EXISTS", "CAST"),
    *("INSERT INTO", "VALUES", "CREATE TABLE", "CREATE EXTERNAL TABLE", "STORED AS", "LOCATION", "DROP TABLE"),
    *("EXPLAIN", "ANALYZE", "SHOW TABLES", "SHOW COLUMNS", "DESCRIBE", "COUNT", "SUM", "AVG", "MIN", "MAX", "OVER"),
    *("PARTITION BY", "INTERVAL", "DATE", "TIMESTAMP", "TRUE", "FALSE", "ASC", "DESC"),
)
TABLES: Final = (
    "SELECT table_name AS name, table_type AS type FROM information_schema.tables "
    "WHERE table_schema = 'public' ORDER BY table_name"
)
COLUMNS: Final = (
    'SELECT column_name AS "column", data_type AS type FROM information_schema.columns '
    "WHERE table_schema = 'public' AND table_name = $1 ORDER BY ordinal_position"
)
NAMES: Final = "SELECT DISTINCT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
HELP: Final = """A statement ends with ; and may take several lines. Ctrl-C ends the statement, or the query that runs.
\\d        list the tables           \\d NAME      describe one
\\format F  table, json, csv         \\q           leave (also Ctrl-D)
"""


class Shell:
    """Reads statements and runs them, one after the other."""

    def __init__(self, client: Client, options: SqlOptions, shown: str) -> None:
        self._client = client
        self._options = options
        self._shown = shown
        self._names: list[str] | None = None

    def run(self) -> int:
        """Read until the end of the input; return the exit code."""
        history = history_file()
        self._prepare(history)
        print("Type \\? for help.")
        lines: list[str] = []
        while True:
            try:
                line = input(GOES_ON if lines else PROMPT)
            except EOFError:
                print()
                break
            except KeyboardInterrupt:
                print("^C")
                lines.clear()
                continue
            if not lines and line.lstrip().startswith("\\"):
                if not self._carry_out(line.strip()):
                    break
                continue
            lines.append(line)
            lines = self._run_whole("\n".join(lines))
        save_history(history)
        return exits.OK

    def _run_whole(self, text: str) -> list[str]:
        """Run the statements that are complete; return the lines of what is not."""
        statements, rest = Scanner(text).split()
        for statement in statements:
            self._run(statement)
        return rest.split("\n") if rest.strip() else []

    def _carry_out(self, line: str) -> bool:
        """Carry out a command of the dialogue's own; False when it is to end."""
        name, _, rest = line.partition(" ")
        if name == "\\q":
            return False
        if name == "\\d" and rest:
            self._run(COLUMNS, parameters=[rest.strip().lower()])
        elif name == "\\d":
            self._run(TABLES)
        elif name == "\\format" and rest.strip() in ("table", "json", "csv"):
            self._shown = rest.strip()
        else:
            print(HELP, end="")
        return True

    def _run(self, statement: str, parameters: list[str] | None = None) -> None:
        options = self._options if parameters is None else SqlOptions(parameters=list(parameters))
        try:
            found = command.run(self._client, command.query(statement, self._shown, options))
        except QueryFailed as error:
            note(str(error))
        except Detached:
            note("left alone; it is being ended")
        except JobsError as error:
            note(str(error))
        else:
            if self._shown == "table":
                sys.stdout.write(command.table(found, SHOWN_ROWS))
            else:
                command.write(found, self._shown, None)
            sys.stdout.flush()
            if found.info.written is not None:
                self._names = None

    # --- readline ---------------------------------------------------------------------------------------------------

    def _prepare(self, history: Path) -> None:
        with suppress(OSError):
            readline.read_history_file(history)
        readline.set_history_length(HISTORY_LINES)
        readline.set_completer_delims(" \t\n,()=<>+-*/;'\"")
        readline.set_completer(self._complete)
        readline.parse_and_bind("tab: complete")

    def _complete(self, text: str, number: int) -> str | None:
        if number == 0:
            self._matches = [name for name in self._candidates() if name.lower().startswith(text.lower())]
        return self._matches[number] if number < len(self._matches) else None

    def _candidates(self) -> list[str]:
        if self._names is None:
            self._names = list(KEYWORDS)
            with suppress(JobsError, Detached):
                rows = command.run(self._client, command.query(NAMES, "json", SqlOptions())).rows()
                self._names += sorted({row["table_name"] for row in rows} | {row["column_name"] for row in rows})
        return self._names


def history_file() -> Path:
    """Return where the statements of former dialogues are kept."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "jobs" / "sql_history"


def save_history(path: Path) -> None:
    """Keep the statements for the next dialogue, for nobody else to read; where that cannot be done, do without."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        readline.write_history_file(path)
