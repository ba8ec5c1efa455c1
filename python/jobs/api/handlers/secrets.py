"""Secrets: set, list, delete, and the key with which they are encrypted. No route tells a value."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import Base, Limit, Query
from jobs.errors import InvalidRequest
from jobs.protocol.model import SecretName

NAME_EXPECTED = "1 to 128 letters, digits and signs of _.-, a letter, a digit or _ first"
Owner = Annotated[int, Meta(ge=0, lt=1 << 32)]


class SecretQuery(Query, frozen=True):
    owner: Owner | None = None
    """Another uid than the caller's: for administrators."""


class SecretsQuery(SecretQuery, frozen=True):
    all: bool = False
    """Those of all owners: for administrators."""
    limit: Limit = 100
    cursor: str | None = None


class SecretHandlers(Base):
    async def list_secrets(self, call: Call) -> Answer:
        query: SecretsQuery = call.query
        page = self._service.secrets.page(
            call.caller, owner=query.owner, everybody=query.all, limit=query.limit, cursor=query.cursor
        )
        return json_answer(await page)

    async def get_secret(self, call: Call) -> Answer:
        query: SecretQuery = call.query
        return json_answer(await self._service.secrets.get(call.caller, _name(call), owner=query.owner))

    async def set_secret(self, call: Call) -> Answer:
        query: SecretQuery = call.query
        view, created = await self._service.secrets.put(call.caller, _name(call), call.body, owner=query.owner)
        return json_answer(view, 201 if created else 200)

    async def delete_secret(self, call: Call) -> Answer:
        query: SecretQuery = call.query
        await self._service.secrets.delete(call.caller, _name(call), owner=query.owner)
        return Answer(204)

    async def get_secret_key(self, call: Call) -> Answer:
        return json_answer(await self._service.secrets.key(call.caller))

    async def rotate_secret_key(self, call: Call) -> Answer:
        return json_answer(await self._service.secrets.rotate(call.caller, call.body))


def _name(call: Call) -> str:
    try:
        return msgspec.convert(call.path, SecretName)
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"{call.path!r:.200} is no name of a secret", field="id", expected=NAME_EXPECTED
        ) from error
