"""Links: which visitor a payment belongs to. Resolve what is known, and learn from what resolves.

A subject's link is kept in parts, one per analytics product (`""` for ids that no product claims, `@click` for click
ids), so that two pages that each know another product add up, and the newer word on each wins.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct, msgpack

from gateway.deliveries import LinkPart
from gateway.events import ProductIds, Visitor
from gateway.sealing import Sealer

LINKS_FOR = 400 * 86_400_000
"""How long a link is kept, in ms."""

CLICK_IDS = "@click"

_IDS = msgpack.Decoder(ProductIds)
_CLICKS = msgpack.Decoder(dict[str, str])


class Links(Protocol):
    """What is needed of a store to keep links."""

    async def link(self, parts: Sequence[LinkPart], expires_at: int, now: int) -> frozenset[str]:
        """Store links and release what waited for them; return the destinations that have work now."""
        ...

    async def resolve(self, keys: Sequence[bytes], now: int) -> dict[bytes, list[LinkPart]]:
        """Return what is linked to each of the keys, in one round trip."""
        ...

    async def forget(self, keys: Sequence[bytes]) -> int:
        """Erase the links of these subjects; return how many parts there were."""
        ...


class Resolution(Struct, frozen=True):
    """The visitor that subjects lead to, if any, and the links to be learned from it."""

    visitor: Visitor | None = None
    learned: tuple[LinkPart, ...] = ()


def seal_visitor(visitor: Visitor, keys: Sequence[bytes], at: int, sealer: Sealer, *, learned: bool) -> list[LinkPart]:
    """Return a visitor as the link parts of each of these subjects."""
    parts = {product: msgpack.encode(ids) for product, ids in visitor.ids.items()}
    if visitor.click_ids:
        parts[CLICK_IDS] = msgpack.encode(visitor.click_ids)
    sealed = {part: sealer.seal(plain, b"link") for part, plain in parts.items()}
    return [LinkPart(key, part, value, at, learned) for key in keys for part, value in sealed.items()]


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
    by = next((name for name, key in subjects.items() if key in found), None)
    linked = _visitor(found[subjects[by]], by, sealer) if by is not None else None
    if carried is None and linked is None:
        return Resolution()
    lessons = _lessons(subjects, found[subjects[by]], found) if by is not None else []
    if carried is None:
        return Resolution(linked, tuple(lessons))
    taught = seal_visitor(carried, [key for key in subjects.values() if key not in found], now, sealer, learned=True)
    lessons = [lesson for lesson in lessons if lesson.part not in carried.ids]
    return Resolution(_merge(carried, linked) if linked else carried, (*lessons, *taught))


def _lessons(
    subjects: Mapping[str, bytes], parts: Sequence[LinkPart], found: Mapping[bytes, Sequence[LinkPart]]
) -> list[LinkPart]:
    """Copy the parts that led to the visitor to the subjects that are not linked, or were taught something older.

    A copy bears the time of the browser's own link, so that learning never looks newer than what it learned from.
    """
    newest = max(part.linked_at for part in parts)
    lessons: list[LinkPart] = []
    for key in subjects.values():
        known = found.get(key)
        if known is None or (all(part.learned for part in known) and max(p.linked_at for p in known) < newest):
            lessons += [LinkPart(key, part.part, part.sealed, part.linked_at, learned=True) for part in parts]
    return lessons


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
