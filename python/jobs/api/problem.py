"""Errors as RFC 9457 problem documents."""

from __future__ import annotations

import logging
import math
import secrets
from typing import Final

import msgspec
from aiohttp import web

from jobs.consensus import ConsensusError
from jobs.errors import InternalError, JobsError, OutcomeUnknown
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


def response_of(error: JobsError) -> web.Response:
    """Return the error as a response, with Retry-After where it says when to try again."""
    response = web.Response(status=error.status, body=_encode(problem_of(error)), content_type=CONTENT_TYPE)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return response


def as_jobs_error(error: Exception) -> JobsError:
    """Return what a client is told; the cause of an unexpected error goes to the log only, under a number."""
    if isinstance(error, JobsError) and not isinstance(error, InternalError):
        return error
    if isinstance(error, ConsensusError):
        return OutcomeUnknown("the node failed while it wrote; whether the request took effect is not known")
    incident = secrets.token_hex(4)
    logger.error("incident %s", incident, exc_info=error)
    return InternalError(f"something went wrong here; the node's log has it as incident {incident}")
