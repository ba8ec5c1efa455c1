"""The control plane: drives the pure parts (jobs, scheduler) over the replicated store."""

from jobs.control.control import Control, ControlConfig
from jobs.control.site import Site

__all__ = ["Control", "ControlConfig", "Site"]
