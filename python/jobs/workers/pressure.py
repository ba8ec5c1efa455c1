"""Pressure on this machine by the kernel's account (PSI): a thin reader, and the pure decision when it is too much."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, get_args

from jobs.config import PressureLimits
from jobs.protocol.model import PressureKind

DIRECTORY: Final = Path("/proc/pressure")
KINDS: Final[tuple[PressureKind, ...]] = get_args(PressureKind)
RELIEF: Final = 0.8
"""What is under pressure stays so until it is below this share of its limit: else it would change all the time."""


class Gauge:
    """Reads the pressure, and remembers whether it was too much."""

    def __init__(self, limits: PressureLimits, directory: Path = DIRECTORY) -> None:
        self._limits: dict[PressureKind, float | None] = {
            "cpu": limits.cpu_percent,
            "memory": limits.memory_percent,
            "io": limits.io_percent,
        }
        self._directory = directory
        self.pressure: dict[PressureKind, float] = {}
        """Percent of the last ten seconds in which something waited for the resource, as last read."""
        self.over: frozenset[PressureKind] = frozenset()
        """What is under pressure."""

    def read(self) -> None:
        """Look again; what the kernel does not tell of is left out."""
        self.pressure = read_pressure(self._directory)
        self.over = over_limit(self.pressure, self._limits, self.over)


def over_limit(
    pressure: Mapping[PressureKind, float], limits: Mapping[PressureKind, float | None], before: frozenset[PressureKind]
) -> frozenset[PressureKind]:
    """Return what is above its limit, and what was (`before`) and has not fallen far enough below; no limit: never."""
    return frozenset(
        name
        for name, percent in pressure.items()
        if (limit := limits.get(name)) is not None
        and (percent > limit or (name in before and percent >= RELIEF * limit))
    )


def read_pressure(directory: Path = DIRECTORY) -> dict[PressureKind, float]:
    """Return the pressure on each resource that the kernel tells of."""
    found = {}
    for name in KINDS:
        try:
            percent = some_avg10((directory / name).read_text())
        except (OSError, UnicodeDecodeError):  # no PSI in this kernel, not switched on, or hidden
            continue
        if percent is not None:
            found[name] = percent
    return found


def some_avg10(text: str) -> float | None:
    """Return `avg10` of the line `some` of a PSI file (kernel: accounting/psi.rst) in percent; None without it."""
    for line in text.splitlines():
        kind, *fields = line.split()[:8] or [""]
        if kind == "some":
            values = dict(field.split("=", 1) for field in fields if "=" in field)
            try:
                percent = float(values["avg10"])
            except (KeyError, ValueError):
                return None
            return percent if 0.0 <= percent <= 100.0 else None
    return None
