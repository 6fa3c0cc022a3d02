"""What is wrong with a gateway's settings, mappings and store, and what to do about each."""

from msgspec import Struct

from gateway.deliveries import StoreMismatch, StoreUnavailable
from gateway.documents import MappingErrors
from gateway.mappings import load_mappings
from gateway.sealing import Sealer
from gateway.settings import Settings, SettingsError
from gateway.store.opening import open_store


class Finding(Struct, frozen=True):
    """One thing that was looked at."""

    about: str
    told: str
    well: bool = True


async def examine(settings: Settings) -> list[Finding]:
    """Look at everything that a gateway of these settings needs. Changes nothing."""
    return [*_mappings(settings), *_links(settings), *await _store(settings)]


def _mappings(settings: Settings) -> list[Finding]:
    try:
        mappings = load_mappings(settings.mappings, settings.environment)
    except MappingErrors as errors:
        first, number = errors.diagnostics[0], len(errors.diagnostics)
        told = f"{number} mistake{'s' if number > 1 else ''}; `gateway check` shows more of it: {first}"
        return [Finding("mappings", told, well=False)]
    except SettingsError as error:
        return [Finding("mappings", str(error), well=False)]
    verified = [name for name, source in mappings.sources.items() if source.verification.keys]
    on = list(mappings.destinations)
    return [
        Finding("mappings", f"{settings.mappings} is in order"),
        Finding("sources", f"with a secret: {', '.join(verified)}")
        if verified
        else Finding(
            "sources", "none has a secret, so every webhook is refused: set one, as STRIPE_WEBHOOK_SECRET", well=False
        ),
        Finding("destinations", f"on: {', '.join(on)}")
        if on
        else Finding("destinations", "none is on: `gateway check` says which settings turn one on", well=False),
    ]


def _links(settings: Settings) -> list[Finding]:
    if settings.link_secret:
        pages = ", ".join(settings.link_origins) or "no page"
        return [Finding("links", f"backends may link with the secret; {pages} may call /link")]
    return [Finding("links", "GATEWAY_LINK_SECRET is not set: only unguessable ids can be linked, no user")]


async def _store(settings: Settings) -> list[Finding]:
    if settings.embedded and not settings.store_path.exists():
        return [Finding("store", f"there is none yet at {settings.store_path}: the first `gateway serve` makes it")]
    try:
        store = await open_store(settings, Sealer(settings.master_key()), exclusive=False)
    except (SettingsError, StoreMismatch, StoreUnavailable) as error:
        return [Finding("store", str(error), well=False)]
    try:
        problem = await store.probe()
        findings = [Finding("store", problem or f"{settings.store_shown} takes writes", well=problem is None)]
        findings += [Finding("store", each, well=False) for each in await store.warnings()]
        for name, counts in sorted((await store.counts()).items()):
            told = f"{counts.sent} sent, {counts.pending} pending, {counts.dead} dead, {counts.skipped} skipped"
            findings.append(Finding(f"deliveries to {name}", told, well=not counts.dead))
    except StoreUnavailable as error:
        return [Finding("store", str(error), well=False)]
    else:
        return findings
    finally:
        await store.close()
