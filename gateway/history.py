"""What `import` and `reconcile` share: the intake of a store beside a running gateway, and what they count.

Both pass webhooks of the past through the one way in. A webhook that the store knows is a duplicate there, and a
payment that was reported before is claimed there, so whatever is read here may be read again: nothing counts twice.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal

from msgspec import Struct

from gateway.clock import now_ms
from gateway.events import Webhook
from gateway.intake import Intake
from gateway.mappings import Mappings, load_mappings
from gateway.money import Money
from gateway.sealing import Sealer
from gateway.settings import Settings
from gateway.store.opening import Store, open_store
from gateway.translate import Translation

MAX_ROWS = 500
"""Rows that a table tells apart; types come from outside, and those beyond share the last one."""
_OTHERS = ("(others)", "", "")


class Beside(Struct, frozen=True):
    """A gateway's intake and store, opened by a command beside it."""

    intake: Intake
    store: Store
    sealer: Sealer
    mappings: Mappings

    async def has(self, webhook: Webhook) -> bool:
        """Tell whether the store knows this webhook: same source, account, type and id."""
        for number in await self.store.find(webhook.id):
            stored = await self.store.webhook(number)
            if stored and (stored.source, stored.account, stored.type) == (
                webhook.source,
                webhook.account,
                webhook.type,
            ):
                return True
        return False


@asynccontextmanager
async def beside(settings: Settings) -> AsyncIterator[Beside]:
    """Open the store of the settings, beside the gateway that serves it if one does.

    Raises `MappingErrors`, `SettingsError`, `StoreMismatch` and `StoreUnavailable`.
    """
    mappings = load_mappings(settings.mappings, settings.environment)
    sealer = Sealer(settings.master_key())
    store = await open_store(settings, sealer, exclusive=False)
    forward_tests = settings.test_events == "forward"
    # Nobody to wake: the gateway that serves this store looks for work of others by itself.
    intake = Intake(store, sealer, lambda: mappings, now_ms, lambda _: None, forward_tests=forward_tests)
    try:
        yield Beside(intake, store, sealer, mappings)
    finally:
        await store.close()


class Sum(Struct):
    """So many, and what they come to, exactly."""

    number: int = 0
    amount: Decimal = Decimal()

    def add(self, amount: Decimal) -> None:
        """Count one more."""
        self.number += 1
        self.amount += amount


class Table(Struct):
    """Sums by a key of three texts, in bounded memory."""

    rows: dict[tuple[str, str, str], Sum] = {}

    def add(self, key: tuple[str, str, str], amount: Decimal) -> None:
        """Count one more under its key."""
        if key not in self.rows and len(self.rows) >= MAX_ROWS:
            key = _OTHERS
        self.rows.setdefault(key, Sum()).add(amount)


def worth(translation: Translation) -> tuple[str, Decimal]:
    """Return the currency and the amount of what a webhook says: its first event's `total`, else `value`; else none."""
    for emission in translation.emissions:
        for name in ("total", "value"):
            match emission.event.properties.get(name):
                case Money(amount=amount, currency=currency):
                    return currency, amount
    return "", Decimal()
