"""Read the body of a request within bounds of size and time, and find the CSRF token in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

CSRF_FIELD = "csrf_token"
MAX_BODY_BYTES = 1024**2
# A form with files has the token within so many bytes.
MAX_BEGINNING_BYTES = 65_536
MAX_FIELDS = 1_000


class BoundedBody:
    """The body of a request. Its beginning can be read before the application reads all of it.

    Args:
        request: whose body it is.
        max_bytes: more are refused.
        seconds: after which an incomplete body is refused.

    Raises:
        HTTPException: 413: the request announces more bytes.
    """

    def __init__(self, request: Request, max_bytes: int, seconds: float) -> None:
        self._request = request
        self._receive = request.receive
        self._max_bytes = max_bytes
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._size = 0
        self._complete = False
        self._read: list[Message] = []
        if int(_decimal(request.headers.get("content-length", "")) or 0) > max_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """Return the next message, first those that were read before.

        Raises:
            HTTPException: the body is too large or takes too long.
        """
        if self._read:
            return self._read.pop(0)
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "The request took too long.") from None
        self._size += len(message.get("body", b""))
        self._complete = not message.get("more_body")
        if self._size > self._max_bytes:
            raise self._too_large()
        return message

    async def csrf_token(self) -> str:
        """Return the field of that name; empty where the beginning of the body has none."""
        kind = self._request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/x-www-form-urlencoded":
            return _token_of_form(await self._beginning(lambda _: self._complete))
        if kind == "multipart/form-data":
            return _token_of_parts(await self._beginning(lambda read: bool(_token_of_parts(read))))
        return ""

    async def _beginning(self, suffices: Callable[[bytes], bool]) -> bytes:
        """Read until it suffices, all is read, or it is longer than the beginning of a form with files may be."""
        messages: list[Message] = []
        content = b""
        while not self._complete and not suffices(content):
            messages.append(await self.receive())
            content += messages[-1].get("body", b"")
            if len(content) > MAX_BEGINNING_BYTES and self._max_bytes > MAX_BODY_BYTES:
                break
        self._read = messages
        return content

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"The request is too large: at most {self._max_bytes:,} bytes are taken.")


def _decimal(text: str) -> str:
    return text if text.isascii() and text.isdigit() and len(text) < 20 else ""  # noqa: PLR2004 - 64 bits


def _token_of_form(content: bytes) -> str:
    try:
        fields = parse_qs(content.decode("utf-8", "replace"), max_num_fields=MAX_FIELDS)
    except ValueError:
        return ""
    return fields.get(CSRF_FIELD, [""])[0]


def _token_of_parts(content: bytes) -> str:
    """Return the value of the part of that name, once it is there in full."""
    _, _, after = content.partition(f'name="{CSRF_FIELD}"'.encode())
    _, _, value = after.partition(b"\r\n\r\n")
    value, ended, _ = value.partition(b"\r\n")
    return value.decode("utf-8", "replace") if ended else ""
