"""Errors as RFC 9457 problem documents."""

from __future__ import annotations

import logging
import math
import secrets
from typing import Final

import msgspec

from jobs.api.answer import Answer
from jobs.consensus import ConsensusError
from jobs.errors import InternalError, JobsError, MethodNotAllowed, OutcomeUnknown
from jobs.protocol.model import Problem

logger = logging.getLogger(__name__)

CONTENT_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:jobs:error:"
_encode = msgspec.json.Encoder().encode


def problem_of(error: JobsError) -> Problem:
    return Problem(
        type=TYPE_PREFIX + error.code,
        title=error.title,
        status=error.status,
        code=error.code,
        detail=error.detail,
        field=error.field,
        expected=error.expected,
    )


def answer_of(error: JobsError) -> Answer:
    """Return the error as an answer, with Retry-After where it says when to try again, and Allow for a method."""
    headers = {"Content-Type": CONTENT_TYPE}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, MethodNotAllowed) and error.expected is not None:
        headers["Allow"] = error.expected
    return Answer(error.status, headers, _encode(problem_of(error)))


def problem(error: Exception) -> Answer:
    """Return the answer that an error makes."""
    return answer_of(as_jobs_error(error))


def as_jobs_error(error: Exception) -> JobsError:
    """Return what a client is told; the cause of an unexpected error goes to the log only, under a number."""
    if isinstance(error, JobsError) and not isinstance(error, InternalError):
        return error
    if isinstance(error, ConsensusError):
        return OutcomeUnknown("the node failed while it wrote; whether the request took effect is not known")
    incident = secrets.token_hex(4)
    logger.error("incident %s", incident, exc_info=error)
    return InternalError(f"something went wrong here; the node's log has it as incident {incident}")
