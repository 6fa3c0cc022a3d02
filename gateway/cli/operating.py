"""The commands of operators: what came, what became of it, and to start it again. Twins of the API."""

import asyncio
from typing import Any

import rich_click as click

from gateway.cli.inputs import current_settings
from gateway.cli.outputs import echo_json, fail, indented, pretty, print_table, progress_bar

_STATES = ["waiting", "due", "leased", "parked", "sent", "skipped", "dead", "pending"]


@click.command()
@click.argument("webhook", required=False)
@click.option("--source", help="Only webhooks of this source.")
@click.option("--type", "type_", metavar="TYPE", help="Only webhooks of this type.")
@click.option("--since", metavar="WHEN", help="Only those that came since: 2026-10-26, or 2h for two hours ago.")
@click.option("--until", metavar="WHEN", help="Only those that came before.")
@click.option("--dead", is_flag=True, help="Only those with a dead delivery.")
@click.option("--dry-run", is_flag=True, help="Print what it would change, and change nothing.")
def replay(
    webhook: str | None,
    source: str | None,
    type_: str | None,
    since: str | None,
    until: str | None,
    dead: bool,
    dry_run: bool,
) -> None:
    """Translate stored webhooks again under the mappings in force: WEBHOOK (its sender's id, evt_…), or a selection.

    What was sent stays sent; what was skipped, failed or died starts again. A running gateway delivers it.
    """
    from gateway.archive import Archive, Refused

    if not (webhook or source or type_ or since or until or dead):
        fail("error: say which: a webhook's id, or --source, --type, --since, --until or --dead", 2)

    async def work(archive: Archive) -> tuple[int, int]:
        state: Any = "dead" if dead else None
        wanted = archive.wanted(id=webhook, source=source, type=type_, since=since, until=until, state=state)
        # All numbers first: a replay changes what is dead, and so which page comes next.
        numbers = [(each.webhook.webhook, each.webhook.id) async for each in archive.each(wanted)]
        done = refused = 0
        with progress_bar("replaying", len(numbers)) as advance:
            for number, id in numbers:
                try:
                    replayed = await (archive.rehearse(number) if dry_run else archive.replay(number))
                except Refused as error:
                    refused += 1
                    click.echo(f"{id}: {error}", err=True)
                else:
                    done += 1
                    _tell_difference(id, replayed.difference)
                advance(1)
        return done, refused

    done, refused = _archive(work)
    if not done and webhook:
        fail(f"error: there is no webhook {webhook} in the store, or retention has taken its body")
    many = f"{done} webhook{'' if done == 1 else 's'}"
    if dry_run:
        click.echo(f"{many} would be replayed; nothing was changed", err=True)
    else:
        click.echo(f"replayed {many}; a running gateway delivers what is due")
    if refused:
        fail(f"{refused} could not be replayed")


def _tell_difference(id: str, difference: Any) -> None:
    if difference is None or not (difference.events or difference.deliveries):
        return
    click.echo(id)
    for line in difference.events:
        click.echo(f"  {line}")
    for each in difference.deliveries:
        click.echo(f"  {each.event} for {each.destination}: {each.now} -> {each.then}")


@click.command()
@click.argument("number", required=False, type=click.IntRange(1, 1 << 52))
@click.option("--id", "id_", metavar="ID", help="What its sender calls it: evt_…")
@click.option("--source")
@click.option("--type", "type_", metavar="TYPE")
@click.option("--subject", metavar="NAME:VALUE", help="Whom it names, such as user:42.")
@click.option("--since", metavar="WHEN", help="2026-10-26, 2026-10-26T09:00:00Z, or 2h for two hours ago.")
@click.option("--until", metavar="WHEN")
@click.option("--state", type=click.Choice([*_STATES, "failed"]), help="A delivery is in it; failed: a rule failed.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1))
@click.option("--reveal", is_flag=True, help="With NUMBER: show the request as it came, personal data and all.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def webhooks(
    number: int | None,
    id_: str | None,
    source: str | None,
    type_: str | None,
    subject: str | None,
    since: str | None,
    until: str | None,
    state: Any,
    limit: int,
    reveal: bool,
    as_json: bool,
) -> None:
    """List stored webhooks, newest first; or show all that became of the one with this NUMBER."""
    from gateway.archive import Archive, WebhookLine, WebhookWay

    if number is not None:
        way: WebhookWay = _archive(lambda archive: archive.webhook(number, reveal=reveal))
        if as_json:
            echo_json(way)
        else:
            _tell_way(way)
        return

    async def work(archive: Archive) -> list[WebhookLine]:
        wanted = archive.wanted(
            id=id_, source=source, type=type_, subject=subject, since=since, until=until, state=state
        )
        found: list[WebhookLine] = []
        after: str | None = None
        while len(found) < limit:
            page = await archive.webhooks(wanted, after, limit - len(found))
            found += page.webhooks
            if (after := page.after) is None:
                break
        return found

    found = _archive(work)
    if as_json:
        echo_json(found)
        return
    rows = [
        (
            str(each.webhook),
            each.received_at,
            each.source,
            each.type,
            each.id,
            ", ".join(f"{count} {name}" for name, count in each.states.items()) + (" failed" if each.failed else ""),
        )
        for each in found
    ]
    print_table(("webhook", "came at", "source", "type", "id", "deliveries"), rows)


def _tell_way(way: Any) -> None:
    import msgspec

    click.echo(f"{way.source} {way.type} {way.id}, came {way.received_at}, mapping {way.mapping}")
    for note in way.notes:
        why = f"failed: {note.error}" if note.error else f"skipped: {note.skip}"
        click.echo(f"  rule `{note.rule or '*'}` {why}")
    for event in way.events:
        click.echo(f"  event {event['name']} {event['id']} at {event['at']}")
    for each in way.deliveries:
        click.echo(f"  {each.event} for {each.destination}: {each.state}{f': {each.reason}' if each.reason else ''}")
        for attempt in each.attempts:
            click.echo(f"    {attempt.at} {attempt.outcome} after {attempt.took} ms {attempt.response or ''}".rstrip())
    if way.request is not None:
        for name, value in way.request.headers.items():
            click.echo(f"  {name}: {value}")
        click.echo(indented(pretty(msgspec.json.encode(way.request.body)), "  "))


@click.command()
@click.option("--destination", "-d")
@click.option("--state", type=click.Choice(_STATES))
@click.option("--reason", help="Why it was skipped, parked or died.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def deliveries(destination: str | None, state: Any, reason: str | None, limit: int, as_json: bool) -> None:
    """List deliveries, those of the newest webhooks first."""
    found = _archive(lambda archive: _deliveries(archive, destination, state, reason, limit))
    if as_json:
        echo_json(found)
        return
    rows = [
        (
            f"{each.webhook} {each.number}",
            each.destination,
            each.event,
            each.state,
            each.reason or "",
            str(each.attempts),
            each.id,
        )
        for each in found
    ]
    print_table(("webhook, number", "destination", "event", "state", "reason", "tries", "id"), rows)


async def _deliveries(archive: Any, destination: str | None, state: Any, reason: str | None, limit: int) -> list[Any]:
    from gateway.archive import states_of
    from gateway.deliveries import WantedDeliveries

    wanted = WantedDeliveries(destination=destination, states=states_of(state), reason=reason)
    found: list[Any] = []
    after: str | None = None
    while len(found) < limit:
        page = await archive.deliveries(wanted, after, limit - len(found))
        found += page.deliveries
        if (after := page.after) is None:
            break
    return found


@click.group()
def dead() -> None:
    """Look at deliveries that no collector took, and start them again."""


@dead.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def dead_list(as_json: bool) -> None:
    """Count what is dead, by destination and reason."""
    found = _archive(lambda archive: archive.dead())
    if as_json:
        echo_json(found)
        return
    if not found.groups:
        click.echo("nothing is dead")
        return
    rows = [(each.destination, each.reason, str(each.number), str(each.newest)) for each in found.groups]
    print_table(("destination", "reason", "deliveries", "newest webhook"), rows)


@dead.command("retry")
@click.argument("webhook", required=False, type=click.IntRange(1, 1 << 52))
@click.argument("number", required=False, type=click.IntRange(0))
@click.option("--destination", "-d")
@click.option("--reason")
@click.option("--all", "all_", is_flag=True, help="All that is dead, whatever its destination and reason.")
def dead_retry(
    webhook: int | None, number: int | None, destination: str | None, reason: str | None, all_: bool
) -> None:
    """Start dead deliveries again: the one that `gateway deliveries` calls WEBHOOK NUMBER, a selection, or all.

    A running gateway delivers them.
    """
    from gateway.archive import Archive

    one = webhook is not None and number is not None
    if one + bool(destination or reason) + all_ != 1 or (webhook is not None and not one):
        fail("error: say which: WEBHOOK NUMBER, or --destination and --reason, or --all", 2)

    async def work(archive: Archive) -> int:
        if webhook is not None and number is not None:
            return (await archive.retry(webhook, number)).retried
        groups = (await archive.dead()).groups
        total = sum(
            each.number for each in groups if destination in {None, each.destination} and reason in {None, each.reason}
        )
        done, after = 0, None
        with progress_bar("retrying", total) as advance:
            while True:
                retried = await archive.retry_dead(destination, reason, after)
                done += retried.retried
                advance(retried.retried)
                if (after := retried.after) is None:
                    return done

    done = _archive(work)
    many = f"{done} deliver{'y' if done == 1 else 'ies'}"
    click.echo(f"{many} will be tried again by a running gateway" if done else "nothing of that is dead")


@dead.command("download")
@click.option("--destination", "-d")
@click.option("--reason")
def dead_download(destination: str | None, reason: str | None) -> None:
    """Print what is dead as JSON lines, personal data masked: `gateway dead download > dead.jsonl`."""
    import msgspec

    from gateway.archive import Archive

    async def work(archive: Archive) -> None:
        way: Any = None
        for each in await _deliveries(archive, destination, "dead", reason, 1 << 31):
            if way is None or way.webhook != each.webhook:  # the list goes webhook by webhook
                way = await archive.webhook(each.webhook)
            event = next((event for event in way.events if event["id"] == each.event_id), None)
            tries = [delivery.attempts for delivery in way.deliveries if delivery.number == each.number]
            line = {"delivery": each, "event": event, "attempts": tries[0] if tries else []}
            click.echo(msgspec.json.encode(line))

    _archive(work)


def _archive(work: Any) -> Any:
    """Run something over the archive of the store in the settings, beside a running gateway."""
    from gateway.archive import Missing, Refused, Unclear, opened
    from gateway.deliveries import StoreMismatch, StoreUnavailable
    from gateway.documents import MappingErrors
    from gateway.settings import SettingsError

    settings = current_settings()
    if settings.embedded and not settings.store_path.exists():
        fail(f"error: there is no store at {settings.store_path}: set GATEWAY_STORE to the gateway's", 2)

    async def run() -> Any:
        async with opened(settings) as archive:
            return await work(archive)

    try:
        return asyncio.run(run())
    except MappingErrors as errors:
        fail(str(errors))
    except (Missing, Refused) as error:
        fail(f"error: {error}")
    except (SettingsError, StoreMismatch, StoreUnavailable, Unclear) as error:
        fail(f"error: {error}", 2)
