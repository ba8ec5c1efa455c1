"""Damage to the files of a node that does not run: bits of what it had synced are not what they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

_HEADER_BYTES: Final = 512
_HEAD_BYTES: Final = 40
_BITS: Final = 20


class _Record(NamedTuple):
    segment: Path
    at: int
    size: int
    """Without what aligns the next one."""
    synced: int
    """How much of the segment was on the disk when the record was written."""

    @property
    def end(self) -> int:
        return (self.at + self.size + 7) & ~7


def tear_log(directory: Path, noise: bytes) -> None:
    """Leave a write behind the log's last record that a power cut tore."""
    segment = _segments(directory)[-1]
    *_, end = (_HEADER_BYTES, *(record.end for record in _records(segment)))
    with segment.open("r+b") as file:
        file.seek(end)
        file.write(noise)


def damage_log(directory: Path, chance: Random) -> bool:
    """Flip a bit of a record that was synced before later ones were written; False when there is none."""
    segments = _segments(directory)
    last = list(_records(segments[-1]))
    synced = max((record.synced for record in last), default=0)
    places = [record for segment in segments[:-1] for record in _records(segment)]
    places += [record for record in last if record.end <= synced]
    if not places:
        return False
    record = chance.choice(places)
    _flip(record.segment, record.at + chance.randrange(record.size), chance)
    return True


def damage_store(directory: Path, chance: Random) -> None:
    """Flip some bits of the store's data file."""
    (data,) = (directory / "data" / "store").rglob("data.mdb")
    for _ in range(_BITS):
        _flip(data, chance.randrange(data.stat().st_size), chance)


def damage_snapshot(directory: Path, chance: Random) -> bool:
    """Flip a bit of the newest snapshot; False when there is none."""
    found = sorted((directory / "data" / "store").glob("snapshot-*.snap"))
    if not found:
        return False
    size = found[-1].stat().st_size
    _flip(found[-1], chance.randrange(size), chance)
    return True


def _segments(directory: Path) -> list[Path]:
    return sorted((directory / "data" / "log").glob("*.seg"))


def _records(segment: Path) -> Iterator[_Record]:
    """Yield the records of a segment of the log (rust/log/src/format.rs)."""
    data = segment.read_bytes()
    at = _HEADER_BYTES
    while any(data[at : at + 4]):
        length, synced = (int.from_bytes(data[at + place : at + place + 4], "little") for place in (8, 16))
        record = _Record(segment, at, _HEAD_BYTES + length, synced)
        yield record
        at = record.end


def _flip(file: Path, at: int, chance: Random) -> None:
    with file.open("r+b") as open_file:
        open_file.seek(at)
        byte = open_file.read(1)[0]
        open_file.seek(at)
        open_file.write(bytes((byte ^ 1 << chance.randrange(8),)))
