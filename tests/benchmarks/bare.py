"""What the gateway is compared with, in Python: `python -m tests.benchmarks.bare NAME PORT`.

`handler` and `asgi` only read the body: what Litestar itself leaves room for. `inline` is what collectors document for
Python: FastAPI, Stripe's `construct_event`, and a POST to each of COLLECTORS before the answer. Each imports only what
it needs, as its start and its memory are measured too.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.server import server


def handler() -> ASGIApp:
    from litestar import Litestar, Request, get, post

    @post("/webhooks/stripe", status_code=200)
    async def read(request: Request[Any, Any, Any]) -> dict[str, bool]:
        await request.body()
        return {"received": True}

    @get("/livez")
    async def live() -> dict[str, bool]:
        return {"live": True}

    return Litestar([read, live], openapi_config=None, logging_config=None)


def asgi() -> ASGIApp:
    from litestar import Litestar
    from litestar import asgi as route

    @route("/", is_mount=True, copy_scope=False)
    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        body = b'{"received":true}'
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return Litestar([read], openapi_config=None, logging_config=None)


def inline() -> ASGIApp:
    import httpx
    import stripe
    from fastapi import FastAPI, Request, Response

    app = FastAPI()
    client = httpx.AsyncClient()
    collectors = [each for each in os.environ.get("COLLECTORS", "").split(",") if each]

    @app.post("/webhooks/stripe")
    async def track(request: Request, response: Response) -> dict[str, object]:
        try:
            event = stripe.Webhook.construct_event(
                await request.body(), request.headers["stripe-signature"], os.environ["STRIPE_WEBHOOK_SECRET"]
            )
        except (ValueError, stripe.SignatureVerificationError) as error:
            response.status_code = 400
            return {"error": str(error)}
        session = event["data"]["object"]
        properties = {"order_id": session["metadata"]["order_id"], "value": session["amount_total"] / 100}
        data = {**properties, "anonymous_id": session["client_reference_id"], "properties": properties}
        for collector in collectors:
            sent = {"event_name": "purchase", "timestamp": event["created"], "context": {}, "data": data}
            await client.post(collector, json=sent, headers={"Idempotency-Key": event["id"]})
        return {"received": True}

    @app.get("/livez")
    async def live() -> dict[str, bool]:
        return {"live": True}

    return app  # type: ignore[return-value]  # Litestar's type of an application names its own scopes


APPS: dict[str, Callable[[], ASGIApp]] = {"handler": handler, "asgi": asgi, "inline": inline}


if __name__ == "__main__":
    server(APPS[sys.argv[1]](), "127.0.0.1", int(sys.argv[2])).run()
