"""How every benchmark prints a figure."""

from __future__ import annotations


def show(name: str, value: str, against: str = "") -> None:
    """Print what was measured, the figure, and what it is to be held against."""
    print(f"{name:<58} {value:>16}  {against}", flush=True)
