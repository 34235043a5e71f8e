"""Bodies as they are received: how large one is, what it will be once parsed, how long it takes; and all together."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from vecferry.encode.batching import MB
from vecferry.errors import BadRequest, Overloaded, ReceiveTimeout, RequestTooLarge, cut_repr
from vecferry.server.answers import BODY
from vecferry.server.options import ServerLimits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

SMALL_BYTES = 65_536
"""Of each body, which are not counted with the others: a query finds room beside any number of large requests."""
PAUSE_S = 0.01
"""Between two large bodies, which are parsed in one go each: others have their turn."""
RETRY_S = 1
CODINGS = ("gzip", "x-gzip", "deflate")
OTHER_VALUES = 100
"""Beside texts and numbers: the names of fields, and what they choose."""


class InTime:
    """Receive a body for no longer than it may take."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive, self._seconds = receive, seconds
        self._until = time.monotonic() + seconds
        self.is_whole = False

    async def receive(self) -> Message:
        """Return the next message. Raises ReceiveTimeout before the body is whole."""
        if self.is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._until - time.monotonic()):
                message = await self._receive()
        except TimeoutError as exc:
            raise ReceiveTimeout(self._seconds) from exc
        self.is_whole = not message.get("more_body", False)
        return message


class Inflater:
    """Inflate a body of `CODINGS` in pieces of at most `SMALL_BYTES`, however much smaller it was."""

    def __init__(self, coding: str) -> None:
        """Begin a body. Raises BadRequest for another coding."""
        if coding not in CODINGS:
            raise BadRequest("content-encoding", f"{cut_repr(coding)} is not read here; gzip and deflate are, and none")
        self._coding = coding
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # by its head gzip or zlib, which deflate is named for
        self._is_begun = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield what the data is. Raises BadRequest for what is not of that coding."""
        if data and not self._is_begun and self._coding == "deflate" and data[0] & 15 != zlib.DEFLATED:
            self._decoder = zlib.decompressobj(-zlib.MAX_WBITS)  # without zlib's head, as some clients have it
        self._is_begun = self._is_begun or bool(data)
        piece = b""
        while data or len(piece) == SMALL_BYTES:
            if self._decoder.eof:
                raise BadRequest(BODY, f"its {self._coding} has bytes behind its end")
            try:
                piece = self._decoder.decompress(data, SMALL_BYTES)
            except zlib.error as exc:
                raise BadRequest(BODY, f"it is not {self._coding}") from exc
            yield piece
            data = self._decoder.unconsumed_tail or self._decoder.unused_data

    def end(self) -> None:
        """Raise BadRequest for a body that ends too early."""
        if self._is_begun and not self._decoder.eof:
            raise BadRequest(BODY, f"its {self._coding} ends too early")


class Bodies:
    """All bodies that are held, from their first byte to their answer."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._max_bytes = limits.max_bodies_mb * MB
        self.num_bytes = 0
        self._turn = asyncio.Lock()

    def new(self, receive: Receive) -> Body:
        """Return the body that `receive` receives; to be released."""
        return Body(receive, self._limits, self)

    def take(self, num_bytes: int) -> None:
        """Count bytes. Raises Overloaded where there is no room for them."""
        if (wanted := self.num_bytes + num_bytes) > self._max_bytes:
            raise Overloaded("bytes of all requests' bodies", wanted, self._max_bytes, RETRY_S)
        self.num_bytes = wanted

    def give_back(self, num_bytes: int) -> None:
        self.num_bytes -= num_bytes

    async def turn(self) -> None:
        """Wait until a large body may be parsed: some time after the last one that was."""
        async with self._turn:
            await asyncio.sleep(PAUSE_S)


class Body:
    """One body: no more bytes than are allowed, no more values than their parser may make, and not for longer."""

    def __init__(self, receive: Receive, limits: ServerLimits, bodies: Bodies) -> None:
        self._limits, self._bodies = limits, bodies
        self._in_time = InTime(receive, limits.receive_s)
        self._values = ValueCount(limits)
        self._inflater: Inflater | None = None
        self._num_bytes = self._num_received = self._counted = 0

    def decode_from(self, coding: bytes) -> None:
        """Inflate what is received, where a Content-Encoding says so. Raises BadRequest for one that is not read."""
        if (name := coding.decode("latin-1").strip().lower()) not in ("", "identity"):
            self._inflater = Inflater(name)

    def check_announced(self, length: bytes) -> None:
        """Raise RequestTooLarge for a Content-Length over the limit."""
        if length.isdigit():
            self._check_size(int(length))

    async def receive(self) -> Message:
        """Return the next message, inflated.

        Raises ReceiveTimeout, RequestTooLarge, Overloaded; BadRequest for not UTF-8, or not as it was encoded.
        """
        was_whole = self._in_time.is_whole
        message = await self._in_time.receive()
        if self._inflater is None:
            self._add(message.get("body", b""))
        elif not was_whole:
            message["body"] = await self._inflated(self._inflater, message.get("body", b""))
        if not was_whole and self._in_time.is_whole and self._num_bytes > SMALL_BYTES:
            await self._bodies.turn()
        return message

    def release(self) -> None:
        """Give back the room; once there is an answer."""
        self._bodies.give_back(self._counted)
        self._counted = 0

    async def _inflated(self, inflater: Inflater, data: bytes) -> bytes:
        """Return the data inflated, all of it counted as if it had come so; others have their turn meanwhile."""
        self._num_received += len(data)
        self._check_size(self._num_received)
        pieces = []
        for piece in inflater.pieces(data):
            self._add(piece)
            pieces.append(piece)
            await asyncio.sleep(0)
        if self._in_time.is_whole:
            inflater.end()
        return b"".join(pieces)

    def _add(self, data: bytes) -> None:
        self._num_bytes += len(data)
        self._check_size(self._num_bytes)
        self._values.add(data)
        if (more := self._num_bytes - SMALL_BYTES - self._counted) > 0:
            self._bodies.take(more)
            self._counted += more

    def _check_size(self, size: int) -> None:
        if size > (allowed := self._limits.max_body_mb * MB):
            raise RequestTooLarge("bytes of a request's body", size, allowed, "--max-body-mb")


class ValueCount:
    """Count what a body of JSON will be once parsed, in the pieces in which it comes, without parsing it.

    A value takes up to a hundred bytes however short it is written, so that a body of 16 MB may become 800. Counted are
    quotes, and outside of texts opening brackets and commas. As far as a parser would get, there are no more values.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._num_quotes = self._num_lists = self._num_commas = 0
        self._is_inside = self._is_escaped = False
        """Whether a text, or a pair of a backslash and what it escapes, is cut by the end of the last piece."""

    def add(self, piece: bytes) -> None:
        """Count a piece. Raises RequestTooLarge; BadRequest for what is not JSON in UTF-8."""
        if b"\0" in piece:  # in UTF-16, which the parser would know, what follows would count something else
            raise BadRequest(BODY, "it is not JSON in UTF-8")
        if not piece:
            return
        bare = piece[self._is_escaped :].replace(rb"\\", b"").replace(rb"\"", b"")
        self._is_escaped = bare.endswith(b"\\")
        parts = bare.split(b'"')
        outside = b"".join(parts[self._is_inside :: 2])
        self._is_inside ^= len(parts) % 2 == 0
        self._num_quotes += len(parts) - 1
        self._num_lists += outside.count(b"[") + outside.count(b"{")
        self._num_commas += outside.count(b",")
        self._check()

    def _check(self) -> None:
        texts, numbers = self._limits.max_texts, self._limits.max_request_tokens
        counts = (
            ("texts of a request", self._num_quotes // 2, texts, "--max-texts"),
            ("lists of a request", self._num_lists, texts, "--max-texts"),
            ("values of a request", self._num_commas, texts + numbers, "--max-request-tokens"),
        )
        for what, count, allowed, option in counts:
            if count > allowed + OTHER_VALUES:
                raise RequestTooLarge(what, f"{count:,} and more", allowed, option)
