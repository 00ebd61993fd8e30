"""How the local API reads requests and answers them."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from aiohttp import web

from .. import ipc

T = TypeVar("T", bound=msgspec.Struct)


async def body(request: web.Request, kind: type[T]) -> T:
    """What was sent. Raises ValueError."""
    return ipc.decode(await request.read(), kind)


def json(value: object) -> web.Response:
    """The answer."""
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def done(message: str, *notes: str | None) -> web.Response:
    """It was done, and what people have to know besides."""
    note = "; ".join(note for note in notes if note)
    return json(ipc.Reply(message=message, note=note or None))


def error(status: int, code: str, message: str) -> web.Response:
    """It was not done."""
    data = msgspec.json.encode(ipc.ErrorReply(code=code, message=message))
    return web.Response(status=status, body=data, content_type="application/json")
