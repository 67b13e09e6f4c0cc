"""A small JSON-RPC client over HTTP, from the standard library.

Invariants:
    * Every wait has an end: connecting, each read, and the whole answer. None above ``response_bytes_max`` is kept.
    * A call that fails on the way is tried again with growing pauses; what a node answers as an error is not.
    * Everything that goes wrong outside is a ``RemoteError`` that names the address (without a password in it).
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

from ..._json import check_depth
from ...errors import AnswerTooLarge, InvalidInputError, RemoteError

__all__ = ["RpcClient"]

_READ_BYTES = 64 * 1024
_RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
_OK = 200


class _TryAgain(Exception):
    """A failure that may go away."""


class RpcClient:
    """One node, one connection. Belongs to one thread.

    Args:
        url: ``http://host:port/path`` or ``https://...``.
        timeout_seconds: for connecting and for each read; a whole answer may take six times as long.
        retries: how often a failed call is repeated, with pauses of ``backoff_seconds``, doubled each time.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 10.0,
        response_bytes_max: int = 64 * 1024 * 1024,
        retries: int = 5,
        backoff_seconds: float = 0.2,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInputError("a node's address begins with http:// or https://", found=url)
        try:
            port = parts.port
        except ValueError as exc:
            raise InvalidInputError("the port of the address is not a number", found=url) from exc
        self.name = f"{parts.scheme}://{parts.hostname}" + (f":{port}" if port else "")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, port
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._timeout = timeout_seconds
        self._limit = response_bytes_max
        self._retries = retries
        self._backoff = backoff_seconds
        self._sleep = sleep
        self._connection: http.client.HTTPConnection | None = None
        self._next_id = 1

    def call(self, method: str, *parameters: object) -> object:
        """The result of one call; ``None`` is a result too (no such block)."""
        return self.batch([(method, parameters)])[0]

    def batch(self, calls: Sequence[tuple[str, Sequence[object]]]) -> list[object]:
        """The results of several calls in one request, in order."""
        if not calls:
            return []
        first = self._next_id
        self._next_id += len(calls)
        requests = [
            {"jsonrpc": "2.0", "id": first + position, "method": method, "params": list(parameters)}
            for position, (method, parameters) in enumerate(calls)
        ]
        body = msgspec.json.encode(requests if len(requests) > 1 else requests[0])
        answer = self._decode(self._post(body))
        answers = answer if isinstance(answer, list) else [answer]
        by_id: dict[object, Mapping[str, object]] = {}
        for item in answers:
            if not isinstance(item, dict):
                raise RemoteError("the answer is not JSON-RPC", node=self.name, found=repr(item)[:80])
            if item.get("error") is not None:
                raise self._refused(calls, item, first)
            by_id[item.get("id")] = item
        results = []
        for request in requests:
            found = by_id.get(request["id"])
            if found is None or "result" not in found:
                raise RemoteError("the node left a call unanswered", node=self.name, method=request["method"])
            results.append(found["result"])
        return results

    def _refused(
        self, calls: Sequence[tuple[str, Sequence[object]]], item: Mapping[str, object], first: int
    ) -> RemoteError:
        number = item.get("id")
        position = number - first if isinstance(number, int) else 0
        method = calls[position][0] if 0 <= position < len(calls) else calls[0][0]
        return RemoteError("the node refused a call", node=self.name, method=method, found=str(item["error"])[:300])

    def _decode(self, raw: bytes) -> object:
        try:
            check_depth(raw)
            return msgspec.json.decode(raw)
        except ValueError as exc:
            raise RemoteError("the answer is not JSON", node=self.name, found=raw[:60]) from exc

    def _post(self, body: bytes) -> bytes:
        pause = self._backoff
        for attempt in range(self._retries + 1):
            try:
                return self._post_once(body)
            except AnswerTooLarge:
                self.close()
                raise
            except (OSError, http.client.HTTPException, _TryAgain) as exc:
                self.close()
                if attempt == self._retries:
                    text = str(exc) or type(exc).__name__
                    raise RemoteError(
                        "the node does not answer", node=self.name, attempts=attempt + 1, found=text
                    ) from exc
            self._sleep(pause)
            pause *= 2
        raise AssertionError("unreachable")

    def _post_once(self, body: bytes) -> bytes:
        if self._connection is None:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            self._connection = kind(self._host, self._port, timeout=self._timeout)
        deadline = time.monotonic() + 6 * self._timeout
        self._connection.request("POST", self._path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        pieces: list[bytes] = []
        size = 0
        while piece := response.read(_READ_BYTES):
            size += len(piece)
            if size > self._limit:
                raise AnswerTooLarge("the answer is larger than allowed", node=self.name, limit=self._limit)
            if time.monotonic() > deadline:
                raise TimeoutError("the answer takes too long")
            pieces.append(piece)
        if response.status in _RETRY_STATUS:
            raise _TryAgain(f"HTTP status {response.status}")
        if response.status != _OK:
            raise RemoteError("the node refused the request", node=self.name, status=response.status)
        return b"".join(pieces)

    def close(self) -> None:
        """The connection is closed; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
