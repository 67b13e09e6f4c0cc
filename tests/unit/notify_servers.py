"""A mail server, a webhook and a server that never answers, on loopback."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Mail(socketserver.StreamRequestHandler):
    """As much of RFC 5321 as a client without extensions needs."""

    def handle(self) -> None:
        self._say("220 test")
        text: list[str] = []
        for raw in self.rfile:
            verb = raw.strip().upper()
            if verb == b"DATA":
                self._say("354 go on")
                for line in iter(self.rfile.readline, b".\r\n"):
                    text.append(line.decode("utf-8"))
                self.server.heard.append("".join(text))  # type: ignore[attr-defined]
                self._say("250 taken")
            elif verb == b"QUIT":
                self._say("221 bye")
                return
            else:
                self._say("250 fine")

    def _say(self, line: str) -> None:
        self.wfile.write(line.encode("ascii") + b"\r\n")


class _Hook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append(json.loads(body))  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Nothing: the test says what it expects."""


@contextmanager
def mail_server() -> Iterator[tuple[int, list[str]]]:
    """Port, and the messages that came."""
    heard: list[str] = []
    server = socketserver.TCPServer(("127.0.0.1", 0), _Mail)
    server.heard = heard  # type: ignore[attr-defined]
    with _serving(server):
        yield server.server_address[1], heard


@contextmanager
def web_hook(status: int = 200) -> Iterator[tuple[int, list[dict[str, object]]]]:
    """Port, and the documents that came."""
    heard: list[dict[str, object]] = []
    server = HTTPServer(("127.0.0.1", 0), _Hook)
    server.heard, server.status = heard, status  # type: ignore[attr-defined]
    with _serving(server):
        yield server.server_address[1], heard


@contextmanager
def silent_server() -> Iterator[int]:
    """Port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listening:
        yield listening.getsockname()[1]
