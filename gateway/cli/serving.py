"""The commands that run a gateway, and look after its store."""

import asyncio
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import rich_click as click

from gateway.cli.inputs import current_settings
from gateway.cli.outputs import fail

if TYPE_CHECKING:
    from gateway.sealing import Secret


@click.command()
@click.option("--once", is_flag=True, help="Exit when the story is told: 0 if all went as expected, else 1.")
@click.option("--port", default=0, help="Port of the demo's gateway; any free one by default.")
def demo(once: bool, port: int) -> None:
    """Show the whole way on this machine: link a visitor, pay, and see what the collectors get."""
    from rich.console import Console

    from gateway.demo import run
    from gateway.telemetry import configure_logs

    configure_logs(json=False, quiet=True)
    sys.exit(0 if run(port, once=once, console=Console(highlight=False)) else 1)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=8080, show_default=True)
@click.option("--reload", "watch", is_flag=True, help="Put edits of the mappings in force as they are saved.")
@click.option("--no-deliver", is_flag=True, help="Only take webhooks and links in; `gateway deliver` delivers.")
def serve(host: str, port: int, watch: bool, no_deliver: bool) -> None:
    """Run the gateway. Everything else is set in the environment; see the README's table.

    SIGHUP has the mappings read again; a broken edit changes nothing.
    """
    _serve(host, port, watch=watch, deliver=not no_deliver)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=8081, show_default=True, help="Port of /livez, /readyz and /metrics.")
@click.option("--reload", "watch", is_flag=True, help="Put edits of the mappings in force as they are saved.")
def deliver(host: str, port: int, watch: bool) -> None:
    """Only deliver what other gateways took in, over a Redis that they share. Run as many as you like."""
    if current_settings().embedded:
        fail("error: an embedded store is one process's own: set GATEWAY_STORE to a Redis, or run `gateway serve`", 2)
    _serve(host, port, watch=watch, receive=False)


async def _match(settings: Any) -> None:
    """Raise `StoreMismatch` for a shared store that is not this gateway's; one that is away now is waited for later."""
    from gateway.deliveries import StoreUnavailable
    from gateway.sealing import Sealer
    from gateway.store.opening import open_store

    if not settings.embedded:
        with suppress(StoreUnavailable):
            store = await open_store(settings, Sealer(settings.master_key()))
            await store.close()


def _serve(host: str, port: int, *, watch: bool, receive: bool = True, deliver: bool = True) -> None:
    from gateway.app import create_app
    from gateway.deliveries import StoreMismatch
    from gateway.documents import MappingErrors
    from gateway.server import server
    from gateway.settings import SettingsError
    from gateway.telemetry import configure_logs

    settings = current_settings()
    configure_logs(json=not sys.stderr.isatty())
    try:
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        app = create_app(settings, receive=receive, deliver=deliver, watch=watch, address=address)
        asyncio.run(_match(settings))
    except MappingErrors as errors:
        fail(str(errors))
    except (SettingsError, StoreMismatch) as error:
        fail(f"error: {error}", 2)
    # uvicorn raises the signal again after its clean stop; a stop that was asked for is no failure.
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, lambda *_: None)
    signal.signal(signal.SIGHUP, lambda *_: app.state.mappings.ask())
    # A COMMIT's thread waits this long at most for the loop's to give way; by default 5 ms, and nobody gets an answer.
    sys.setswitchinterval(0.0005)
    server(app, host, port, settings.trusted_proxies).run()


@click.command()
@click.option("--alert", is_flag=True, help="Only send a test message to GATEWAY_ALERT_WEBHOOK.")
def doctor(alert: bool) -> None:
    """Say what is wrong with the settings, the mappings and the store, or may be some day. Exits 1 if something is."""
    from gateway.doctor import examine

    settings = current_settings()
    if alert:
        _try_alert(settings.alert_webhook)
        return
    findings = asyncio.run(examine(settings))
    for each in findings:
        click.echo(f"{'ok' if each.well else '!!'}    {each.about}: {each.told}")
    sys.exit(0 if all(each.well for each in findings) else 1)


def _try_alert(webhook: "Secret") -> None:
    import socket

    from gateway.alerts import try_out

    if not webhook:
        fail("error: GATEWAY_ALERT_WEBHOOK is not set: it is the https://… that your chat gives you", 2)
    if failure := asyncio.run(try_out(webhook, socket.gethostname())):
        fail(f"error: the message was not taken: {failure}")
    click.echo("sent: look whether it is there")


@click.group()
def store() -> None:
    """Look after the store."""


@store.command("copy")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def store_copy(source: str, target: str) -> None:
    """Copy links, webhooks, claims and deliveries: `gateway store copy sqlite:///data/gateway.db redis://…`.

    Stop the gateway first, and start none on the copy before it is whole. Safe to run again: what is there stays.
    """
    from rich.console import Console
    from rich.progress import Progress

    from gateway.deliveries import StoreMismatch, StoreUnavailable
    from gateway.moving import copy_store
    from gateway.settings import SettingsError

    settings = current_settings()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("copying", total=None)
        try:
            copied = asyncio.run(
                copy_store(
                    settings, source, target, lambda done, total: progress.update(task, completed=done, total=total)
                )
            )
        except (SettingsError, StoreMismatch, StoreUnavailable) as error:
            fail(f"error: {error}", 2)
    click.echo(
        f"copied {copied.webhooks} webhooks and {copied.links} links; {copied.known} webhooks were there already"
    )
