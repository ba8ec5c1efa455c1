"""Which waiting job goes to which worker: pure. The driver feeds events in and carries the plan out."""

from jobs.scheduler.backlog import LOW_WATER, WINDOW, Backlog
from jobs.scheduler.parking import RESERVE_AFTER_MS
from jobs.scheduler.plan import Assignment, Plan, plan
from jobs.scheduler.rooms import Amounts, Candidate
from jobs.scheduler.usage import Run

__all__ = [
    "LOW_WATER",
    "RESERVE_AFTER_MS",
    "WINDOW",
    "Amounts",
    "Assignment",
    "Backlog",
    "Candidate",
    "Plan",
    "Run",
    "plan",
]
