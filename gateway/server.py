"""Runs an ASGI application on uvicorn: in the foreground for `serve`, beside other work for the demo and the tests."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from litestar import Litestar
from litestar.types import ASGIApp

START_WITHIN = 20.0
CONNECTIONS = 1_000
"""Open connections at the most; more get 503. Each may hold a body of GATEWAY_MAX_BODY bytes."""
DRAIN = 15
"""Seconds that requests under way get when the process is told to stop."""


class _Server(uvicorn.Server):
    """Tells the app to end what is open for as long as somebody listens, before it waits for answers under way."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop."""
        if isinstance(self.config.app, Litestar):
            self.config.app.state["stopping"] = True
        await super().shutdown(sockets)


def server(app: ASGIApp, host: str, port: int, trusted_proxies: str = "") -> uvicorn.Server:
    """Return a server for the app; its `run` returns after a clean stop on SIGTERM or SIGINT.

    `trusted_proxies` are the addresses or networks, comma-separated, whose X-Forwarded-For is believed.
    """
    return _Server(
        uvicorn.Config(
            app,
            host,
            port,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            # Who the client is decides its rate limit: a header that anybody can send must not.
            proxy_headers=bool(trusted_proxies),
            forwarded_allow_ips=trusted_proxies or None,
            server_header=False,
            date_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=DRAIN,
        )
    )


@contextmanager
def running(app: ASGIApp, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve the app from a thread while the block runs; yields its URL. Port 0 takes any that is free."""
    with socket.create_server((host, port)) as listener:
        served = server(app, host, port)
        thread = threading.Thread(target=served.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_WITHIN
        while not served.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        if not served.started:
            raise RuntimeError("the server did not start: its log says why")
        try:
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            served.should_exit = True
            thread.join()
