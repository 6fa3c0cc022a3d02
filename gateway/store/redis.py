"""The shared store: Redis (7.0 and later) or Valkey, and as many gateway processes as you like.

Invariants
----------
* A webhook, its claims and unions, its events, deliveries and the queues they are in live in one partition, whose keys
  share a hash tag and so a slot of a cluster. `accept` is one call of one function (`redis.lua`): it happens whole or
  not at all, and nobody sees it half done. So do `replay`, `lease`, `settle` and each step of a purge.
* A delivery is in exactly one state. Pending ones are in the sorted set of their destination, whose score says when
  somebody may lease them: for a waiting one the end of the wait, for a leased one the end of the lease. So a lease
  runs out by itself, whoever held it.
* A settlement counts only under the fence of its lease, and for the event that was leased.
* Keys that were ever claimed together belong to one payment, as in the embedded store.

What a crash leaves: a call that was under way has happened or not; the sender gets no 2xx and sends again. How much a
crash of Redis itself takes is for its persistence to say: with `appendfsync always`, or `wait_aof`, nothing that was
answered; with `everysec` up to a second, which nobody sends again. `warnings` tells what is set otherwise.

Links belong to nobody's partition, as a subject is the same person in every account: each is a key of its own. So
what touches both takes more than one step, links first:

* `accept` stores the webhook; then looks whether one of its subjects was linked meanwhile, if it waits for that; then
  stores what it teaches. A crash in between leaves a wait that ends by itself, and a lesson that the next webhook of
  the person teaches.
* `link` stores the links; then tells who waits for them; then passes them on to whom those name. A crash in between
  leaves a wait that ends by itself (and whoever is sent until then looks the link up), or a lesson untaught, which the
  delivery or the next webhook teaches.

Layout
------
`{gw.<partition>}` begins every key of a partition (`gw` is the prefix):

    :meta            fingerprint, partitions, schema; last and first sequence number, up to which bodies are purged
    :seen            duplicate key -> webhook
    :w:<webhook>     one webhook: w as it came, n what changes of it, b its body, s whom it names, e<i> events,
                     d<i> deliveries, r<i> what a failed try sent, a<i>.<n> attempts
    :due:<name>      a destination's pending deliveries by when they are due; also the channel that says there is work
    :lane:<name>:<lane>  who stands in a lane, by when their events happened; :fronts who of each is in the queue
    :counts          deliveries by state and destination
    :n:<key>         the webhooks that name a subject; :u:<key> those of them that wait for a link
    :keys            payment key -> payment;  :payments  payment -> its keys and claims
    :told            objects by when their newest state was
    :asked           requests about data; :answered what became of them
    :source:<name>   webhooks of a source;  :type:<name> of a type
    :ids             what senders call webhooks -> the first of them;  :id:<id> the others
    :turn:<hash>     a name that one gateway took, until the server drops it (of partition 0)
    :parked          deliveries that are; :dead, also :dead:<name>\\n<reason>;  :deaths which of these there are

and `{gw:<subject key>}` is a link: all its parts in one string, which the server drops by itself. A webhook's number is
its place in its partition times 1024 plus the partition's number, so that numbers of one partition are in order of
arrival, and a number tells where to look.

Functions are loaded under a name that is made of their text, so processes of two versions work side by side.
"""

import asyncio
import math
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from hashlib import blake2b
from heapq import heapify, heappop, heapreplace
from importlib.resources import files
from typing import Any, cast

import structlog
from msgspec import msgpack, structs
from redis import exceptions as failures

from gateway.deliveries import (
    NEVER,
    Acceptance,
    Accounted,
    Attempt,
    Backlog,
    CopiedClaim,
    CopiedDelivery,
    CopiedPayment,
    CopiedWebhook,
    Counts,
    DataRequest,
    DeadGroup,
    Forgotten,
    FoundDelivery,
    FoundWebhook,
    Lease,
    LinkPart,
    NewEvent,
    OpenRequest,
    Place,
    Receipt,
    Revived,
    Settlement,
    State,
    StoredDelivery,
    StoredWebhook,
    StoreMismatch,
    StoreUnavailable,
    Wanted,
    WantedDeliveries,
)
from gateway.store.redis_calls import Address, Argument, Calls, parse_address

SCHEMA = 1
CLAIMS_FOR = 90 * 86_400_000
"""How long a webhook's duplicate key and a payment's claims are known, in ms. Stripe lists events for 30 days."""
EXPIRED_FOR = 30 * 86_400_000
"""How long a link that has ended is kept, in ms, so that an event can say that it came too late for it."""
STEP = 200
"""Webhooks looked at in one call: bounds how long the server is busy with it."""
MAX_TOLD = 100
"""Subjects that one link is passed on to, and webhooks of each that hear of it."""
SCAN = 500
"""Webhooks or deliveries that one page of a list looks at in each partition."""
SCAN_STEP = 100
"""Webhooks that one call reads to see whether they fit: what it says of them is as of one moment."""
SLACK = 5_000
"""Milliseconds by which webhooks may have overtaken each other, or clocks been set back, where lists look by time."""
ABOVE = 1 << 40
"""A webhook's number that none has."""
COPY_WEBHOOKS = 20
"""Webhooks, which may be large, that are read at once when all is copied."""
MAX_PARTITIONS = 1024
OLDEST = (7, 0)
"""The oldest server that has functions."""
MAX_SKEW = 5.0
"""Seconds that the server's clock may differ from ours before we say so."""

_LIBRARY = files("gateway.store").joinpath("redis.lua").read_text("utf-8")
_VERSION = blake2b(_LIBRARY.encode(), digest_size=6).hexdigest()
_TIMES = struct.Struct(">QQB")
_SIZE = struct.Struct(">I")
_ATTEMPT = msgpack.Decoder(tuple[int, int, int, str, bytes | None])
_encode = msgpack.Encoder().encode
_LOG = structlog.get_logger(__name__)


class RedisStore:
    """Outbox, Links and Archive over one Redis, one Sentinel set or one cluster."""

    def __init__(
        self, calls: Calls, address: Address, fingerprint: bytes, prefix: str, partitions: int, *, wait_aof: bool
    ) -> None:
        self._calls = calls
        self._address = address
        self._fingerprint = fingerprint
        self._wait_aof = wait_aof
        self._prefix = prefix.encode()
        self._tags = [f"{{{prefix}.{number}}}".encode() for number in range(partitions)]
        self._turn = 0
        self._ended = 0

    @classmethod
    def at(
        cls,
        url: str,
        fingerprint: bytes,
        *,
        partitions: int = 1,
        prefix: str = "gw",
        wait_aof: bool = False,
        answer_within: float = 5.0,
    ) -> "RedisStore":
        """Return the store at an address, to be connected on the loop that uses it.

        `fingerprint` identifies the sealing key. `answer_within` is how long one answer may take, in seconds.
        `wait_aof`: `accept` returns only when the server has what it wrote on its disk (Redis 7.2 and later). Raises
        `ValueError` for what is no address.
        """
        if not prefix.replace("-", "").replace("_", "").isalnum():
            raise ValueError("a prefix of keys is made of letters, digits, - and _")
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise ValueError(f"GATEWAY_PARTITIONS is a number from 1 to {MAX_PARTITIONS}")
        address = parse_address(url)
        library = _LIBRARY.replace("@version@", _VERSION)
        calls = Calls(address, library, _VERSION, answer_within=answer_within, wait_aof=wait_aof)
        return cls(calls, address, fingerprint, prefix, partitions, wait_aof=wait_aof)

    @classmethod
    async def open(cls, url: str, fingerprint: bytes, **how: Any) -> "RedisStore":
        """Return the store at an address, connected. Takes what `at` takes; raises what it and `connect` raise."""
        store = cls.at(url, fingerprint, **how)
        try:
            await store.connect()
        except BaseException:
            await store.close()
            raise
        return store

    async def connect(self, *, as_found: bool = False) -> None:
        """Connect, load the functions, see that what is there is ours.

        `as_found`: something must be there, and has as many partitions as it has.

        Raises `StoreMismatch` and `StoreUnavailable`.
        """
        try:
            await self._check_version(wait_aof=self._wait_aof)
            await self._calls.load()
            if as_found:
                await self._take_partitions()
            await self._check_owner(len(self._tags))
        except (failures.RedisError, failures.RedisClusterException, OSError, TimeoutError) as error:
            raise self._calls.unavailable(error) from error

    async def close(self) -> None:
        """Wait for what is under way and let go of the connections."""
        await self._calls.close()

    # Outbox: what intake and delivery need

    async def accept(self, acceptance: Acceptance) -> Receipt:
        """Store a webhook with all that follows from it, unless it is there already.

        Whoever gets the receipt may answer 2xx. Raises `StoreUnavailable` when it may not have been stored; to try
        again is safe.
        """
        _linked(acceptance.learned)  # what cannot be written must fail before anything is
        tag = self._tag_of(acceptance.source, acceptance.account)
        answer = await self._calls.ask("accept", tag, self._fingerprint, *_acceptance(acceptance), durable=True)
        number, known, waits, first, due = answer.value
        if known and not answer.again:
            return Receipt(number, duplicate=True)
        if known:
            # The first answer was lost on its way, so nobody knows what it said.
            waits, due = 1, {each.destination.encode() for event in acceptance.events for each in event.deliveries}
        released = await self._follow_up(acceptance, number, first if waits else None, acceptance.received_at)
        return Receipt(number, duplicate=False, due=_names(due) | released)

    async def replay(self, webhook: int, acceptance: Acceptance, now: int) -> Receipt:
        """Put what the mappings make of a stored webhook now beside what they made of it then.

        Deliveries that were sent or are pending stay; dead, skipped and parked ones of the same event start again.
        """
        _linked(acceptance.learned)
        if webhook % MAX_PARTITIONS >= len(self._tags):
            raise ValueError(f"webhook {webhook} has no body any more: retention took it, or somebody was forgotten")
        answer = await self._calls.ask(
            "replay", self._tag(webhook), webhook, now, *_acceptance(acceptance), durable=True
        )
        number, _, waits, first, due = answer.value
        if not number:
            raise ValueError(f"webhook {webhook} has no body any more: retention took it, or somebody was forgotten")
        released = await self._follow_up(acceptance, number, first if waits else None, now)
        return Receipt(number, duplicate=False, due=_names(due) | released)

    async def _follow_up(self, new: Acceptance, webhook: int, waits_from: int | None, now: int) -> frozenset[str]:
        """Do what a stored webhook asks of the links. It is stored, so what fails here fails nobody's 2xx."""
        released: frozenset[str] = frozenset()
        try:
            if waits_from is not None and await self._any_linked(new.subjects, now):
                due = await self._calls.call("unwait", self._tag(webhook), webhook, waits_from, now)
                released |= _names(due)
            if new.learned:
                released |= await self.link(new.learned, now)
        except StoreUnavailable as error:
            _LOG.warning("lesson_lost", webhook=webhook, error=str(error))
        return released

    async def keep(self, webhook: int, sealed: bytes) -> bool:
        """Put a webhook's request in its own place, with what was fetched for it. False when it is gone by now."""
        if webhook % MAX_PARTITIONS >= len(self._tags):
            return False
        return bool(await self._calls.call("keep", self._tag(webhook), webhook, sealed, durable=True))

    async def order_of(self, keys: Sequence[bytes]) -> bytes | None:
        """Return what the payment that one of the keys belongs to is called, sealed. Raises `StoreUnavailable`."""
        if not keys:
            return None
        found = [each for each in await self._everywhere("order_of", *keys) if each]
        return cast("bytes", min(found)[2]) if found else None

    async def lease(self, destination: str, limit: int, now: int, until: int) -> tuple[list[Lease], int | None]:
        """Take up to `limit` due deliveries until then. Also returns when the next one falls due (None: none).

        Of several partitions each is asked for its share, and those that had more for what the others left.
        """
        leases: list[Lease] = []
        next_due: dict[int, int | None] = {}
        number = len(self._tags)
        self._turn += 1
        shares = {(self._turn + place) % number: limit // number + (place < limit % number) for place in range(number)}
        while shares:
            asked = [
                self._calls.call("lease", self._tags[each], destination, share, now, until)
                for each, share in shares.items()
            ]
            more: list[int] = []
            for (each, share), (first, values) in zip(shares.items(), await asyncio.gather(*asked), strict=True):
                taken = _leases(values)
                leases += taken
                next_due[each] = int(float(first)) if first is not None else None
                if len(taken) == share:
                    more.append(each)
            left = limit - len(leases)
            due = [each for each in more if (at := next_due[each]) is not None and at <= now]
            shares = {each: min(left, math.ceil(left / len(due))) for each in due[:left]} if left > 0 else {}
        return leases[:limit], min((at for at in next_due.values() if at is not None), default=None)

    async def settle(self, settlements: Sequence[Settlement]) -> int:
        """Record what became of leased deliveries. Returns how many were still held by their lease."""
        by_partition: dict[int, list[Settlement]] = {}
        for each in settlements:
            by_partition.setdefault(each.lease.webhook % MAX_PARTITIONS, []).append(each)
        held = await asyncio.gather(
            *(
                self._calls.call("settle", self._tags[partition], len(those), *_settled(those))
                for partition, those in by_partition.items()
            )
        )
        return sum(held)

    async def take_turn(self, name: str, lasts: int) -> bool:
        """Take a name for that many ms, for all that share this store; False when somebody has it.

        Raises `StoreUnavailable`; the name may have been taken then.
        """
        key = self._tags[0] + b":turn:" + blake2b(name.encode(), digest_size=16).digest()
        try:
            return bool(await self._calls.client.set(key, b"", nx=True, px=lasts))
        except (failures.RedisError, failures.RedisClusterException, OSError, TimeoutError) as error:
            raise self._calls.unavailable(error) from error

    # Links

    async def link(self, parts: Sequence[LinkPart], now: int) -> frozenset[str]:
        """Store links and tell them to the webhooks that named these subjects and found no visitor.

        Returns the destinations that have work now. A newer direct link replaces any; a learned one replaces only an
        older one that was learned from the same subject, or one that has ended.
        """
        linked = _linked(parts)
        await asyncio.gather(*(self._write("link", key, those, now) for key, those in linked.items()))
        released: frozenset[str] = frozenset()
        heard: set[bytes] = set()
        tell = list(linked)
        while tell:
            heard.update(tell)
            lessons: dict[bytes, bytes] = {}
            for key, answers in zip(tell, await asyncio.gather(*(self._tell(each, now) for each in tell)), strict=True):
                for due, others in answers:
                    released |= _names(due)
                    lessons = {other: key for other in others if other not in heard} | lessons
            tell = (await self._teach(lessons, now))[: MAX_TOLD - len(heard)] if lessons else []
        return released

    async def resolve(self, keys: Sequence[bytes]) -> dict[bytes, list[LinkPart]]:
        """Return what is linked to each of the keys, in one round trip; also what has ended lately.

        Raises `StoreUnavailable`.
        """
        if not keys:
            return {}
        found: dict[bytes, list[LinkPart]] = {}
        for key, stored in zip(keys, await self._calls.get([self._link_key(key) for key in keys]), strict=True):
            # The server drops a link by its own clock; what a purge has let go is not shown until then.
            parts = [part for part in _parts(key, stored or b"") if part.expires_at > self._ended]
            if parts:
                found[key] = parts
        return found

    async def _any_linked(self, keys: Sequence[bytes], now: int) -> bool:
        found = await self.resolve(keys)
        return any(part.expires_at > now for parts in found.values() for part in parts)

    async def _tell(self, key: bytes, now: int) -> list[tuple[list[bytes], list[bytes]]]:
        return await self._everywhere("tell", now, MAX_TOLD, key)

    async def _teach(self, lessons: dict[bytes, bytes], now: int) -> list[bytes]:
        """Link each subject as its teacher is, if it is not linked. Returns those to whom that was news."""
        known = await self.resolve(list(dict.fromkeys(lessons.values())))
        taught = {
            key: [
                (part.part, _value(structs.replace(part, taught_by=part.taught_by or teacher)))
                for part in known.get(teacher, ())
                if part.expires_at > now
            ]
            for key, teacher in lessons.items()
        }
        news = await asyncio.gather(*(self._write("teach", key, parts, now) for key, parts in taught.items()))
        return [key for key, new in zip(taught, news, strict=True) if new]

    async def _write(self, function: str, key: bytes, parts: Sequence[tuple[str, bytes]], now: int) -> int:
        values = [value for part in parts for value in part]
        written: int = await self._calls.call(function, self._link_key(key), now, EXPIRED_FOR, len(parts), *values)
        return written

    # What people may ask about their data

    async def ask(self, request: DataRequest, now: int) -> int:
        """Write down what somebody asks about data, to be fulfilled. Returns its number."""
        tag = self._tag_of(request.source, request.account)
        number: int = await self._calls.call("ask", tag, *_request(request, now), durable=True)
        return number

    async def asked(self) -> list[OpenRequest]:
        """Return the requests about data that are to be fulfilled, the oldest first."""
        found: list[OpenRequest] = []
        for values in await self._everywhere("asked"):
            for number, (kind, source, account, asked_at, *keys) in zip(values[::2], values[1::2], strict=True):
                request = DataRequest(kind.decode(), source.decode(), account.decode(), tuple(keys))
                found.append(OpenRequest(number, int(asked_at), request))
        return sorted(found, key=lambda each: (each.asked_at, each.number))

    async def fulfilled(self, number: int, now: int, outcome: str) -> None:
        """Close a request about data. What it was about is erased with it; `outcome` stays, and names nobody."""
        await self._calls.call("fulfil", self._tag(number), number, now, outcome)

    async def naming(self, keys: Sequence[bytes], *, before: int | None = None, limit: int = 50) -> list[int]:
        """Return the numbers of webhooks that name one of these subjects, newest first."""
        if not keys:
            return []
        until = f"({before}" if before is not None else "+inf"
        found = await self._everywhere("naming", until, limit, *keys)
        return sorted((int(number) for numbers, _ in found for number in numbers), reverse=True)[:limit]

    async def forget(self, keys: Sequence[bytes]) -> Forgotten:
        """Erase these subjects: their links, the webhooks that name them, and what was made of those.

        The other subjects that only those webhooks name lose what they had learned: it is the same person's. A link
        that somebody made for them stays, or whoever names another in an order and is forgotten would take it away.
        Links go first, as after a crash the webhooks must still tell whose they are. Claims stay, so that nothing
        counts twice. A delivery that is being sent right now may still arrive.
        """
        if not keys:
            return Forgotten()
        total = Forgotten(links=await self._unlink(keys))
        for tag in self._tags:
            while True:
                webhooks, persons = await self._calls.call("naming", tag, "+inf", STEP, *keys)
                if not webhooks:
                    break
                others = await self._named_by_no_other(set(persons) - set(keys), webhooks)
                found = await self.resolve(others)
                learned = [key for key in others if all(part.taught_by is not None for part in found.get(key, ()))]
                total += await self._erase(tag, webhooks, learned)
        return total

    async def forget_account(self, source: str, account: str) -> Forgotten:
        """Erase all that came from one account of a source, as `forget` does, a step at a time."""
        total, tag, sequence = Forgotten(), self._tag_of(source, account), 1
        while sequence:
            sequence, webhooks, persons = await self._calls.call("of_account", tag, source, account, sequence, STEP)
            if webhooks:
                total += await self._erase(tag, webhooks, await self._named_by_no_other(persons, webhooks))
        return total

    async def _named_by_no_other(self, keys: Iterable[bytes], webhooks: Sequence[bytes]) -> list[bytes]:
        """Return those of the keys that no webhook names but these."""
        erased = {int(each) for each in webhooks}
        each_once = list(dict.fromkeys(keys))
        naming = await asyncio.gather(*(self.naming([key], limit=len(erased) + 1) for key in each_once))
        return [key for key, numbers in zip(each_once, naming, strict=True) if erased.issuperset(numbers)]

    async def _erase(self, tag: bytes, webhooks: Sequence[bytes], persons: Sequence[bytes]) -> Forgotten:
        links = await self._unlink(persons)
        bodies, pending = await self._calls.call("forget", tag, *webhooks)
        return Forgotten(links, bodies, pending)

    async def _unlink(self, keys: Iterable[bytes]) -> int:
        unlinked = (self._calls.call("unlink", self._link_key(key), self._ended) for key in dict.fromkeys(keys))
        return sum(await asyncio.gather(*unlinked))

    # Archive: what the console and the command line need

    async def webhooks(self, *, before: int | None = None, limit: int = 50) -> list[StoredWebhook]:
        """Return webhooks, newest first, without their bodies; `before` is the number to go on from.

        Of several partitions the order is that of their numbers, which is that of arrival only within each.
        """
        pages = await asyncio.gather(*(self._list(number, before, limit) for number in range(len(self._tags))))
        found = sorted((each for page in pages for each in page), key=lambda each: -each.webhook)
        return found[:limit]

    async def webhook(self, number: int) -> StoredWebhook | None:
        """Return one webhook with its sealed body, or None. The body is None when retention took it."""
        if number % MAX_PARTITIONS >= len(self._tags):
            return None
        row = await self._calls.call("webhook", self._tag(number), number)
        return _stored_webhook(row) if row else None

    async def find(self, id: str) -> list[int]:
        """Return the numbers of the webhooks that their sender calls `id`, newest first."""
        found, _ = await self.search(Wanted(id=id), limit=50)
        return [each.webhook.webhook for each in found]

    async def _list(self, partition: int, before: int | None, limit: int) -> list[StoredWebhook]:
        found: list[StoredWebhook] = []
        sequence = 0 if before is None else max(1, math.ceil((before - partition) / MAX_PARTITIONS))
        while len(found) < limit:
            left = limit - len(found)
            sequence, rows = await self._calls.call("list", self._tags[partition], sequence, left, 5 * STEP)
            found += [_stored_webhook(row) for row in rows]
            if not sequence:
                break
        return found

    async def deliveries(self, webhook: int) -> list[StoredDelivery]:
        """Return the deliveries of one webhook with their attempts."""
        if webhook % MAX_PARTITIONS >= len(self._tags):
            return []
        return [
            StoredDelivery(
                webhook=webhook,
                number=number,
                destination=destination.decode(),
                event=event,
                state=State(state),
                reason=reason.decode() or None,
                due_at=int(due_at),
                attempts=tuple(Attempt(*_ATTEMPT.decode(each)) for each in attempts),
            )
            for number, destination, event, state, reason, due_at, attempts in await self._calls.call(
                "deliveries", self._tag(webhook), webhook
            )
        ]

    async def search(
        self, wanted: Wanted, *, before: int | None = None, limit: int = 50
    ) -> tuple[list[FoundWebhook], int | None]:
        """Return webhooks that fit, newest first, and the number to go on from (None: there are no more).

        A page that few fit may be short, or empty, and still not be the last.
        """
        pages = await asyncio.gather(*(self._search(tag, wanted, before, limit) for tag in self._tags))
        # What was not looked at in one partition may come before what was found in another.
        floor = max((to for _, to in pages if to is not None), default=None)
        found = sorted((each for page, _ in pages for each in page), key=lambda each: -each.webhook.webhook)
        told = [each for each in found if floor is None or each.webhook.webhook >= floor]
        if len(told) > limit:
            return told[:limit], told[limit - 1].webhook.webhook
        return told, floor

    async def _search(
        self, tag: bytes, wanted: Wanted, before: int | None, limit: int
    ) -> tuple[list[FoundWebhook], int | None]:
        """Search one partition. Also returns the number up to which it was looked at, None for all of it."""
        stuck = next(iter(wanted.states)) if len(wanted.states) == 1 else 0
        since = max(0, wanted.since - SLACK)
        until = wanted.until + SLACK if wanted.until < NEVER else NEVER
        which: list[Argument] = [since, until, wanted.id or "", wanted.source or "", wanted.type or "", int(stuck)]
        which += wanted.subjects
        found: list[FoundWebhook] = []
        on = before if before is not None else NEVER
        looked_at, step = 0, limit + 1  # one more tells whether there are more
        while looked_at < SCAN:
            step = min(step, SCAN_STEP)
            on, rows = await self._calls.call("search", tag, on, step, *which)
            for row, flat in rows:
                states = {State(state): number for state, number in zip(flat[::2], flat[1::2], strict=True)}
                each = FoundWebhook(_stored_webhook(row), states)
                if not wanted.fits(each.webhook, states):
                    continue
                if len(found) == limit:
                    return found, found[-1].webhook.webhook
                found.append(each)
            if not on:
                return found, None
            looked_at, step = looked_at + step, SCAN_STEP
        return found, on

    async def search_deliveries(
        self, wanted: WantedDeliveries, *, before: Place | None = None, limit: int = 50
    ) -> tuple[list[FoundDelivery], Place | None]:
        """Return deliveries that fit, those of the newest webhooks first, and where to go on, as `search` does."""
        which = (*_wanted(wanted), *(int(state) for state in wanted.states))
        # One more than asked for, as it tells whether there are more.
        asked = (*(before or (0, 0)), limit + 1, SCAN)
        pages = await self._everywhere("list_deliveries", *asked, *which)
        floor = max(((to, at) for to, at, _ in pages if to), default=None)
        found = sorted((_found_delivery(row) for _, _, rows in pages for row in rows), key=_place, reverse=True)
        told = [each for each in found if floor is None or _place(each) >= floor]
        if len(told) > limit:
            return told[:limit], _place(told[limit - 1])
        return told, floor

    async def dead(self) -> list[DeadGroup]:
        """Return what is dead, by destination and reason."""
        groups: dict[tuple[str, str], DeadGroup] = {}
        for page in await self._everywhere("dead"):
            for destination, reason, number, oldest, newest in page:
                one = DeadGroup(destination.decode(), reason.decode(), number, oldest, newest)
                other = groups.get((one.destination, one.reason), one)
                groups[one.destination, one.reason] = DeadGroup(
                    one.destination,
                    one.reason,
                    number + (other.number if other is not one else 0),
                    min(oldest, other.oldest),
                    max(newest, other.newest),
                )
        return [groups[key] for key in sorted(groups)]

    async def retry(self, webhook: int, number: int, now: int) -> str | None:
        """Let a dead or parked delivery start again. Returns its destination, None when it is in no such state."""
        if webhook % MAX_PARTITIONS >= len(self._tags):
            return None
        destination = await self._calls.call("retry", self._tag(webhook), webhook, number, now)
        return destination.decode() if destination else None

    async def retry_dead(self, wanted: WantedDeliveries, now: int, *, before: Place | None, limit: int) -> Revived:
        """Let dead deliveries of a destination, or that died for a reason, start again, a step at a time.

        Of several partitions each is gone through by itself, the last first: the place says which.
        """
        partition = before[0] % MAX_PARTITIONS if before else len(self._tags) - 1
        done, due, webhook, number = await self._calls.call(
            "retry_dead", self._tags[partition], *(before or (0, 0)), limit, SCAN, *_wanted(wanted), now
        )
        if webhook:
            return Revived(done, _names(due), (webhook, number))
        return Revived(done, _names(due), (ABOVE + partition - 1, 0) if partition else None)

    async def accounted(self, since: int, until: int) -> AsyncIterator[Accounted]:
        """Yield what became of each webhook that came in that time (`until` apart), the first that came first."""
        for tag in self._tags:
            sequence = 1
            while sequence:
                sequence, rows = await self._calls.call(
                    "accounted", tag, sequence, STEP, since, until, max(0, since - SLACK), until + SLACK
                )
                for row in rows:
                    yield _accounted(row)

    async def counts(self) -> dict[str, Counts]:
        """Count deliveries by destination from their states."""
        found: dict[str, dict[int, int]] = {}
        for fields in await asyncio.gather(*(self._calls.fields(tag + b":counts") for tag in self._tags)):
            for field, number in fields.items():
                state, _, destination = field.decode().partition(":")
                states = found.setdefault(destination, {})
                at = State.DUE if state == "pending" else int(state)
                states[at] = states.get(at, 0) + int(number)
        return {destination: Counts.of(states) for destination, states in found.items()}

    async def backlog(self, now: int) -> dict[str, Backlog]:
        """Return how much waits for each destination that anything waits for. Costs the same however much that is.

        Of a lane only who is next counts as due; the others wait for it.
        """
        found: dict[str, Backlog] = {}
        for answer in await self._everywhere("backlog", now):
            for name, due, pending, first in answer:
                here = Backlog(due, max(0, pending - due), int(float(first)) if first else None)
                found[name.decode()] = _both(found.get(name.decode()), here)
        return found

    async def purge(self, now: int, retention: int) -> int:
        """Erase what is older than `retention` ms, a step at a time. Returns how many webhooks lost their bodies."""
        purged = 0
        for tag in self._tags:
            looked_at = 1
            while looked_at:
                looked_at, bodies = await self._calls.call(
                    "purge", tag, now - retention, now - max(retention, CLAIMS_FOR), STEP, now - CLAIMS_FOR
                )
                purged += bodies
        self._ended = max(self._ended, now - EXPIRED_FOR)
        await self._calls.call("end_links", self._tags[0], self._ended)
        return purged

    async def follow(self, wake: Callable[[frozenset[str]], None]) -> None:
        """Tell of work that other processes put here, until cancelled. What is missed is found by looking again."""
        channels = [tag + b":due" for tag in self._tags]
        while True:
            try:
                async with self._calls.client.pubsub() as listener:
                    await listener.subscribe(*channels)
                    while not _is_cancelled():
                        message = await listener.get_message(ignore_subscribe_messages=True, timeout=1.0)
                        if message is not None:
                            wake(_names(message["data"].split(b"\n")))
            except (failures.RedisError, failures.RedisClusterException, OSError, TimeoutError):
                await asyncio.sleep(0.0 if _is_cancelled() else 1.0)
            if _is_cancelled():
                raise asyncio.CancelledError

    # Moving to another store: `gateway.moving` reads all of one, and has the other adopt it

    async def extent(self) -> int:
        """Return how many webhooks, payments, linked subjects and told states there are to be copied."""
        number: int = sum(await self._everywhere("extent"))
        async for keys in self._linked_keys():
            number += len(keys)
        return number

    async def copied(self) -> AsyncIterator[CopiedWebhook]:
        """Yield all webhooks, the first that came first; of one partition in the order of their numbers."""
        arrivals = [self._arrivals(tag) for tag in self._tags]
        firsts = [await anext(each, None) for each in arrivals]
        heads = [(*first, place) for place, first in enumerate(firsts) if first is not None]
        heapify(heads)
        while heads:
            page: list[int] = []
            while heads and len(page) < COPY_WEBHOOKS:
                _, number, place = heads[0]
                page.append(number)
                if (following := await anext(arrivals[place], None)) is None:
                    heappop(heads)
                else:
                    heapreplace(heads, (*following, place))
            rows = await asyncio.gather(*(self._calls.call("copied", self._tag(each), each) for each in page))
            for row in rows:
                if row is not None:
                    yield _copied(row)

    async def _arrivals(self, tag: bytes) -> AsyncIterator[tuple[int, int]]:
        """Yield when each webhook of a partition came, and its number."""
        sequence = 1
        while sequence:
            sequence, found = await self._calls.call("arrivals", tag, sequence, STEP)
            for came_at, number in found:
                yield came_at, number

    async def copied_payments(self) -> AsyncIterator[CopiedPayment]:
        """Yield all payments, of each partition the oldest first."""
        for tag in self._tags:
            sequence = 1
            while sequence:
                sequence, found = await self._calls.call("copied_payments", tag, sequence, STEP)
                for webhook, source, account, keys, claims in found:
                    made = tuple(_copied_claim(each) for each in claims)
                    yield CopiedPayment(webhook, source.decode(), account.decode(), tuple(keys), made)

    async def copied_links(self) -> AsyncIterator[list[LinkPart]]:
        """Yield the parts of all links, subject by subject; while others link, some may come twice."""
        async for keys in self._linked_keys():
            for parts in (await self.resolve(keys)).values():
                yield parts

    async def _linked_keys(self) -> AsyncIterator[list[bytes]]:
        before, after = self._link_key(b"")[:-1], b"}"
        try:
            for node in await self._calls.primaries():
                cursor: Any = 0
                while True:
                    cursor, keys = await node("SCAN", cursor, "MATCH", before + b"*" + after, "COUNT", 5 * STEP)
                    yield [key[len(before) : -len(after)] for key in keys]
                    if isinstance(cursor, dict):  # the cluster's client says whose it is
                        (cursor,) = cursor.values()
                    if not int(cursor):
                        break
        except (failures.RedisError, failures.RedisClusterException, OSError, TimeoutError) as error:
            raise self._calls.unavailable(error) from error

    async def copied_told(self) -> AsyncIterator[tuple[bytes, int]]:
        """Yield the objects whose state was told, and as of when; of several partitions some may come twice."""
        for tag in self._tags:
            first = 0
            while found := await self._calls.call("told", tag, first, first + STEP - 1):
                for key, at in zip(found[::2], found[1::2], strict=True):
                    yield key, int(at)
                first += STEP

    async def adopt(self, copied: CopiedWebhook) -> bool:
        """Store another store's webhook as it is there, unless it is here already. Returns whether it was news."""
        tag = self._tag_of(copied.came.source, copied.came.account)
        arguments = (self._fingerprint, *_acceptance(copied.came), *_adopted(copied.deliveries))
        answer = await self._calls.ask("adopt", tag, *arguments, durable=True)
        return bool(answer.value) or answer.again

    async def adopt_payment(self, copied: CopiedPayment, now: int) -> None:
        """Make what was one payment there one here, with its claims; of two under one name the surer one stays.

        The webhooks that it speaks of must have been adopted.
        """
        tag = self._tag_of(copied.source, copied.account)
        await self._calls.call("adopt_payment", tag, now, *_payment(copied), durable=True)

    async def adopt_told(self, told: Sequence[tuple[bytes, int]]) -> None:
        """Note which states were told there: in all partitions, as nothing tells whose object it is."""
        values = [value for each in told for value in each]
        await asyncio.gather(*(self._calls.call("adopt_told", tag, *values, durable=True) for tag in self._tags))

    async def adopt_request(self, copied: OpenRequest) -> None:
        """Write down what was asked about data there, unless it is or was written down here."""
        tag = self._tag_of(copied.request.source, copied.request.account)
        await self._calls.call("adopt_request", tag, *_request(copied.request, copied.asked_at), durable=True)

    # Health

    async def probe(self) -> str | None:
        """Say why the store cannot take writes, or None when it just took one."""
        try:
            await self._everywhere("touch")
        except StoreUnavailable as error:
            return str(error)
        return None

    async def warnings(self) -> list[str]:
        """Say what may lose data or hold up work some day, one sentence each. Raises `StoreUnavailable`."""
        found: list[str] = []
        try:
            for node in await self._calls.primaries():
                settings = await _settings(node)
                info = _info(await node("INFO", "everything"))
                told = _doubts(settings, info, watched=self._address.topology in {"sentinel", "cluster"})
                seconds, micros = await node("TIME")
                skew = int(seconds) + int(micros) / 1_000_000 - time.time()
                if abs(skew) > MAX_SKEW:
                    told.append(f"its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's")
                found += [f"Redis: {node.name}{each}" for each in told]
        except (failures.RedisError, failures.RedisClusterException, OSError, TimeoutError) as error:
            raise self._calls.unavailable(error) from error
        return found

    async def _check_version(self, *, wait_aof: bool) -> None:
        for node in await self._calls.primaries():
            try:
                info = _info(await node("INFO", "server"))
            except failures.NoPermissionError:
                continue  # an old server will not know the functions either
            version = info.get("redis_version", "")
            found = tuple(int(each) for each in version.split(".")[:2] if each.isdecimal())
            if found < OLDEST:
                raise StoreMismatch(f"{self._address} is Redis {version}: the gateway needs 7.0 or later, or Valkey")
            if wait_aof and found < (7, 2):
                raise StoreMismatch(f"{self._address} is Redis {version}: to wait for its disk it must be 7.2 or later")

    async def _take_partitions(self) -> None:
        meta = await self._calls.fields(self._tags[0] + b":meta")
        if b"partitions" not in meta:
            raise StoreMismatch(f"there is no store at {self._address}")
        self._tags = [b"{%b.%d}" % (self._prefix, number) for number in range(int(meta[b"partitions"]))]

    async def _check_owner(self, partitions: int) -> None:
        for stored, placed, schema, ended in await self._everywhere("open", self._fingerprint, partitions, SCHEMA):
            if int(schema) > SCHEMA:
                raise StoreMismatch(
                    f"the store has schema {int(schema)}, this gateway knows up to {SCHEMA}: "
                    "run the newer gateway again"
                )
            if stored != self._fingerprint:
                raise StoreMismatch(
                    f"{self._address} was written under another GATEWAY_SECRET_KEY. Set the key it was written under, "
                    "or choose another GATEWAY_STORE."
                )
            if int(placed) != partitions:
                raise StoreMismatch(
                    f"{self._address} was written with GATEWAY_PARTITIONS={int(placed)}, and webhooks are looked for "
                    f"where they were put: set it to {int(placed)} again."
                )
            self._ended = max(self._ended, int(ended or 0))

    async def _everywhere(self, function: str, *arguments: Argument) -> list[Any]:
        """Call a function on every partition."""
        return await asyncio.gather(*(self._calls.call(function, tag, *arguments) for tag in self._tags))

    def _tag_of(self, source: str, account: str) -> bytes:
        if len(self._tags) == 1:
            return self._tags[0]
        digest = blake2b(f"{source}\0{account}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return self._tags[int.from_bytes(digest, "big") % len(self._tags)]

    def _tag(self, webhook: int) -> bytes:
        return self._tags[webhook % MAX_PARTITIONS]

    def _link_key(self, key: bytes) -> bytes:
        return b"{%b:%b}" % (self._prefix, key)


# what goes to the functions, and what comes back


def _acceptance(new: Acceptance) -> Iterable[Argument]:
    yield from (new.key, new.source, new.account, new.type, new.id)
    yield from (new.occurred_at, new.received_at, int(new.test), new.mapping, new.notes)
    yield from (int(new.sealed is not None), new.sealed or b"", int(new.unlinked), int(new.teaches))
    yield len(new.subjects)
    yield from new.subjects
    yield len(new.bare_claims)
    for claim in new.bare_claims:
        yield len(claim.keys)
        yield from claim.keys
    yield len(new.events)
    for event in new.events:
        yield from _event(event)
    if new.request is not None:
        yield from _request(new.request, new.received_at)


def _event(event: NewEvent) -> Iterable[Argument]:
    claim = event.claim
    keys = claim.keys if claim else ()
    yield from (event.id, event.sealed, event.at, event.state_of or b"", len(keys))
    yield from keys
    yield claim.name or "" if claim else ""
    yield claim.hold if claim else 0
    yield claim.order or b"" if claim else b""
    yield len(event.deliveries)
    for each in event.deliveries:
        yield from (each.destination, each.skip or "", each.wait_until, int(each.late), each.lane or b"")


def _request(request: DataRequest, now: int) -> Iterable[Argument]:
    yield from (request.kind, request.source, request.account, now)
    yield from request.keys


def _adopted(deliveries: Sequence[CopiedDelivery]) -> Iterable[Argument]:
    yield len(deliveries)
    for each in deliveries:
        yield from (each.number, each.event, each.destination, int(each.state), each.reason or "", each.due_at)
        yield from (each.held_until, each.first_try_at, each.late, each.at, each.lane or b"")
        yield from (int(each.rendered is not None), each.rendered or b"", len(each.attempts))
        for attempt in each.attempts:
            yield _encode((attempt.at, attempt.took, attempt.status, attempt.outcome, attempt.response))


def _payment(copied: CopiedPayment) -> Iterable[Argument]:
    yield from (copied.webhook, len(copied.keys))
    yield from copied.keys
    yield len(copied.claims)
    for each in copied.claims:
        yield from (each.name, each.event_id, each.webhook)
        yield from (each.event, each.held_until, each.hold, each.order or b"")


def _wanted(wanted: WantedDeliveries) -> tuple[Argument, ...]:
    return wanted.destination or "", int(wanted.reason is not None), wanted.reason or ""


def _place(delivery: FoundDelivery) -> Place:
    return delivery.webhook, delivery.number


def _found_delivery(row: Sequence[Any]) -> FoundDelivery:
    webhook, number, destination, event, state, reason, due_at, attempts, source, type, id = row
    return FoundDelivery(
        webhook=webhook,
        number=number,
        destination=destination.decode(),
        event=event,
        state=State(state),
        reason=reason.decode() or None,
        due_at=int(due_at),
        attempts=attempts,
        source=source.decode(),
        type=type.decode(),
        id=id.decode(),
    )


def _accounted(row: Sequence[Any]) -> Accounted:
    webhook, source, notes, events, deliveries = row
    return Accounted(
        webhook,
        source.decode(),
        notes,
        dict(zip(events[::2], events[1::2], strict=True)),
        tuple((event, name.decode(), State(state), why.decode() or None) for event, name, state, why in deliveries),
    )


def _leases(values: Sequence[Any]) -> list[Lease]:
    leases: list[Lease] = []
    for at in range(0, len(values), 8):
        webhook, number, fence, attempts, first_try_at, event, rendered, late = values[at : at + 8]
        leases.append(Lease(webhook, number, fence, attempts, first_try_at, event, rendered, bool(late)))
    return leases


def _settled(settlements: Iterable[Settlement]) -> Iterable[Argument]:
    for each in settlements:
        lease, attempt = each.lease, each.attempt
        attempts, first_try_at, tried = lease.attempts, lease.first_try_at, b""
        if attempt is not None:
            attempts, first_try_at = attempts + 1, first_try_at or attempt.at
            tried = _encode((attempt.at, attempt.took, attempt.status, attempt.outcome, attempt.response))
        yield from (lease.webhook, lease.number, lease.fence, lease.event[-16:])
        yield from (int(each.state), each.reason or "", each.due_at, attempts, first_try_at)
        yield from (int(each.rendered is not None), each.rendered or b"", int(attempt is not None), tried)


def _linked(parts: Iterable[LinkPart]) -> dict[bytes, list[tuple[str, bytes]]]:
    linked: dict[bytes, list[tuple[str, bytes]]] = {}
    for each in parts:
        linked.setdefault(each.key, []).append((each.part, _value(each)))
    return linked


def _value(part: LinkPart) -> bytes:
    taught = b"" if part.taught_by is None else part.taught_by
    length = 0 if part.taught_by is None else len(taught) + 1
    try:
        return _TIMES.pack(part.linked_at, part.expires_at, length) + taught + part.sealed
    except struct.error as error:
        raise OverflowError(f"a link's times are out of range: {error}") from None


def _parts(key: bytes, stored: bytes) -> Iterable[LinkPart]:
    at = 0
    while at < len(stored):
        named = at + 1 + stored[at]
        part = stored[at + 1 : named].decode()
        begin = named + _SIZE.size
        at = begin + _SIZE.unpack_from(stored, named)[0]
        linked_at, expires_at, length = _TIMES.unpack_from(stored, begin)
        begin += _TIMES.size
        sealed = begin + max(0, length - 1)
        yield LinkPart(key, part, stored[sealed:at], linked_at, expires_at, stored[begin:sealed] if length else None)


def _stored_webhook(row: Sequence[Any]) -> StoredWebhook:
    number, source, account, type, id, occurred_at, received_at, test, mapping, notes, sealed = row
    return StoredWebhook(
        webhook=number,
        source=source.decode(),
        account=account.decode(),
        type=type.decode(),
        id=id.decode(),
        occurred_at=occurred_at,
        received_at=received_at,
        test=bool(test),
        mapping=mapping.decode(),
        notes=notes,
        sealed=sealed,
    )


def _copied(row: Sequence[Any]) -> CopiedWebhook:
    key, source, account, type, id, occurred_at, received_at, test, mapping, notes, sealed, *rest = row
    waits, teaches, subjects, events, deliveries = rest
    came = Acceptance(
        key=key,
        source=source.decode(),
        account=account.decode(),
        type=type.decode(),
        id=id.decode(),
        occurred_at=occurred_at,
        received_at=received_at,
        test=bool(test),
        mapping=mapping.decode(),
        sealed=sealed,
        notes=notes,
        events=tuple(NewEvent(event_id, event, ()) for event_id, event in events),
        subjects=tuple(subjects),
        unlinked=bool(waits),
        teaches=bool(teaches),
    )
    return CopiedWebhook(came, tuple(_copied_delivery(*each) for each in deliveries))


def _copied_delivery(
    number: int,
    event: int,
    destination: bytes,
    state: int,
    reason: bytes,
    due_at: bytes,
    held_until: int,
    first_try_at: int,
    late: int,
    at: int,
    lane: bytes | None,
    rendered: bytes | None,
    attempts: Iterable[bytes],
) -> CopiedDelivery:
    return CopiedDelivery(
        number=number,
        event=event,
        destination=destination.decode(),
        state=State(state),
        reason=reason.decode() or None,
        due_at=int(due_at),
        held_until=held_until,
        first_try_at=first_try_at,
        late=late,
        at=at,
        lane=lane,
        rendered=rendered,
        attempts=tuple(Attempt(*_ATTEMPT.decode(each)) for each in attempts),
    )


def _copied_claim(row: Sequence[Any]) -> CopiedClaim:
    name, event_id, webhook, event, held_until, hold, order = row
    return CopiedClaim(name.decode(), event_id, webhook, event, held_until, hold, order or None)


def _is_cancelled() -> bool:
    """Whether this task was told to end: redis-py may answer a cancellation with an error of its own, or a message."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _names(found: Iterable[bytes]) -> frozenset[str]:
    return frozenset(each.decode() for each in found)


def _both(one: Backlog | None, other: Backlog) -> Backlog:
    if one is None:
        return other
    oldest = min((at for at in (one.oldest_due_at, other.oldest_due_at) if at is not None), default=None)
    return Backlog(one.due + other.due, one.waiting + other.waiting, oldest)


# what a server says of itself


def _info(answer: Any) -> dict[str, str]:
    if isinstance(answer, dict):
        return {str(name): str(value) for name, value in answer.items()}
    lines = bytes(answer).decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


async def _settings(node: Callable[..., Any]) -> dict[str, str]:
    names = ("appendonly", "appendfsync", "save", "maxmemory-policy", "maxmemory", "min-replicas-to-write")
    try:
        answer = await node("CONFIG", "GET", *names)
    except failures.ResponseError:
        return {}  # a managed service may keep them to itself
    if isinstance(answer, dict):
        return {_text(name): _text(value) for name, value in answer.items()}
    return {_text(name): _text(value) for name, value in zip(answer[::2], answer[1::2], strict=True)}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _doubts(settings: dict[str, str], info: dict[str, str], *, watched: bool) -> list[str]:
    """Return what is set so that it may lose data. `watched`: a failover may come."""
    found: list[str] = []
    if not settings:
        found.append("it does not show its settings (CONFIG GET): see yourself that it persists and never evicts")
    appends = settings.get("appendonly", info.get("aof_enabled", "")) in {"yes", "1"}
    if not appends and settings.get("save") == "":
        found.append("it keeps nothing on disk: a restart loses everything. Set appendonly yes")
    elif not appends:
        found.append("it writes no append-only file: a crash loses all since its last snapshot. Set appendonly yes")
    elif settings.get("appendfsync") == "no":
        found.append("appendfsync is no: a crash of its machine loses up to half a minute. Set everysec or always")
    policy = settings.get("maxmemory-policy", info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        found.append(f"maxmemory-policy is {policy}: when full it drops what was accepted. Set noeviction")
    replicas = int(info.get("connected_slaves", "0"))
    wanted = int(settings.get("min-replicas-to-write", "0"))
    if replicas < wanted:
        found.append(f"{replicas} replicas follow it, and it refuses writes below {wanted}")
    elif watched and not replicas:
        found.append("no replica follows it: a failover has nowhere to go")
    elif watched and not wanted and settings:
        found.append("min-replicas-to-write is 0: a primary that is cut off takes what a failover then loses. Set 1")
    return found
