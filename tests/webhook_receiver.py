"""A server that receives events, as a tenant runs one."""

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class Receiver:
    """A server that notes what it is sent, and answers as it is told to.

    `answers`: it answers only while this is set. `drips`: it sends an answer that never ends. `headers`, `body`: a part
    of the answer that it repeats for as long as the client reads it.
    """

    def __init__(self) -> None:
        self.answer, self.drips = 204, False
        self.headers, self.body = b"", b""
        self.answers = threading.Event()
        self.answers.set()
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.connections = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                receiver.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append((dict(self.headers), body))
                while receiver.drips:
                    self.wfile.write(b"H")
                    time.sleep(0.05)
                receiver.answers.wait()
                self.send_response(receiver.answer)
                self.send_header("Location", "/elsewhere")
                self.repeat(receiver.headers)
                self.send_header("Content-Length", str(10**12 if receiver.body else 0))
                self.end_headers()
                self.repeat(receiver.body)

            def repeat(self, part: bytes) -> None:
                if part:
                    self.flush_headers()
                    with suppress(OSError):
                        while not receiver.ended:
                            self.wfile.write(part)
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

        self.ended = False
        self.server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.received]

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.received]

    def close(self) -> None:
        self.drips, self.ended = False, True
        self.answers.set()
        self.server.shutdown()
        self.server.server_close()

    def verified(self, secret: str) -> dict[str, Any]:
        """What it was told last, if the signature is right."""
        headers, body = self.received[-1]
        return Webhook(secret).verify(body, headers)
