"""Stripe's list of events, read oldest first through its own client.

The list goes back 30 days and gives each event as it was made, which is what its webhook carried (Stripe, "List all
events"). A restricted key that may read events is enough. The body of an event stays as Stripe wrote it, to the byte.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import stripe
from msgspec import Raw, Struct

from gateway.pacing import retry_after
from gateway.reconcile import Courtesy, Found, TryLater, Unreconcilable
from gateway.sealing import Secret

PER_SECOND = 10
"""Requests; Stripe allows 25 in test mode and 100 live, to all that use the account ("Rate limits")."""
PAGE = 100
FIRST_SPAN = 60
"""Seconds in which the oldest event is looked for at first; the span doubles until there is one."""
TIMEOUT = 30


class _Head(Struct):
    id: str
    created: int
    account: str | None = None


class _Page(Struct):
    data: list[Raw]
    has_more: bool = False


_HEAD = msgspec.json.Decoder(_Head)
_PAGE = msgspec.json.Decoder(_Page)


def _id(event: Raw) -> str:
    return _HEAD.decode(event).id


class StripeEvents:
    """Stripe's events, of one account.

    `account` is a connected account of Connect (acct_…), whose webhooks name it; without one it is the key's own.
    `undelivered` leaves out what Stripe says that every endpoint took.
    """

    source = "stripe"

    def __init__(
        self,
        key: Secret,
        courtesy: Courtesy,
        clock: Callable[[], int],
        *,
        account: str | None = None,
        undelivered: bool = False,
        base: str | None = None,
    ) -> None:
        self._http = stripe.HTTPXClient(timeout=TIMEOUT)
        self._client = stripe.StripeClient(
            key.reveal(),
            http_client=self._http,
            base_addresses={"api": base} if base else {},
            max_network_retries=0,
        )
        self._courtesy = courtesy
        self._clock = clock
        self._account = account
        self._filter: dict[str, Any] = {"delivery_success": "false"} if undelivered else {}

    async def webhooks(self, since: int, until: int) -> AsyncIterator[Found]:
        """Yield the events of a span, oldest first. Raises `Unreconcilable`."""
        # Pages go from new to old. Once the oldest event is found, each page that ends before the newest one known is
        # the next: so it goes on in order of time, holds one page, and sees what happens meanwhile.
        first, last = -(-since // 1000), until // 1000
        page = await self._oldest(first, last)
        while page:
            for raw in reversed(page):
                head = _HEAD.decode(raw)
                at = head.created * 1000
                yield Found(at, at, {}, self._told(bytes(raw), head))
            newest = _id(page[0])
            page = (await self._page(first, last + 1, ending_before=newest)).data
            if page and _id(page[0]) == newest:
                raise Unreconcilable("Stripe gives the same events again: run it again later")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    def _told(self, body: bytes, head: _Head) -> bytes:
        """Return an event with its account, as the webhook has it: it is part of what makes them the same."""
        if self._account is None or head.account is not None:
            return body
        return msgspec.json.encode(msgspec.json.decode(body, type=dict[str, Raw]) | {"account": self._account})

    async def _oldest(self, first: int, last: int) -> list[Raw]:
        """Return the page that ends with the oldest event from `first` to `last` (s); empty if there is none."""
        span, end = FIRST_SPAN, first
        while (begin := end) <= last:
            end = min(begin + span, last + 1)
            span *= 2
            page = await self._page(begin, end)
            while page.has_more and (older := await self._page(begin, end, starting_after=_id(page.data[-1]))).data:
                page = older
            if page.data:
                return page.data
        return []

    async def _page(self, begin: int, end: int, **cursor: str) -> _Page:
        created = {"gte": begin, "lt": end}
        page = await self._courtesy.ask(lambda: self._get({"limit": PAGE, "created": created} | self._filter | cursor))
        if not page.data and page.has_more:
            raise Unreconcilable("Stripe says that there is more, and gives nothing: run it again later")
        return page

    async def _get(self, params: dict[str, Any]) -> _Page:
        account = {"stripe_account": self._account} if self._account else {}
        try:
            answer = await self._client.raw_request_async("get", "/v1/events", **params, **account)
            return _PAGE.decode(answer.body)
        except stripe.AuthenticationError:
            raise Unreconcilable(
                "Stripe refuses the key in STRIPE_API_KEY (401): make a restricted key that may read events, and set it"
            ) from None
        except stripe.PermissionError:
            raise Unreconcilable(
                "the key in STRIPE_API_KEY may not read this (403): give it read access to events"
                + (f", also of {self._account}" if self._account else "")
            ) from None
        except stripe.RateLimitError as error:
            raise TryLater("Stripe asks for fewer requests (429)", self._pause(error)) from None
        except stripe.APIConnectionError as error:
            cause = error.__cause__ or error.__context__ or error
            raise TryLater(f"Stripe does not answer ({type(cause).__name__})") from None
        except stripe.StripeError as error:
            if error.http_status is not None and error.http_status >= 500:
                raise TryLater(f"Stripe answers {error.http_status}", self._pause(error)) from None
            raise Unreconcilable(
                f"Stripe answers {error.http_status}: {error.user_message or error.code or 'no reason is given'}"
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Unreconcilable("what Stripe answers is no list of events") from None

    def _pause(self, error: stripe.StripeError) -> int:
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        return retry_after(headers.get("retry-after"), self._clock())
