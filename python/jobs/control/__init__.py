"""The control plane: drives the pure parts (jobs, scheduler) over the replicated store."""

from jobs.control.control import Control, ControlConfig

__all__ = ["Control", "ControlConfig"]
