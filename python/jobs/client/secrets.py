"""Secrets: `client.secrets`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from jobs.client.requests import Call, Request, change, get, post, segment, target, write
from jobs.content import content_of
from jobs.errors import InvalidRequest
from jobs.protocol.model import (
    SecretKeyRotate,
    SecretKeyRotated,
    SecretKeyView,
    SecretPage,
    SecretPut,
    SecretView,
)

if TYPE_CHECKING:
    from jobs.client.asynchronous import AsyncClient
    from jobs.client.sync import Client

PAGE_SIZE = 1_000


# --- requests --------------------------------------------------------------------------------------------------------


def list_secrets(cursor: str | None, owner: int | None, everybody: bool) -> Call[SecretPage]:
    query = {"limit": PAGE_SIZE, "cursor": cursor, "owner": owner, "all": "true" if everybody else None}
    return get("/v1/secrets", SecretPage, query)


def get_secret(name: str, owner: int | None) -> Call[SecretView]:
    return get(_secret(name), SecretView, {"owner": owner})


def set_secret(name: str, value: str | bytes, owner: int | None) -> Call[SecretView]:
    try:
        data = value.encode() if isinstance(value, str) else value
    except UnicodeEncodeError:
        # Without its cause, which has the value.
        raise InvalidRequest("the value is text that is not Unicode", field="value", expected="bytes") from None
    return write("PUT", target(_secret(name), {"owner": owner}), SecretView, SecretPut(value=content_of(data)))


def delete_secret(name: str, owner: int | None) -> Request:
    return change("DELETE", target(_secret(name), {"owner": owner}))


def get_key() -> Call[SecretKeyView]:
    return get("/v1/secret-key", SecretKeyView)


def rotate_key(forget_lost: bool) -> Call[SecretKeyRotated]:
    return post("/v1/secret-key:rotate", SecretKeyRotated, SecretKeyRotate(forget_lost=forget_lost))


def _secret(name: str) -> str:
    return f"/v1/secrets/{segment(name)}"


# --- clients ---------------------------------------------------------------------------------------------------------


class SecretsClient:
    """Secrets: `client.secrets`. An owner has their own, administrators deal with those of any `owner`; nobody reads a
    value back."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def set(self, name: str, value: str | bytes, *, owner: int | None = None) -> SecretView:
        """Keep a value of at most 64 KiB, in the place of the one that the name had; jobs that start from now on are
        given it."""
        return self._client.call(set_secret(name, value, owner))

    def get(self, name: str, *, owner: int | None = None) -> SecretView:
        """Return what is told of a secret, which is not its value; raises NotFound."""
        return self._client.call(get_secret(name, owner))

    def list(self, *, owner: int | None = None, everybody: bool = False) -> Iterator[SecretView]:
        """Yield what is told of an owner's secrets, or of everybody's, by owner and name."""
        for page in self._client.pages(lambda cursor: list_secrets(cursor, owner, everybody)):
            yield from page.secrets

    def delete(self, name: str, *, owner: int | None = None) -> None:
        """Delete a secret; jobs that have it keep it. Raises NotFound."""
        self._client.send(delete_secret(name, owner))

    def key(self) -> SecretKeyView:
        """Tell which key secrets are encrypted with; administrators only."""
        return self._client.call(get_key())

    def rotate_key(self, *, forget_lost: bool = False) -> SecretKeyRotated:
        """Encrypt all secrets with a new key; administrators only. Raises SecretKeyMissing where the present one is
        lost, unless what it was for is to be deleted."""
        return self._client.call(rotate_key(forget_lost))


class AsyncSecretsClient:
    """Secrets: `client.secrets`; see `SecretsClient`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def set(self, name: str, value: str | bytes, *, owner: int | None = None) -> SecretView:
        """Keep a value of at most 64 KiB; see `SecretsClient.set`."""
        return await self._client.call(set_secret(name, value, owner))

    async def get(self, name: str, *, owner: int | None = None) -> SecretView:
        """Return what is told of a secret, which is not its value; raises NotFound."""
        return await self._client.call(get_secret(name, owner))

    async def list(self, *, owner: int | None = None, everybody: bool = False) -> AsyncIterator[SecretView]:
        """Yield what is told of an owner's secrets, or of everybody's, by owner and name."""
        async for page in self._client.pages(lambda cursor: list_secrets(cursor, owner, everybody)):
            for secret in page.secrets:
                yield secret

    async def delete(self, name: str, *, owner: int | None = None) -> None:
        """Delete a secret; jobs that have it keep it. Raises NotFound."""
        await self._client.send(delete_secret(name, owner))

    async def key(self) -> SecretKeyView:
        """Tell which key secrets are encrypted with; administrators only."""
        return await self._client.call(get_key())

    async def rotate_key(self, *, forget_lost: bool = False) -> SecretKeyRotated:
        """Encrypt all secrets with a new key; see `SecretsClient.rotate_key`."""
        return await self._client.call(rotate_key(forget_lost))
