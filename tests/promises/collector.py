"""A collector that records what it gets, and answers as the test says."""

import threading
from collections.abc import Callable
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, post

WITHIN = 30.0


class Collector:
    """`answers` are given one a request, then 200."""

    def __init__(self, answers: list[tuple[int, dict[str, str]]] | None = None) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self._answers = list(answers or [])
        self._arrived = threading.Condition()

    def answer(self, *answers: tuple[int, dict[str, str]]) -> None:
        """Give these answers next."""
        self._answers += answers

    def app(self) -> Litestar:
        @post("/sink", status_code=200)
        async def collect(request: Request[Any, Any, Any]) -> Response[str]:
            body = await request.body()
            with self._arrived:
                self.requests.append((dict(request.headers), body))
                self._arrived.notify_all()
            status, headers = self._answers.pop(0) if self._answers else (200, {})
            return Response("answer", status_code=status, headers=headers)

        return Litestar([collect], openapi_config=None, logging_config=None)

    def wait_for(self, number: int, wanted: Callable[[Any], bool] = lambda _: True) -> list[Any]:
        """Return the bodies that are wanted once there are that many, or fail after `WITHIN` seconds."""

        def found() -> list[Any]:
            bodies = [msgspec.json.decode(body) for _, body in self.requests]
            return [body for body in bodies if wanted(body)]

        with self._arrived:
            assert self._arrived.wait_for(lambda: len(found()) >= number, WITHIN), f"only {len(found())} arrived"
            return found()
