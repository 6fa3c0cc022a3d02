"""Links: which visitor a payment belongs to. Resolve what is known, and learn from what resolves.

A subject's link is kept in parts, one per analytics product (`""` for ids that no product claims, `@click` for click
ids), so that two pages that each know another product add up, and the newer word on each wins.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct, msgpack, structs

from gateway.deliveries import LinkPart
from gateway.events import ProductIds, Unlinked, Visitor
from gateway.sealing import Sealer

LINKS_FOR = 400 * 86_400_000
"""How long a link lasts since it was made or last used, in ms."""
REFRESH_AFTER = 30 * 86_400_000
"""How long a link is used before that is written down, in ms."""
CARRIED = b""
"""Who taught what a payload carried: no subject, so nothing renews it but a link."""

CLICK_IDS = "@click"

_IDS = msgpack.Decoder(ProductIds)
_CLICKS = msgpack.Decoder(dict[str, str])


class Links(Protocol):
    """What is needed of a store to keep links."""

    async def link(self, parts: Sequence[LinkPart], now: int) -> frozenset[str]:
        """Store links and tell who waits for them; return the destinations that have work now."""
        ...

    async def resolve(self, keys: Sequence[bytes]) -> dict[bytes, list[LinkPart]]:
        """Return what is linked to each of the keys, in one round trip; also what has ended lately."""
        ...


class Resolution(Struct, frozen=True):
    """The visitor that subjects lead to, or why there is none; and the links to be stored for it."""

    visitor: Visitor | None = None
    unlinked: Unlinked | None = None
    learned: tuple[LinkPart, ...] = ()


def seal_visitor(
    visitor: Visitor, keys: Sequence[bytes], at: int, sealer: Sealer, *, taught_by: bytes | None = None
) -> list[LinkPart]:
    """Return a visitor as the link parts of each of these subjects, made at `at` (ms)."""
    parts = {product: msgpack.encode(ids) for product, ids in visitor.ids.items()}
    if visitor.click_ids:
        parts[CLICK_IDS] = msgpack.encode(visitor.click_ids)
    sealed = {part: sealer.seal(plain, b"link") for part, plain in parts.items()}
    return [LinkPart(key, part, value, at, at + LINKS_FOR, taught_by) for key in keys for part, value in sealed.items()]


def resolve(
    subjects: Mapping[str, bytes],
    carried: Visitor | None,
    found: Mapping[bytes, Sequence[LinkPart]],
    sealer: Sealer,
    now: int,
) -> Resolution:
    """Return the visitor of these subjects, the most trusted first, and what the others learn of it.

    `carried` are ids that the payload itself brought: the page put them there, so they go before any link. `found`
    is what the store knows of the subjects' keys.
    """
    current = {key: live for key, parts in found.items() if (live := [part for part in parts if part.expires_at > now])}
    by = next((name for name, key in subjects.items() if key in current), None)
    if by is None and carried is None:
        if not subjects:
            return Resolution(unlinked="no_subject")
        return Resolution(unlinked="expired" if found else "unknown_subject")
    if by is None:
        assert carried is not None  # noqa: S101 -- the other case has returned
        return Resolution(carried, learned=tuple(_taught(carried, subjects, current, sealer, now)))
    parts = current[subjects[by]]
    linked = _visitor(parts, by, sealer)
    lessons = [*_refreshed(parts, now), *_lessons(subjects, subjects[by], current, now)]
    if carried is None:
        return Resolution(linked, learned=tuple(lessons))
    lessons = [lesson for lesson in lessons if lesson.part not in carried.ids]
    return Resolution(_merge(carried, linked), learned=(*lessons, *_taught(carried, subjects, current, sealer, now)))


def _refreshed(parts: Sequence[LinkPart], now: int) -> list[LinkPart]:
    """Let a link that is used last longer: once in a while, as to say so costs a write."""
    return [
        structs.replace(part, expires_at=now + LINKS_FOR)
        for part in parts
        if part.expires_at < now + LINKS_FOR - REFRESH_AFTER
    ]


def _lessons(
    subjects: Mapping[str, bytes], teacher: bytes, current: Mapping[bytes, Sequence[LinkPart]], now: int
) -> list[LinkPart]:
    """Copy the parts that led to the visitor to the subjects that are not linked, or that it taught something older.

    A copy bears the time of the link that it goes back to, so that learning never looks newer than what it learned
    from, and the subject that was linked: only that one may renew it. An order that names somebody else's email
    address cannot lead that person elsewhere, nor can a name of one's own that learned of them, once it is linked anew.
    """
    parts = current[teacher]
    newest = max(part.linked_at for part in parts)
    roots = {part.taught_by or teacher for part in parts}
    lessons: list[LinkPart] = []
    for key in subjects.values():
        known = current.get(key, ())
        if not known or (
            {part.taught_by for part in known} == roots and all(part.linked_at < newest for part in known)
        ):
            ends = now + LINKS_FOR
            lessons += [
                LinkPart(key, each.part, each.sealed, each.linked_at, ends, each.taught_by or teacher) for each in parts
            ]
    return lessons


def _taught(
    carried: Visitor,
    subjects: Mapping[str, bytes],
    current: Mapping[bytes, Sequence[LinkPart]],
    sealer: Sealer,
    now: int,
) -> list[LinkPart]:
    """Link the subjects that nobody knows to the visitor that the payload carries."""
    unknown = [key for key in subjects.values() if key not in current]
    return seal_visitor(carried, unknown, now, sealer, taught_by=CARRIED) if unknown else []


class KnownLink(Struct, frozen=True):
    """One part of a subject's link, to be looked at. `learned` from another subject; times are in ms."""

    product: str
    visitor_id: str | None
    session_id: str | None
    click_ids: dict[str, str]
    learned: bool
    linked_at: int
    expires_at: int


def known(part: LinkPart, sealer: Sealer) -> KnownLink:
    """Open a part of a link."""
    visitor = _visitor([part], None, sealer)
    ids = visitor.ids.get(part.part, ProductIds())
    return KnownLink(
        product=part.part,
        visitor_id=ids.visitor_id,
        session_id=ids.session_id,
        click_ids=visitor.click_ids,
        learned=part.taught_by is not None,
        linked_at=part.linked_at,
        expires_at=part.expires_at,
    )


def _visitor(parts: Sequence[LinkPart], by: str | None, sealer: Sealer) -> Visitor:
    ids: dict[str, ProductIds] = {}
    clicks: dict[str, str] = {}
    for part in parts:
        plain = sealer.open(part.sealed, b"link")
        if part.part == CLICK_IDS:
            clicks = _CLICKS.decode(plain)
        else:
            ids[part.part] = _IDS.decode(plain)
    return Visitor(ids, clicks, linked_by=by, linked_at=max(part.linked_at for part in parts))


def _merge(carried: Visitor, linked: Visitor) -> Visitor:
    """Let the payload's own ids go before the linked ones, product by product."""
    ids = dict(linked.ids)
    for product, own in carried.ids.items():
        known = linked.ids.get(product)
        # The session belongs to the visitor that it was linked with, and to no other.
        session = known.session_id if known and known.visitor_id == own.visitor_id else None
        ids[product] = ProductIds(own.visitor_id, session)
    return Visitor(ids, linked.click_ids, linked_by=linked.linked_by, linked_at=linked.linked_at)
