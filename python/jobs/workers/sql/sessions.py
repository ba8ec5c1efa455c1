"""Sessions of the engine: one for each query, made before it is there where that can be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from datafusion import RuntimeEnvBuilder, SessionConfig, SessionContext

from jobs.workers.sql.files import register_readers
from jobs.workers.sql.frames import Bounds, Configure

_WORD: Final = re.compile(r"[a-z_][a-z0-9_]*")


def session(bounds: Bounds, configure: Configure) -> SessionContext:
    """Return a context without tables, which keeps within bounds."""
    config = SessionConfig().with_target_partitions(configure.threads).with_information_schema(True)
    # A collection is one table of all its files, wherever they are in it.
    config = config.set("datafusion.execution.listing_table_ignore_subdirectory", "false")
    runtime = RuntimeEnvBuilder().with_fair_spill_pool(bounds.memory_bytes)
    if bounds.spill_bytes == 0:
        context = SessionContext(config, runtime.with_disk_manager_disabled())
    else:
        context = SessionContext(config, runtime.with_disk_manager_specified(Path(configure.spill)))
        kibibytes = max(1, bounds.spill_bytes >> 10)
        context.sql(f"SET datafusion.runtime.max_temp_directory_size = '{kibibytes}K'")
    register_readers(context, configure.allow_files)
    return context


class Sessions:
    """Makes a session for each query; one ahead, as the next query most often has the bounds of the last."""

    def __init__(self, configure: Configure) -> None:
        self._configure = configure
        self._functions = frozenset(SessionContext().udfs())
        self._ahead: tuple[Bounds, SessionContext] | None = None

    def make_ahead(self, bounds: Bounds) -> None:
        if self._ahead is not None and self._ahead[0] == bounds:
            return
        try:
            self._ahead = bounds, session(bounds, self._configure)
        except Exception:  # the next query makes its own, and says what is wrong
            self._ahead = None

    def take(self, bounds: Bounds) -> SessionContext:
        """Return a session that nobody has had or gets."""
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead is not None and ahead[0] == bounds else session(bounds, self._configure)

    def lighten(self, context: SessionContext, text: str) -> None:
        """Take from a session the functions that a statement without brackets does not name: it calls none of them.

        A scan is handed its session over the binary interface, twice, each time with every function, which is a quarter
        of a look-up's time. With brackets more can be meant, and rules of the optimizer may look for functions of their
        own: those of aggregates and windows stay in any case.
        """
        if "(" not in text:
            named = [context.udf(name) for name in self._functions.intersection(_WORD.findall(text.lower()))]
            for name in self._functions:
                context.deregister_udf(name)
            for function in named:
                context.register_udf(function)
