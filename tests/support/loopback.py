"""A server on the loopback in a thread of its own, for as long as a block lasts."""

import contextlib
import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that breaks off is no news."""


@contextlib.contextmanager
def serving_on_loopback(
    handler: type[http.server.BaseHTTPRequestHandler],
    closing: threading.Event,
    certificate: Path | None = None,
) -> Iterator[int]:
    """Gives the port. `closing` is set at the end, for handlers that hang. The certificate's key is in
    its file."""
    server = _Server(("127.0.0.1", 0), handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
