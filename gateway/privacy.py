"""What people may ask about their data: that it be erased, or handed out. Asked by a webhook, the API or a command.

A request is written down in the same step as the webhook that brings it, so a crash forgets none; it is fulfilled in
the background, and of it remains one line that names nobody. What collectors were sent before is theirs to erase.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from gateway.deliveries import (
    DataRequest,
    Forgotten,
    LinkPart,
    OpenRequest,
    StoredDelivery,
    StoredWebhook,
    StoreUnavailable,
)
from gateway.events import decode_event
from gateway.identity import normalise_subject
from gateway.intake import kept_request
from gateway.links import resolve
from gateway.sealing import Sealer

LOOK_AGAIN = 60.0
"""Seconds between two looks at the store when nobody called: another process may have taken a request in."""
PAGE = 100

_LOG = structlog.get_logger(__name__)


class Register(Protocol):
    """What is needed of a store to fulfil requests about data."""

    async def ask(self, request: DataRequest, now: int) -> int:
        """Write down what somebody asks about data, to be fulfilled; return its number."""
        ...

    async def asked(self) -> list[OpenRequest]:
        """Return the requests about data that are to be fulfilled, the oldest first."""
        ...

    async def fulfilled(self, number: int, now: int, outcome: str) -> None:
        """Close a request about data; `outcome` stays, and names nobody."""
        ...

    async def forget(self, keys: Sequence[bytes]) -> Forgotten:
        """Erase these subjects: their links, the webhooks that name them, and what was made of those."""
        ...

    async def forget_account(self, source: str, account: str) -> Forgotten:
        """Erase all that came from one account of a source."""
        ...

    async def naming(self, keys: Sequence[bytes], *, before: int | None = None, limit: int = 50) -> list[int]:
        """Return the numbers of webhooks that name one of these subjects, newest first."""
        ...

    async def webhook(self, number: int) -> StoredWebhook | None:
        """Return one webhook with its sealed body, or None."""
        ...

    async def deliveries(self, webhook: int) -> list[StoredDelivery]:
        """Return the deliveries of one webhook with their attempts."""
        ...

    async def resolve(self, keys: Sequence[bytes]) -> dict[bytes, list[LinkPart]]:
        """Return what is linked to each of the keys."""
        ...


class Privacy:
    """Takes requests about data, and fulfils them."""

    def __init__(self, store: Register, sealer: Sealer, exports: Path, clock: Callable[[], int]) -> None:
        """`exports` is the folder that what is handed out is written to, for the shop's owner to pass on."""
        self._store = store
        self._sealer = sealer
        self._exports = exports
        self._clock = clock
        self._called = asyncio.Event()

    def wake(self) -> None:
        """Say that there is a request."""
        self._called.set()

    async def follow(self) -> None:
        """Fulfil requests as they come, until cancelled. One that fails is tried again, and holds no other up."""
        while True:
            self._called.clear()
            try:
                for each in await self._store.asked():
                    await self._attempt(each)
            except StoreUnavailable as error:
                _LOG.warning("store_unavailable", during="data requests", error=str(error))
            try:
                async with asyncio.timeout(LOOK_AGAIN):
                    await self._called.wait()
            except TimeoutError:
                pass

    async def forget(self, subjects: Mapping[str, str]) -> Forgotten:
        """Erase these subjects (values by name) now; return how much that was.

        Raises `ValueError` for a value that is none of its kind, and `StoreUnavailable`.
        """
        keys: list[bytes] = []
        for name, value in subjects.items():
            if (normal := normalise_subject(name, value, None)) is None:
                raise ValueError(f"`{value[:40]}` is no {name}")
            keys.append(self._sealer.subject_key(name, normal))
        number = await self._store.ask(DataRequest("forget", keys=tuple(keys)), self._clock())
        forgotten = await self._store.forget(keys)
        await self._close(number, "forget", told(forgotten))
        return forgotten

    async def _attempt(self, asked: OpenRequest) -> None:
        try:
            await self._fulfil(asked)
        except Exception as error:
            # Whatever it is (no folder to write to, the disk is full), the request is still written down.
            reason = f"{type(error).__name__}: {error}"
            _LOG.error("data_request_failed", number=asked.number, kind=asked.request.kind, error=reason)

    async def _fulfil(self, asked: OpenRequest) -> None:
        request = asked.request
        match request.kind:
            case "export":
                webhooks = await self._export(asked)
                outcome = f"wrote {webhooks} webhooks to {asked.number}-{request.source}.json"
            case "forget":
                outcome = told(await self._store.forget(request.keys))
            case "forget_account":
                outcome = told(await self._store.forget_account(request.source, request.account))
        await self._close(asked.number, request.kind, outcome)

    async def _close(self, number: int, kind: str, outcome: str) -> None:
        await self._store.fulfilled(number, self._clock(), outcome)
        _LOG.info("data_request_fulfilled", number=number, kind=kind, outcome=outcome)

    async def _export(self, asked: OpenRequest) -> int:
        """Write all that is kept of the person into one file; return how many webhooks that is.

        One JSON value a line, so that a long history never has to be in memory.
        """
        keys = asked.request.keys
        self._exports.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._exports / f"{asked.number}-{asked.request.source}.json"
        draft = path.with_suffix(".part")
        written, before = 0, None
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            found = await self._store.resolve(keys)
            for key in keys:
                visitor = resolve({"": key}, None, found, self._sealer, 0).visitor
                if visitor is not None:
                    file.write(msgspec.json.encode({"link": visitor}) + b"\n")
            while numbers := await self._store.naming(keys, before=before, limit=PAGE):
                before = numbers[-1]
                for number in numbers:
                    webhook = await self._store.webhook(number)
                    if webhook is not None and webhook.sealed is not None:
                        file.write(msgspec.json.encode(await self._told(webhook)) + b"\n")
                        written += 1
        draft.replace(path)
        return written

    async def _told(self, webhook: StoredWebhook) -> dict[str, object]:
        kept = kept_request(webhook, self._sealer)
        deliveries = await self._store.deliveries(webhook.webhook)
        events = {each.event: decode_event(self._sealer.open(each.event, b"event")) for each in deliveries}
        return {
            "source": webhook.source,
            "type": webhook.type,
            "id": webhook.id,
            "occurred_at": webhook.occurred_at,
            "body": msgspec.Raw(msgspec.json.format(kept.body, indent=-1)),  # on one line, whoever sent it
            "fetched": {name: msgspec.Raw(msgspec.json.format(each, indent=-1)) for name, each in kept.fetched.items()},
            "events": [{"name": each.name, "at": each.at, "properties": each.properties} for each in events.values()],
            "deliveries": [{"destination": each.destination, "state": each.state.name.lower()} for each in deliveries],
        }


def told(forgotten: Forgotten) -> str:
    """Say how much was erased."""
    return (
        f"erased {forgotten.links} links and {forgotten.webhooks} webhooks; "
        f"{forgotten.pending} deliveries will not go out"
    )
