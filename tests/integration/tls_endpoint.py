"""A TLS endpoint before a server, as cloud providers put one there."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import trustme


@contextmanager
def tls_endpoint(authority: trustme.CA, port: int) -> Iterator[int]:
    """The port of `localhost` that leads to this one, with a certificate by the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        threading.Thread(target=_serve, args=(server, context, port), daemon=True).start()
        yield server.getsockname()[1]


def _serve(server: socket.socket, context: ssl.SSLContext, port: int) -> None:
    with suppress(OSError):  # the end
        while True:
            connection, _ = server.accept()
            with suppress(OSError):  # a client that does not trust us
                client = context.wrap_socket(connection, server_side=True)
                upstream = socket.create_connection(("127.0.0.1", port))
                for ends in ((client, upstream), (upstream, client)):
                    threading.Thread(target=_pump, args=ends, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError), closing(source):
        while data := source.recv(2**16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)  # the other direction ends too, and closes its source
