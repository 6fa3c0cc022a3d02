"""The commands about visitors and persons: links, tokens, and what is to be forgotten."""

import sys
import time

import rich_click as click

from gateway.cli.inputs import current_settings, stored_requests, subjects_of
from gateway.cli.outputs import fail, pretty
from gateway.clock import now_ms


@click.command("link-token")
@click.argument("user")
@click.option("--minutes", default=15, show_default=True, type=click.IntRange(1, 1440), help="How long it is good for.")
def link_token(user: str, minutes: int) -> None:
    """Print a token that lets a page link the visitor of USER."""
    from gateway.browser import make_token

    settings = current_settings()
    if not settings.link_secret:
        fail("error: GATEWAY_LINK_SECRET is not set; make one with `openssl rand -hex 32`", 2)
    click.echo(make_token(user, settings.link_secret, int(time.time()), minutes * 60))


@click.group()
def links() -> None:
    """Look at links: which browser visitor a subject belongs to."""


@links.command("show")
@click.argument("subjects", nargs=-1, required=True, metavar="NAME=VALUE…")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def links_show(subjects: tuple[str, ...], as_json: bool) -> None:
    """Show what subjects are linked to: `gateway links show user=42`. Exits 1 when one is not linked."""
    import msgspec
    from rich.console import Console
    from rich.table import Table

    from gateway.destinations import iso

    now, wanted = now_ms(), subjects_of(subjects)
    with stored_requests(current_settings()) as stored:
        found = stored.links(wanted)
    if as_json:
        click.echo(pretty(msgspec.json.encode(found)))
    for name, parts in () if as_json else found.items():
        if not parts:
            click.echo(f"{name}: nobody linked it, and no payload taught it")
            continue
        table = Table("product", "visitor", "session", "how", "since", "until", title=name, title_justify="left")
        for part in parts:
            clicks = " ".join(f"{kind}={id}" for kind, id in part.click_ids.items())
            until = iso(part.expires_at) + (" (ended)" if part.expires_at <= now else "")
            how = "learned" if part.learned else "linked"
            product = "click ids" if clicks else part.product or "any"
            table.add_row(product, clicks or part.visitor_id, part.session_id, how, iso(part.linked_at), until)
        Console(highlight=False).print(table)
    sys.exit(0 if all(any(part.expires_at > now for part in parts) for parts in found.values()) else 1)


@click.command()
@click.option("--subject", "subjects", multiple=True, required=True, metavar="NAME=VALUE", help="May be repeated.")
def forget(subjects: tuple[str, ...]) -> None:
    """Erase all that is kept of a person: links, stored webhooks, and deliveries that have not gone out.

    `gateway forget --subject email=ada@example.com`. What collectors were sent before must be erased there.
    """
    from gateway.deliveries import StoreUnavailable
    from gateway.privacy import told
    from gateway.telemetry import configure_logs

    configure_logs(json=False, quiet=True)
    with stored_requests(current_settings()) as stored:
        try:
            click.echo(told(stored.forget(subjects_of(subjects, normal=False))))
        except (ValueError, StoreUnavailable) as error:
            fail(f"error: {error}")
