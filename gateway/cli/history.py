"""The commands that bring in the past: `gateway import` and `gateway reconcile`."""

import asyncio
import os
import re
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import rich_click as click

from gateway.cli.inputs import current_settings, expect_known
from gateway.cli.outputs import fail, print_table
from gateway.clock import now_ms

if TYPE_CHECKING:
    from gateway.history import Sum, Table
    from gateway.importing import Bookmark, Progress
    from gateway.reconcile import Provider, Reconciled
    from gateway.sealing import Secret
    from gateway.settings import Settings

INTERRUPTED = 130
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?")


def _quiet_settings() -> "Settings":
    from gateway.telemetry import configure_logs

    configure_logs(json=False, quiet=True)
    return current_settings()


def _run(work: Callable[[], Awaitable[None]], stopped: Callable[[], str]) -> None:
    """Run a command's work; when something ends it too early, say where it stands."""
    from gateway.deliveries import StoreMismatch, StoreUnavailable
    from gateway.documents import MappingErrors
    from gateway.reconcile import Unreconcilable
    from gateway.settings import SettingsError

    async def run() -> None:
        # The loop's own handler only cancels, which whoever waits for a line of stdin does not notice.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
        await work()

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        fail(f"stopped; {stopped()}", INTERRUPTED)
    except MappingErrors as errors:
        fail(str(errors))
    except (SettingsError, StoreMismatch) as error:
        fail(f"error: {error}", 2)
    except (StoreUnavailable, Unreconcilable) as error:
        fail(f"error: {error}; {stopped()}")


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show on stderr, if a person looks, how far long work has come. Yields what says how far, of `total`."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


# import


@click.command("import")
@click.argument("path", metavar="FILE.jsonl", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--source", help="The source of lines that are a sender's bare payload; by default each line says it.")
@click.option("--from-line", default=1, show_default=True, type=click.IntRange(1), help="Leave out the lines before.")
@click.option("--dry-run", is_flag=True, help="Print which events would come out, and change nothing.")
def import_command(path: str, source: str | None, from_line: int, dry_run: bool) -> None:
    """Take in exported webhooks, one a line: `gateway import --source stripe events.jsonl`, or - for stdin.

    A line is a bare payload, or {"source": "shopify", "headers": {…}, "body": {…}}. Signatures are not asked for. Safe
    to repeat, and beside a running gateway, which delivers what comes out. What was stopped goes on where it was.
    Exits 1 if a line is bad.
    """
    from gateway.importing import Bookmark, Progress

    settings = _quiet_settings()
    if path == "-":
        _import(sys.stdin.buffer, settings, source, Progress(), None, from_line, dry_run=dry_run)
        return
    with Path(path).open("rb") as file:
        if not file.seekable():  # a pipe is there once, and has no place to go on from
            _import(file, settings, source, Progress(), None, from_line, dry_run=dry_run)
            return
        bookmark = Bookmark.of(Path(path), file, settings.store, source or "")
        come = Progress() if dry_run or from_line > 1 else bookmark.load()
        if come.line:
            click.echo(f"going on after line {come.line}, up to which {bookmark.path} says that it is done", err=True)
        file.seek(come.offset)
        _import(file, settings, source, come, None if dry_run else bookmark, from_line, dry_run=dry_run)


def _import(
    file: IO[bytes],
    settings: "Settings",
    source: str | None,
    come: "Progress",
    bookmark: "Bookmark | None",
    from_line: int,
    *,
    dry_run: bool,
) -> None:
    from gateway.history import beside
    from gateway.importing import foresee, import_lines, skip
    from gateway.mappings import load_mappings

    told = _Told()

    async def work() -> None:
        skip(file, come, from_line, settings.max_body)
        size = os.fstat(file.fileno()).st_size if bookmark else None
        with _bar("importing", size) as advance:

            def step(come: "Progress") -> None:
                advance(come.offset)
                if bookmark:
                    bookmark.save(come)

            if dry_run:
                mappings = load_mappings(settings.mappings, settings.environment)
                _expect(source, mappings.sources)
                table = foresee(file, mappings, source, settings.max_body, come, now_ms(), tell=told, step=step)
                _tell_foreseen(table)
                return
            async with beside(settings) as gateway:
                _expect(source, gateway.mappings.sources)
                try:
                    await import_lines(file, gateway, source, settings.max_body, come, tell=told, step=step)
                finally:
                    step(come)
                if not gateway.mappings.destinations:
                    click.echo(
                        "no destination is on: what was imported is kept, and `gateway replay` delivers it", err=True
                    )

    _run(work, lambda: _goes_on(come, bookmark))
    if bookmark:
        bookmark.remove()
    what = f"{come.new} would be taken in" if dry_run else f"{come.new} new, {come.known} known before"
    click.echo(f"{come.line} line{'' if come.line == 1 else 's'}: {what}, {come.bad} bad")
    sys.exit(1 if come.bad else 0)


class _Told:
    """Tells the first bad lines one by one."""

    def __init__(self) -> None:
        self._number = 0

    def __call__(self, line: int, why: str) -> None:
        from gateway.importing import TOLD

        self._number += 1
        if self._number <= TOLD:
            click.echo(f"line {line}: {why}", err=True)
        elif self._number == TOLD + 1:
            click.echo("there are more bad lines: they are counted, and not told one by one", err=True)


def _goes_on(come: "Progress", bookmark: "Bookmark | None") -> str:
    if bookmark and bookmark.kept:
        return f"{come.line} lines are done, and the same command goes on after them"
    return f"{come.line} lines are done: go on with --from-line {come.line + 1}"


def _expect(source: str | None, known: Collection[str]) -> None:
    if source is not None:
        expect_known(source, known, "source")


def _tell_foreseen(table: "Table") -> None:
    rows = [
        (source, name, str(each.number), f"{each.amount:f} {currency}" if currency else "")
        for (source, name, currency), each in table.rows.items()
    ]
    print_table(("source", "event", "number", "value"), sorted(rows))


# reconcile


@click.group()
def reconcile() -> None:
    """Read a provider's own list, and take in what was missed: `gateway reconcile stripe --since 7d`."""


_SINCE = click.option("--since", default="7d", show_default=True, help="How far back: 7d, or a time; 30d at the most.")
_DRY = click.option(
    "--dry-run", is_flag=True, help="Print what the provider has and the gateway lacks; change nothing."
)


@reconcile.command("stripe")
@_SINCE
@_DRY
@click.option("--undelivered", is_flag=True, help="Read only events that Stripe says some endpoint has not taken.")
@click.option("--account", metavar="acct_…", help="A connected account, whose webhooks name it (Connect).")
def reconcile_stripe(since: str, dry_run: bool, undelivered: bool, account: str | None) -> None:
    """Take in what Stripe's list of events has and the gateway has not. Safe to repeat, and beside a running gateway.

    Needs STRIPE_API_KEY: a restricted key that may only read events is enough.
    """
    from gateway.reconcile import Courtesy
    from gateway.stripe_events import PER_SECOND, StripeEvents

    settings = _quiet_settings()
    key = _secret(settings, "STRIPE_API_KEY", "make a restricted key that may only read events, and set it")
    base = _base(settings, "STRIPE_API_BASE")

    def provider() -> StripeEvents:
        courtesy = Courtesy(PER_SECOND, now_ms, tell=partial(click.echo, err=True))
        return StripeEvents(key, courtesy, now_ms, account=account, undelivered=undelivered, base=base)

    _reconcile(settings, provider, since, dry_run=dry_run)


@reconcile.command("shopify")
@_SINCE
@_DRY
def reconcile_shopify(since: str, dry_run: bool) -> None:
    """Take in orders that were paid and that the gateway has not. Safe to repeat, and beside a running gateway.

    Needs SHOPIFY_SHOP (my-shop.myshopify.com) and SHOPIFY_ACCESS_TOKEN, of an app with the scope read_orders.
    """
    from gateway.reconcile import Courtesy
    from gateway.shopify_orders import PER_SECOND, SHOP, ShopifyOrders

    settings = _quiet_settings()
    shop = settings.environment("SHOPIFY_SHOP") or ""
    if SHOP.fullmatch(shop) is None:
        fail("error: SHOPIFY_SHOP is not set to a shop's own domain: write it as my-shop.myshopify.com", 2)
    token = _secret(
        settings, "SHOPIFY_ACCESS_TOKEN", "set the Admin API access token of an app with the scope read_orders"
    )
    base = _base(settings, "SHOPIFY_API_BASE")
    _reconcile(
        settings,
        lambda: ShopifyOrders(
            shop, token, Courtesy(PER_SECOND, now_ms, tell=partial(click.echo, err=True)), now_ms, base=base
        ),
        since,
        dry_run=dry_run,
    )


def _secret(settings: "Settings", name: str, hint: str) -> "Secret":
    from gateway.sealing import Secret
    from gateway.settings import SettingsError

    try:
        value = settings.environment(name)
    except SettingsError as error:
        fail(f"error: {error}", 2)
    if not value:
        fail(f"error: {name} is not set: {hint}", 2)
    return Secret(value)


def _base(settings: "Settings", name: str) -> str | None:
    """Return another address to ask, for trying things out: one that would read the secret on its way is refused."""
    base = settings.environment(name)
    if base and not base.startswith("https://") and _LOOPBACK.fullmatch(base.rstrip("/")) is None:
        fail(f"error: {name}: write an address with https://, or one of this machine", 2)
    return base.rstrip("/") if base else None


def _reconcile(settings: "Settings", made: "Callable[[], Provider]", since: str, *, dry_run: bool) -> None:
    from gateway.archive import Unclear, moment
    from gateway.destinations import iso
    from gateway.history import Table, beside
    from gateway.reconcile import LONGEST, Reconciled, reconcile

    until = now_ms()
    try:
        begin = moment(since, until)
    except (Unclear, ValueError) as error:
        fail(f"error: --since: {error}", 2)
    if not until - LONGEST <= begin < until:
        fail(f"error: --since {since}: write a time of the last 30 days; further back no list goes", 2)
    found = Reconciled(begin, begin, Table(), Table())

    async def work() -> None:
        provider = made()
        try:
            async with beside(settings) as gateway:
                expect_known(provider.source, gateway.mappings.sources, "source")
                with _bar(f"reading {provider.source}", until - begin) as advance:
                    await reconcile(
                        provider,
                        gateway,
                        begin,
                        until,
                        take=not dry_run,
                        found=found,
                        step=lambda found: advance(found.at - begin),
                    )
        finally:
            await provider.close()

    _run(work, lambda: f"{found.new} were taken in: go on with --since {iso(found.done)}")
    if dry_run:
        _tell_difference(found)
    else:
        click.echo(f"{found.new} missed and taken in, {found.known} known before")
    if found.refused:
        fail(f"error: {found.refused} cannot be read: check the `webhook:` block of the source's mapping")


def _tell_difference(found: "Reconciled") -> None:
    from gateway.history import Sum

    rows = []
    for key, theirs in sorted(found.theirs.rows.items()):
        source, type, currency = key
        ours = found.ours.rows.get(key, Sum())
        missing = Sum(theirs.number - ours.number, theirs.amount - ours.amount)
        rows.append((source, type, *(_sum(each, currency) for each in (theirs, ours, missing))))
    print_table(("source", "type", "provider has", "gateway has", "missing"), rows)
    total = sum(each.number for each in found.theirs.rows.values())
    click.echo(f"{found.known} of {total} are in the gateway, {total - found.known} are missing")


def _sum(each: "Sum", currency: str) -> str:
    return f"{each.number}: {each.amount:f} {currency}" if currency else str(each.number)
