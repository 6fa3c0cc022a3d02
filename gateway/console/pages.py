"""The console: pages under /console that show what the archive holds, and repair. For whoever has the admin token.

An application of its own, mounted in the gateway's, so that its headers are on every answer below /console. Pages work
without JavaScript; htmx and `console.js` only save clicks.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import urlencode

import msgspec
import structlog
from litestar import Litestar, Request, Response, asgi, get, post
from litestar.datastructures import Cookie
from litestar.datastructures import State as RequestState
from litestar.enums import MediaType
from litestar.exceptions import HTTPException, NotFoundException, PermissionDeniedException
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
from litestar.params import FromPath, Parameter
from litestar.response import ServerSentEvent, ServerSentEventMessage, Stream
from litestar.types import Receive, Scope, Send

from gateway.archive import Archive, Missing, Refused, Unclear, WebhookState, subjects_of
from gateway.archive.showing import guard_for
from gateway.checking import types_of
from gateway.clock import now_ms
from gateway.console.access import Operators
from gateway.console.api import MAX_NUMBER
from gateway.console.charts import charts
from gateway.console.copying import as_test
from gateway.console.frame import FOREVER, Pages, framed, static_files
from gateway.console.overview import Kept, Overview, overview
from gateway.console.playground import MAX_TEXT, mapping_text, request_shown, tried
from gateway.console.session import LASTS, Session, Sessions
from gateway.console.tail import ROWS, Tail
from gateway.console.words import Words, words
from gateway.deliveries import State, StoredWebhook, StoreUnavailable, Wanted, WantedDeliveries
from gateway.destinations import iso
from gateway.documents import MappingErrors
from gateway.events import decode_event
from gateway.explain import explain
from gateway.identity import normalise_subject
from gateway.intake import KeptRequest, kept_request
from gateway.mappings import sample, sample_headers, samples
from gateway.masking import Folded
from gateway.pacing import client_of
from gateway.reloading import MappingsInForce
from gateway.sealing import Sealer
from gateway.sources import MalformedWebhook, Source
from gateway.store.opening import Store

COOKIE = "gateway_console"
MAX_FORM = 16_384
"""Bytes of a form."""
MAX_REQUEST = 4 * MAX_TEXT
"""Bytes of a form with a mapping in it."""
PAGE = 50
STEP = 100
"""Dead deliveries that one step of a retry starts again: between two of them progress is shown, and may be stopped."""
RECONNECT = 2_000
"""After how many ms a browser whose live tail was cut asks again."""
MAX_VALUE = 512

_ENCODE = msgspec.json.Encoder(decimal_format="number").encode
_LOG = structlog.get_logger(__name__)
_PLAIN_HOST = re.compile(r"[A-Za-z0-9.\-]+(?::[0-9]{1,5})?|\[[0-9a-fA-F:.]+\](?::[0-9]{1,5})?")
_ASKED = ("id", "source", "type", "state", "since", "until", "who")
"""What the list of webhooks is narrowed by."""
_WHO = re.compile(r"([A-Za-z0-9_]{1,64}):([0-9a-f]{32})")

Number = Annotated[int, Parameter(ge=0, le=MAX_NUMBER)]
AnyRequest = Request[object, object, RequestState]
Page = Response[str]


class SignedOut(Exception):
    """Nobody is signed in."""


def console_route(
    store: Store,
    archive: Archive,
    operators: Operators,
    sessions: Sessions,
    sealer: Sealer,
    mappings: MappingsInForce,
    folder: Path,
    variables: Callable[[str], str | None],
    breakers: Callable[[], Mapping[str, bool]],
    clock: Callable[[], int] = now_ms,
) -> ASGIRouteHandler:
    """Return the console. `folder` is that of the mappings; `variables` are the settings that they name."""
    console = _Console(store, archive, operators, sessions, sealer, mappings, folder, variables, breakers, clock)
    app = Litestar(
        route_handlers=console.handlers(),
        exception_handlers={
            SignedOut: console.signed_out,
            Missing: console.failed,
            Refused: console.failed,
            Unclear: console.failed,
            StoreUnavailable: console.failed,
            HTTPException: console.failed,
            Exception: console.failed,
        },
        before_request=console.look_up,
        request_max_body_size=MAX_FORM,
        openapi_config=None,
        logging_config=None,
    )
    inner = framed(app)

    @asgi("/console", is_mount=True, copy_scope=True)
    async def console_pages(scope: Scope, receive: Receive, send: Send) -> None:
        console.gateway = scope["litestar_app"].state  # the console is an application of its own, with another
        await inner(scope, receive, send)

    return console_pages


class _Console:
    def __init__(
        self,
        store: Store,
        archive: Archive,
        operators: Operators,
        sessions: Sessions,
        sealer: Sealer,
        mappings: MappingsInForce,
        folder: Path,
        variables: Callable[[str], str | None],
        breakers: Callable[[], Mapping[str, bool]],
        clock: Callable[[], int],
    ) -> None:
        self.store = store
        self.archive = archive
        self.operators = operators
        self.sessions = sessions
        self.sealer = sealer
        self.mappings = mappings
        self.folder = folder
        self.variables = variables
        self.breakers = breakers
        self.clock = clock
        self.static = static_files()
        self.pages = Pages(
            self.static,
            {"time": _time, "clock": _clock, "lasting": _lasting, "many": _many, "money": _money, "json": _json},
        )
        self.numbers: Kept[Overview] = Kept(self._numbers)
        self.trying = asyncio.Lock()
        self.tail = Tail(archive, clock)
        self.gateway = RequestState()

    def handlers(self) -> list[HTTPRouteHandler]:
        """Return all routes, below /console."""
        return [
            *self._entrance(),
            *self._first_page(),
            *self._webhooks(),
            *self._one_webhook(),
            *self._dead(),
            *self._links(),
            *self._other_pages(),
            *self._playground(),
        ]

    # who asks

    async def look_up(self, request: AnyRequest) -> None:
        """Find out who is signed in, before a page is made. Raises `StoreUnavailable`."""
        request.state["session"] = await self.sessions.current(self.store, request.cookies.get(COOKIE))

    def session(self, request: AnyRequest) -> Session:
        """Return who is signed in. Raises `SignedOut`."""
        session = request.state.get("session")
        if session is None:
            raise SignedOut
        assert isinstance(session, Session)  # noqa: S101
        return session

    async def form(self, request: AnyRequest) -> dict[str, str]:
        """Return the form of a request that changes something. Raises `SignedOut`, and 403 for a form of others."""
        session = self.session(request)
        form = await _form(request)
        if not self.sessions.is_form_of(session, form.get("csrf", "")):
            raise PermissionDeniedException(detail="this form is not of your session: open the page again")
        return form

    def show(self, request: AnyRequest, template: str, **values: object) -> Page:
        """Return a page to who is signed in. Raises `SignedOut`."""
        session = self.session(request)
        about = {
            "form": self.sessions.form_token(session),
            "here": template.removesuffix(".html"),
            "problem": self.mappings.problem,
        }
        return self.pages.page(template, values=values | about)

    # what goes wrong

    def signed_out(self, request: AnyRequest, _error: SignedOut) -> Page:
        """Send whoever is not signed in to where that is done."""
        wanted = "/console" + request.scope["path"].rstrip("/") if request.method == "GET" else "/console"
        query = request.scope["query_string"].decode("latin-1")
        if request.method == "GET" and query:
            wanted += f"?{query}"
        address = "/console/sign-in" + ("" if wanted == "/console" else "?" + urlencode({"next": wanted}))
        if _by_htmx(request):
            return _empty(HTTPStatus.UNAUTHORIZED, {"HX-Redirect": address})
        return _see(address)

    def failed(self, request: AnyRequest, error: Exception) -> Page:
        """Return a page that says what went wrong."""
        headers: dict[str, str] = {}
        match error:
            case Missing():
                status, told = HTTPStatus.NOT_FOUND, str(error)
            case Refused():
                status, told = HTTPStatus.CONFLICT, str(error)
            case Unclear():
                status, told = HTTPStatus.BAD_REQUEST, str(error)
            case StoreUnavailable():
                status, told = HTTPStatus.SERVICE_UNAVAILABLE, "the store cannot be read now: try again in a moment"
                headers["Retry-After"] = "5"
            case HTTPException():
                status, told = HTTPStatus(error.status_code), error.detail
            case _:
                _LOG.error("request_failed", path=f"/console{request.scope['path']}", exc_info=error)
                status, told = HTTPStatus.INTERNAL_SERVER_ERROR, "this is a defect of the gateway: its log says more"
        template = "failed-part.html" if _by_htmx(request) else "failed.html"
        session = request.state.get("session") or self.sessions.opened(request.cookies.get(COOKIE))
        answer = self.pages.page(
            template,
            status=status,
            values={
                "title": status.phrase,
                "told": told,
                "here": "failed",
                "problem": None,
                "form": self.sessions.form_token(session) if session else None,
            },
        )
        answer.headers.update(headers)
        return answer

    # signing in, and files

    def _entrance(self) -> list[HTTPRouteHandler]:
        def door(after: str, error: str | None, status: HTTPStatus = HTTPStatus.OK) -> Page:
            return self.pages.page("sign-in.html", status=status, values={"next": after, "error": error})

        @get("/static/{name:str}", sync_to_thread=False)
        def static(name: FromPath[str]) -> Response[bytes]:
            if (file := self.static.get(name)) is None:
                raise NotFoundException(detail="there is no such file")
            return Response(file.content, media_type=file.type, headers={"Cache-Control": FOREVER})

        @get("/sign-in", sync_to_thread=False)
        def sign_in_page(request: AnyRequest) -> Page:
            after = _local(request.query_params.get("next", ""))
            return door(after, None)

        @post("/sign-in")
        async def sign_in(request: AnyRequest) -> Page:
            # There is no session yet whose form it could be; and to sign somebody else in takes the token itself.
            form = await _form(request)
            after = _local(form.get("next", ""))
            if wait := self.sessions.wait(client_of(request.client.host if request.client else "")):
                page = door(after, "Too many tries: wait a minute.", HTTPStatus.TOO_MANY_REQUESTS)
                page.headers["Retry-After"] = str(-(-wait // 1000))
                return page
            cookie = self.sessions.sign_in(form.get("token", ""))
            if cookie is None:
                told = "This is not the GATEWAY_ADMIN_TOKEN of this gateway."
                return door(after, told, HTTPStatus.UNAUTHORIZED)
            self.operators.did("sign_in", 1)
            return _see(after, _cookie(cookie, request, LASTS // 1000))

        @post("/sign-out")
        async def sign_out(request: AnyRequest) -> Page:
            await self.form(request)
            await self.sessions.sign_out(self.store, self.session(request))
            self.operators.did("sign_out", 1)
            return _see("/console/sign-in", _cookie("", request, 0))

        return [static, sign_in_page, sign_in, sign_out]

    # the first page

    async def _numbers(self) -> Overview:
        return await overview(self.store, self.sealer, self.mappings(), self.breakers(), self.clock())

    def _first_page(self) -> list[HTTPRouteHandler]:
        @get("/")
        async def first(request: AnyRequest) -> Page:
            self.session(request)
            numbers = await self.numbers.get()
            newest = await self.tail.newest()
            return self.show(
                request, "overview.html", numbers=numbers, charts=charts(numbers.minutes), webhooks=newest, rows=ROWS
            )

        @get("/numbers")
        async def numbers(request: AnyRequest) -> Page:
            self.session(request)
            numbers = await self.numbers.get()
            return self.show(request, "numbers.html", numbers=numbers, charts=charts(numbers.minutes))

        @get("/tail")
        async def tail(request: AnyRequest) -> ServerSentEvent | Response[str]:
            self.session(request)
            if self.tail.is_full:
                return Response("", status_code=HTTPStatus.NO_CONTENT)  # a browser asks no more after this answer
            # Without these, a proxy may keep what it is told until there is more.
            headers = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
            return ServerSentEvent(self._told(request), headers=headers)

        return [first, numbers, tail]

    async def _told(self, request: AnyRequest) -> AsyncIterator[ServerSentEventMessage]:
        async def is_open() -> bool:
            if self.gateway.get("stopping"):
                return False
            try:
                return await self.sessions.current(self.store, request.cookies.get(COOKIE)) is not None
            except StoreUnavailable:
                return True

        async for each in self.tail.listen(is_open):
            if each is None:
                yield ServerSentEventMessage(event="alive", data="", retry=RECONNECT)
                continue
            row = " ".join(self.pages.text("row.html", {"each": each, "fresh": True}).split())
            yield ServerSentEventMessage(event="webhook", data=row)

    # webhooks

    def _webhooks(self) -> list[HTTPRouteHandler]:
        @get("/webhooks")
        async def webhooks(request: AnyRequest) -> Page:
            self.session(request)
            asked = {name: request.query_params.get(name, "")[:MAX_VALUE] for name in _ASKED}
            after = request.query_params.get("after")
            page = await self.archive.webhooks(self._wanted(asked), after, PAGE)
            now = self.mappings()
            kept = {name: value for name, value in asked.items() if value}
            return self.show(
                request,
                "webhooks.html",
                page=page,
                asked=asked,
                older="?" + urlencode({**kept, "after": page.after}) if page.after else None,
                newest="?" + urlencode(kept) if after else None,
                narrowed=bool(kept),
                sources=sorted(now.sources),
                types=sorted({each for source in now.sources.values() for each in types_of(source)}),
                states=get_args(WebhookState),
                subjects=_people_first(now.subjects.all),
                who=asked["who"].partition(":")[0],
            )

        @post("/webhooks/find")
        async def find(request: AnyRequest) -> Page:
            # A person's name or address belongs into no address: what goes into the next one is a keyed hash.
            form = await self.form(request)
            name, value = form.get("subject", ""), form.get("value", "")
            return _see("/console/webhooks?" + urlencode({"who": f"{name}:{self._key(name, value).hex()}"}))

        return [webhooks, find]

    def _wanted(self, asked: Mapping[str, str]) -> Wanted:
        state = asked["state"]
        if state and state not in get_args(WebhookState):
            raise Unclear(f"`{state[:20]}` is no state")
        wanted = self.archive.wanted(
            id=asked["id"].strip() or None,
            source=asked["source"] or None,
            type=asked["type"].strip() or None,
            since=asked["since"].strip() or None,
            until=asked["until"].strip() or None,
            state=state or None,  # type: ignore[arg-type]
        )
        if who := asked["who"]:
            if (match := _WHO.fullmatch(who)) is None:
                raise Unclear("this says not whose webhooks are looked for: search again")
            wanted = msgspec.structs.replace(wanted, subjects=(bytes.fromhex(match[2]),))
        return wanted

    def _key(self, name: str, value: str) -> bytes:
        (pair,) = subjects_of([f"{name}:{value}"]).items()
        if (normal := normalise_subject(*pair)) is None:
            raise Unclear(f"this is no value of `{name[:40]}`")
        return self.sealer.subject_key(name, normal)

    # one webhook

    def _one_webhook(self) -> list[HTTPRouteHandler]:
        @get("/webhooks/{number:int}")
        async def webhook(request: AnyRequest, number: FromPath[Number]) -> Page:
            self.session(request)
            way = await self.archive.webhook(number)
            known = way.source in self.mappings().sources
            resting = {name for name, is_open in self.breakers().items() if is_open}
            return self.show(request, "webhook.html", way=way, known=known, resting=resting, now=iso(self.clock()))

        @get("/webhooks/{number:int}/explained")
        async def explained(request: AnyRequest, number: FromPath[Number]) -> Page:
            self.session(request)
            stored, kept = await self._kept(number)
            source = self.mappings().sources.get(stored.source)
            if source is None:
                raise Refused(f"no mapping defines the source `{stored.source}` now")
            profiles = self.mappings().profiles
            told = await asyncio.to_thread(
                explain, source, kept.headers, kept.body, profiles, lambda _: {}, stored.received_at, kept.fetched
            )
            template = "explained-part.html" if _by_htmx(request) else "explained.html"
            return self.show(request, template, told=told, number=number)

        @get("/webhooks/{number:int}/requests")
        async def requests(request: AnyRequest, number: FromPath[Number]) -> Page:
            self.session(request)
            sent = await self._requests(number)
            template = "requests-part.html" if _by_htmx(request) else "requests.html"
            return self.show(request, template, sent=sent, number=number)

        @get("/webhooks/{number:int}/test")
        async def test(request: AnyRequest, number: FromPath[Number]) -> Page:
            self.session(request)
            stored, kept = await self._kept(number)
            source = self.mappings().sources.get(stored.source)
            if source is None:
                raise Refused(f"no mapping defines the source `{stored.source}` now")
            name = f"{stored.type} as it came in webhook {number}"
            try:
                text = await asyncio.to_thread(as_test, name, kept, source, self.mappings(), stored.received_at)
            except (MalformedWebhook, msgspec.DecodeError, UnicodeDecodeError) as error:
                raise Refused(str(error)) from None
            return self.show(request, "as-test.html", text=text, number=number, source=stored.source)

        @get("/webhooks/{number:int}/replay")
        async def difference(request: AnyRequest, number: FromPath[Number]) -> Page:
            self.session(request)
            replayed = await self.archive.rehearse(number)
            return self.show(request, "replay.html", number=number, difference=replayed.difference)

        @post("/webhooks/{number:int}/replay")
        async def replay(request: AnyRequest, number: FromPath[Number]) -> Page:
            await self.form(request)
            await self.archive.replay(number)
            self.operators.did("replay", 1, webhook=number)
            return _see(f"/console/webhooks/{number}")

        @post("/deliveries/{webhook:int}/{number:int}/retry")
        async def retry(request: AnyRequest, webhook: FromPath[Number], number: FromPath[Number]) -> Page:
            await self.form(request)
            await self.archive.retry(webhook, number)
            self.operators.did("retry", 1, webhook=webhook, delivery=number)
            return _see(f"/console/webhooks/{webhook}")

        return [webhook, explained, requests, test, difference, replay, retry]

    async def _kept(self, number: int) -> tuple[StoredWebhook, KeptRequest]:
        stored = await self.store.webhook(number)
        if stored is None:
            raise Missing(f"there is no webhook {number}")
        if stored.sealed is None:
            raise Refused("what came is not kept any more, or never was")
        return stored, kept_request(stored, self.sealer)

    async def _requests(self, number: int) -> list[Any]:
        """Return what each delivery of a webhook would send now."""
        now = self.mappings()
        stored, kept = await self._kept(number)
        guard = guard_for(now.sources.get(stored.source), kept, stored.received_at)
        found = []
        for each in await self.store.deliveries(number):
            destination = now.destinations.get(each.destination) or now.off.get(each.destination)
            if destination is None:
                continue
            event = decode_event(self.sealer.open(each.event, b"event"))
            on = each.destination in now.destinations
            found.append(await asyncio.to_thread(request_shown, event, destination, guard, on=on))
        return found

    # dead letters

    def _dead(self) -> list[HTTPRouteHandler]:
        @get("/dead")
        async def dead(request: AnyRequest) -> Page:
            self.session(request)
            return self.show(request, "dead.html", dead=await self.archive.dead())

        @get("/dead/list")
        async def listed(request: AnyRequest) -> Page:
            self.session(request)
            destination, reason = _group(request.query_params)
            page = await self.archive.deliveries(_dead_of(destination, reason), request.query_params.get("after"), PAGE)
            group = {"destination": destination or "", "reason": reason or ""}
            older = "?" + urlencode({**group, "after": page.after}) if page.after else None
            return self.show(
                request, "dead-list.html", page=page, destination=destination, reason=reason, older=older, group=group
            )

        @post("/dead/retry")
        async def retry(request: AnyRequest) -> Page:
            form = await self.form(request)
            destination, reason = _group(form)
            done, total = _count(form.get("done")), _count(form.get("total"))
            retried = await self.archive.retry_dead(destination, reason, form.get("after") or None, STEP)
            self.operators.did("retry_dead", retried.retried, destination=destination, reason=reason)
            template = "progress-part.html" if _by_htmx(request) else "progress.html"
            done += retried.retried
            return self.show(
                request,
                template,
                destination=destination,
                reason=reason,
                done=done,
                total=max(done, total),
                after=retried.after,
            )

        @post("/dead/retry-some")
        async def retry_some(request: AnyRequest) -> Page:
            await self.form(request)
            chosen = [each for each in (await request.form()).getall("place", []) if isinstance(each, str)]
            done = 0
            for each in chosen[:PAGE]:
                if (match := re.fullmatch(r"([0-9]{1,15})\.([0-9]{1,9})", each)) is None:
                    raise Unclear("this is no delivery of a list")
                try:
                    await self.archive.retry(int(match[1]), int(match[2]))
                except (Missing, Refused):  # somebody else was quicker, or it was forgotten
                    continue
                done += 1
            self.operators.did("retry", done)
            return _see("/console/dead")

        @get("/dead/download")
        async def download(request: AnyRequest) -> Stream:
            self.session(request)
            destination, reason = _group(request.query_params)
            self.operators.did("download_dead", 1, destination=destination, reason=reason)
            return Stream(
                self._lines(_dead_of(destination, reason)),
                media_type="application/x-ndjson",
                headers={"Content-Disposition": 'attachment; filename="dead.jsonl"'},
            )

        return [dead, listed, retry, retry_some, download]

    async def _lines(self, wanted: WantedDeliveries) -> AsyncIterator[bytes]:
        after = None
        while True:
            page = await self.archive.deliveries(wanted, after, 200)
            for each in page.deliveries:
                yield msgspec.json.encode(each) + b"\n"
            if (after := page.after) is None:
                return

    # links

    def _links(self) -> list[HTTPRouteHandler]:
        def shown(request: AnyRequest, **values: object) -> Page:
            names = _people_first(self.mappings().subjects.all)
            about: dict[str, object] = {"names": names, "name": "", "value": "", "found": None, "forgotten": None}
            return self.show(request, "links.html", **(about | values))

        @get("/links", sync_to_thread=False)
        def links(request: AnyRequest) -> Page:
            return shown(request)

        @post("/links")
        async def find(request: AnyRequest) -> Page:
            form = await self.form(request)
            name, value = form.get("subject", ""), form.get("value", "")
            (found,) = await self.archive.links(subjects_of([f"{name}:{value}"]))
            return shown(request, name=name, value=value, found=found)

        @post("/links/forget")
        async def forget(request: AnyRequest) -> Page:
            form = await self.form(request)
            if form.get("sure") != "yes":
                raise Unclear("tick the box that says that you are sure: this cannot be undone")
            forgotten = await self.archive.forget(subjects_of([f"{form.get('subject', '')}:{form.get('value', '')}"]))
            self.operators.did("forget", forgotten.webhooks, links=forgotten.links, pending=forgotten.pending)
            return shown(request, forgotten=forgotten)

        return [links, find, forget]

    # set-up and accuracy

    def _other_pages(self) -> list[HTTPRouteHandler]:
        @get("/set-up", sync_to_thread=False)
        def set_up(request: AnyRequest) -> Page:
            self.session(request)
            setup = self.archive.setup(self.variables, self.mappings.problem)
            return self.show(request, "set-up.html", setup=setup, base=_base(request))

        @get("/accuracy")
        async def accuracy(request: AnyRequest) -> Page:
            self.session(request)
            today = datetime.fromtimestamp(self.clock() / 1000, UTC).date()
            try:
                day = date.fromisoformat(request.query_params.get("day") or today.isoformat())
                before, after = day - timedelta(days=1), day + timedelta(days=1)
            except (ValueError, OverflowError):
                raise Unclear("write a day as 2026-10-26") from None
            told = await self.archive.accuracy(day)
            following = after if after <= today else None
            return self.show(request, "accuracy.html", told=told, day=day, before=before, after=following)

        return [set_up, accuracy]

    # the playground

    def _playground(self) -> list[HTTPRouteHandler]:
        @get("/playground")
        async def playground(request: AnyRequest) -> Page:
            self.session(request)
            asked = {name: value[:MAX_VALUE] for name, value in request.query_params.items()}
            source = asked.get("source") or ""
            if number := asked.get("webhook"):
                source = (await self._kept(_webhook_number(number)))[0].source
            sources = self.mappings().sources
            if source and source not in sources:
                raise Missing(f"there is no source `{source[:40]}`")
            source = source or ("stripe" if "stripe" in sources else next(iter(sources)))
            text = await asyncio.to_thread(mapping_text, self.folder, source)
            return await self._tried(request, {**asked, "source": source, "mapping": text, "linked": "yes"})

        @post("/playground", request_max_body_size=MAX_REQUEST)
        async def attempt(request: AnyRequest) -> Page:
            return await self._tried(request, await self.form(request))

        @get("/playground/words")
        async def complete(request: AnyRequest) -> Response[bytes]:
            self.session(request)
            asked = {name: value[:MAX_VALUE] for name, value in request.query_params.items()}
            given = await self._request_of(asked)
            source, private = self.mappings().sources[asked["source"]], bool(asked.get("webhook"))
            found = await asyncio.to_thread(_words, given, source, private=private)
            return Response(msgspec.json.encode(found), media_type=MediaType.JSON)

        return [playground, attempt, complete]

    async def _request_of(self, asked: Mapping[str, str]) -> KeptRequest:
        """Return the stored webhook or the sample that somebody chose. Raises `Missing`, `Refused` and `Unclear`."""
        source = asked.get("source", "")
        if source not in self.mappings().sources:
            raise Missing(f"there is no source `{source[:40]}`")
        if number := asked.get("webhook"):
            stored, kept = await self._kept(_webhook_number(number))
            if stored.source != source:
                raise Missing(f"webhook {stored.webhook} is none of {source}")
            return kept
        names = samples(self.folder, source)
        chosen = asked.get("sample") or _first(names)
        body = sample(self.folder, source, chosen) if chosen in names else None
        if body is None:
            raise Missing(f"there is no such sample of {source}")
        try:
            return KeptRequest(sample_headers(self.folder, source, chosen, body, self.clock() / 1000), body)
        except MappingErrors as errors:
            raise Refused(str(errors)) from None

    async def _tried(self, request: AnyRequest, form: Mapping[str, str]) -> Page:
        source, number = form.get("source", ""), form.get("webhook", "")
        now = self.mappings()
        given = await self._request_of(form)
        if number and request.method == "GET":  # an expression may show any part of it
            self.operators.did("playground", 1, webhook=int(number))
        names = samples(self.folder, source)
        chosen = form.get("sample") or _first(names)
        text, linked = form.get("mapping", ""), form.get("linked") == "yes"
        async with self.trying:  # one at a time: webhooks come first
            result = await asyncio.to_thread(tried, text, given.headers, given.body, now, self.folder, linked=linked)
        template = "tried-part.html" if _by_htmx(request) else "playground.html"
        return self.show(
            request,
            template,
            sources=sorted(now.sources),
            source=source,
            samples=names,
            sample=chosen,
            webhook=number,
            text=text,
            linked=linked,
            tried=result,
            about={"source": source, **({"webhook": number} if number else {"sample": chosen})},
            payload=None if number else given.body.decode("utf-8", "replace"),
        )


# requests


async def _form(request: AnyRequest) -> dict[str, str]:
    return {name: value for name, value in (await request.form()).items() if isinstance(value, str)}


def _by_htmx(request: AnyRequest) -> bool:
    return request.headers.get("hx-request") == "true"


def _local(address: str) -> str:
    """Return an address that may be gone to after signing in: one of the console's own."""
    return address if re.fullmatch(r"/console(?:[/?][^\\\s]*)?", address) and "//" not in address else "/console"


def _see(address: str, *cookies: Cookie) -> Page:
    return _empty(HTTPStatus.SEE_OTHER, {"Location": address}, *cookies)


def _empty(status: HTTPStatus, headers: dict[str, str], *cookies: Cookie) -> Page:
    return Response("", status_code=status, media_type=MediaType.TEXT, headers=headers, cookies=list(cookies))


def _cookie(value: str, request: AnyRequest, lasts: int) -> Cookie:
    return Cookie(
        COOKIE,
        value=value,
        path="/console",
        max_age=lasts,
        httponly=True,
        samesite="strict",
        secure=request.scope["scheme"] == "https",
    )


def _base(request: AnyRequest) -> str:
    """Return where the gateway is, as its visitor sees it; what is no plain host name is not repeated."""
    host = request.headers.get("host", "")
    return f"{request.scope['scheme']}://{host}" if _PLAIN_HOST.fullmatch(host) else "https://YOUR-GATEWAY"


def _group(given: Mapping[str, str]) -> tuple[str | None, str | None]:
    return given.get("destination") or None, given.get("reason") or None


def _dead_of(destination: str | None, reason: str | None) -> WantedDeliveries:
    return WantedDeliveries(destination=destination, states=frozenset({State.DEAD}), reason=reason)


def _count(text: str | None) -> int:
    return int(text) if text and re.fullmatch("[0-9]{1,12}", text) else 0


def _webhook_number(text: str) -> int:
    if re.fullmatch("[0-9]{1,15}", text) is None:
        raise Unclear("a webhook is named by its number")
    return int(text)


def _first(samples: Sequence[str]) -> str:
    """Return the sample that is shown first: of a payment, if one is called so."""
    named = (name for word in ("completed", "paid", "succe", "purchase") for name in samples if word in name.lower())
    return next(named, next(iter(samples), ""))


def _words(request: KeptRequest, source: Source, *, private: bool) -> Words:
    """Return what the editor completes; of a stored webhook, with its person masked."""
    try:
        document: object = msgspec.json.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        document = None
    return words(Folded(guard_for(source, request, 0)).masked(document) if private else document, types_of(source))


def _people_first(subjects: Iterable[str]) -> list[str]:
    return sorted(subjects, key=lambda name: (name not in {"user", "email", "phone"}, name))


# what templates show


def _time(at: int | str) -> str:
    """Return a time as people read it, in UTC, to the second."""
    text = iso(at) if isinstance(at, int) else at
    return text[:19].replace("T", " ")


def _clock(at: int) -> str:
    return iso(at)[11:16]


def _lasting(ms: int) -> str:
    """Return a time span in its largest unit."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if ms >= size:
            return f"{ms // size} {unit}"
    return f"{ms} ms"


def _many(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _money(amount: str) -> str:
    """Return an amount in major units, with its thousands apart."""
    whole, point, rest = amount.partition(".")
    sign, digits = whole[: whole.startswith("-")], whole.lstrip("-")
    return f"{sign}{_many(int(digits))}{point}{rest}" if digits.isdecimal() else amount


def _json(value: object) -> str:
    return msgspec.json.format(_ENCODE(value), indent=2).decode()
