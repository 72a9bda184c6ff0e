"""A server on the loopback in a thread of its own, for as long as a block lasts."""

import contextlib
import http.server
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def serving_on_loopback(
    handler: type[http.server.BaseHTTPRequestHandler], closing: threading.Event
) -> Iterator[int]:
    """Gives the port. `closing` is set at the end, for handlers that hang."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
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
