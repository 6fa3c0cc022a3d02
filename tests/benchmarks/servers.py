"""The servers that are compared: `python -m tests.benchmarks.servers NAME PORT FOLDER`, pinned to one core."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from litestar import Litestar, Request, asgi, post
from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.app import create_app
from gateway.server import server
from gateway.settings import load_settings
from gateway.telemetry import configure_logs

SECRET = "whsec_benchmark"


def bare_handler() -> ASGIApp:
    @post("/webhooks/stripe", status_code=200)
    async def read(request: Request[Any, Any, Any]) -> dict[str, bool]:
        await request.body()
        return {"received": True}

    return Litestar([read], openapi_config=None, logging_config=None)


def bare_asgi() -> ASGIApp:
    @asgi("/webhooks", is_mount=True, copy_scope=False)
    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        body = b'{"received":true}'
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return Litestar([read], openapi_config=None, logging_config=None)


def gateway(folder: Path) -> ASGIApp:
    environment = {
        "GATEWAY_STORE": f"sqlite:///{folder / 'gateway.db'}",
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "NEXLY_APP_ID": "a",
        "NEXLY_INGEST_KEY": "b",
        "DATALYR_API_KEY": "c",
    }
    return create_app(load_settings(environment), deliver=False)


def main() -> None:
    name, port, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    os.sched_setaffinity(0, {0})
    configure_logs(json=True, quiet=True)
    apps: dict[str, Callable[[], ASGIApp]] = {
        "handler": bare_handler,
        "asgi": bare_asgi,
        "gateway": partial(gateway, folder),
    }
    app = apps[name]()
    server(app, "127.0.0.1", port).run()


if __name__ == "__main__":
    main()
