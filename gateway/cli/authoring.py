"""The commands for who edits mappings."""

import asyncio
import re
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import rich_click as click

from gateway.cli.inputs import (
    body_of,
    checked,
    current_settings,
    expect_known,
    headers_of,
    mappings_of,
    mappings_to_look_at,
    stored_requests,
)
from gateway.cli.outputs import fail, indented, pretty
from gateway.clock import now_ms


@click.command()
@click.argument("path", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="json for editors and CI.")
@click.option("--setup", metavar="SOURCE", help="Print how this source's sender is set up, with the command for it.")
@click.option("--url", default="https://YOUR-GATEWAY", show_default=True, help="Where the gateway is, for --setup.")
def check(path: Path | None, form: str, setup: str | None, url: str) -> None:
    """Check the mappings in PATH (by default those in force) and say what is on, and what is missing for the rest.

    Exits 1 on a mistake. Besides what keeps a mapping from being used it tells what is most likely not meant: a bare
    word that no sample has, money divided by hand, rules that shadow each other.
    """
    import msgspec

    from gateway import checking

    settings = current_settings()
    folder = path or settings.mappings
    found = checking.mistakes(folder, settings.environment)
    if form == "json":
        click.echo(pretty(msgspec.json.encode([checking.finding(each) for each in found])))
    elif found:
        click.echo("\n".join(map(checking.pictured, found)), err=True)
        click.echo(f"{len(found)} mistake{'s' if len(found) > 1 else ''} in {folder}", err=True)
    if found:
        sys.exit(1)
    if form == "text":
        mappings = mappings_of(folder, settings.environment)
        if setup is not None:
            expect_known(setup, mappings.sources, "source")
            for line in checking.setup(mappings.sources[setup], f"{url.rstrip('/')}/webhooks/{setup}"):
                click.echo(line)
        else:
            _tell_state(mappings, settings.environment)


def _tell_state(mappings: Any, environment: Any) -> None:
    width = max(map(len, (*mappings.sources, *mappings.destinations, *mappings.off)))
    for source in mappings.sources.values():
        names = ", ".join(_names(source.spec.verify.secrets)) or "`verify.secrets`"
        state = "ready" if source.verification.keys else f"off, every webhook gets 401: set {names}"
        click.echo(f"source       {source.name:<{width}} {len(source.rules):>3} rules  {source.version}  {state}")
        if source.verification.keys:
            for type, why in source.spec.setup.required.items():
                click.echo(f"             must send {type}: {why}")
            click.echo(f"             `gateway check --setup {source.name}` says how it is subscribed")
    for destination in (*mappings.destinations.values(), *mappings.off.values()):
        missing = [name for name in destination.enabled_by if not environment(name)]
        state = f"off: set {', '.join(missing)}" if missing else "on"
        click.echo(f"destination  {destination.name:<{width}}            {destination.version}  {state}")


def _names(text: str) -> list[str]:
    """Return the settings that a text of a mapping names."""
    return re.findall(r"\$\{(\w+)", text)


@click.command()
@click.argument("source", required=False)
@click.argument("file", required=False)
@click.option("--header", "-H", multiple=True, metavar="NAME=VALUE", help="A request header; may be repeated.")
@click.option("--destination", "-d", help="Print the requests that would go out to this destination instead.")
@click.option("--mappings", "path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--diff",
    "old",
    metavar="OLD_DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Print what these mappings make differently from those in OLD_DIR: of FILE, or of stored webhooks.",
)
@click.option("--limit", default=1000, show_default=True, help="Stored webhooks that --diff looks at, newest first.")
def translate(
    source: str | None,
    file: str | None,
    header: tuple[str, ...],
    destination: str | None,
    path: Path | None,
    old: Path | None,
    limit: int,
) -> None:
    """Print what a mapping makes of FILE (a JSON body, or the name of a bundled sample). Nothing is sent or stored."""
    settings = current_settings()
    mappings = mappings_to_look_at(path or settings.mappings, settings)
    if source is not None:
        expect_known(source, mappings.sources, "source")
    if old is not None:
        _tell_changes(settings, mappings_to_look_at(old, settings), mappings, source, file, header, limit)
        return
    if source is None or file is None:
        fail("error: say what to translate: gateway translate SOURCE FILE", 2)
    body, headers = body_of(source, file, path)
    translation = _translated(mappings, source, headers | headers_of(header), body, file)
    for note in translation.notes:
        what = f"failed: {note.error}" if note.error and not note.skip else f"skipped: {note.skip} {note.error or ''}"
        click.echo(f"rule `{note.rule or '*'}` {what}".rstrip(), err=True)
    if destination is None:
        _tell_events(translation)
    else:
        _tell_requests(translation, {**mappings.destinations, **mappings.off}, destination)
    if any(note.error and not note.skip for note in translation.notes):
        sys.exit(1)


def _translated(mappings: Any, source: str, headers: dict[str, str], body: bytes, name: str) -> Any:
    from gateway.dry_run import events_of
    from gateway.sources import MalformedWebhook

    try:
        return events_of(mappings, source, headers, body, now_ms())
    except MalformedWebhook as error:
        fail(f"error: {name}: {error}")


def _tell_events(translation: Any) -> None:
    import msgspec

    from gateway.dry_run import shown

    for emission in translation.emissions:
        click.echo(pretty(msgspec.json.Encoder(decimal_format="number").encode(shown(emission.event))))
    if translation.request is not None:
        click.echo(f"asks about data: {translation.request.kind}")


def _tell_requests(translation: Any, destinations: Any, destination: str) -> None:
    from gateway.dry_run import requests_of

    expect_known(destination, destinations, "destination")
    for request in requests_of(translation, destinations[destination]):
        click.echo(request)


def _tell_changes(
    settings: Any, old: Any, new: Any, source: str | None, file: str | None, header: tuple[str, ...], limit: int
) -> None:
    from gateway.dry_run import changes, events_of
    from gateway.sources import MalformedWebhook

    looked_at = differing = 0
    if alone := sorted(old.sources.keys() ^ new.sources.keys()):
        click.echo(f"only in one of the two: {', '.join(alone)}", err=True)
    for name, origin, headers, body in _bodies(settings, source, file, header, limit):
        if origin not in new.sources or origin not in old.sources:
            continue
        looked_at += 1
        try:
            told = list(changes(*(events_of(each, origin, headers, body, now_ms()) for each in (old, new))))
        except MalformedWebhook as error:
            told = [f"refused by one of the two: {error}"]
        if told:
            differing += 1
            click.echo("\n".join([f"{origin} {name}", *told]))
    click.echo(f"{differing} of {looked_at} webhooks differ", err=True)


def _bodies(settings: Any, source: str | None, file: str | None, header: tuple[str, ...], limit: int) -> Iterator[Any]:
    """Yield name, source, headers and body of one file, or of what is stored."""
    if source is not None and file is not None:
        body, headers = body_of(source, file)
        yield file, source, headers | headers_of(header), body
        return
    with stored_requests(settings) as store:
        for webhook, kept in store.newest(limit):
            if source in (None, webhook.source):
                yield f"{webhook.type} {webhook.id}", webhook.source, kept.headers, kept.body


@click.command("explain")
@click.argument("what", metavar="WEBHOOK_ID | SOURCE")
@click.argument("file", required=False)
@click.option("--header", "-H", multiple=True, metavar="NAME=VALUE", help="A request header; may be repeated.")
@click.option("--mappings", "path", type=click.Path(exists=True, file_okay=False, path_type=Path))
def explain_command(what: str, file: str | None, header: tuple[str, ...], path: Path | None) -> None:
    """Explain one webhook: which rules matched, what each expression gave, which subject resolved, what was skipped.

    Of a stored webhook by its sender's id (gateway explain evt_…), or of SOURCE and a FILE or sample.
    """
    from gateway.explain import explain, lines

    settings = current_settings()
    mappings = mappings_to_look_at(path or settings.mappings, settings)
    if file is not None:
        expect_known(what, mappings.sources, "source")
        body, headers = body_of(what, file, path)
        headers |= headers_of(header)
        told = explain(mappings.sources[what], headers, body, mappings.profiles, lambda _: {}, now_ms())
        click.echo("\n".join(lines(told)))
        sys.exit(1 if told.steps[-1].name == "refused" else 0)
    found = 0
    with stored_requests(settings) as store:
        for webhook, kept in store.called(what):
            found += 1
            expect_known(webhook.source, mappings.sources, "source")
            source = mappings.sources[webhook.source]
            came, profiles = webhook.received_at, mappings.profiles
            told = explain(source, kept.headers, kept.body, profiles, store.linked, came, kept.fetched)
            click.echo("\n".join(lines(told)))
            _tell_deliveries(store.deliveries(webhook.webhook))
    if not found:
        fail(f"error: there is no webhook {what} in the store, or retention has taken its body")


def _tell_deliveries(deliveries: Any) -> None:
    click.echo("what became of it, as stored")
    for each in deliveries:
        tries = f", {len(each.attempts)} {'try' if len(each.attempts) == 1 else 'tries'}" if each.attempts else ""
        click.echo(f"  {each.destination}: {each.state.name.lower()}{f': {each.reason}' if each.reason else ''}{tries}")
    if not deliveries:
        click.echo("  no delivery: no rule made an event, or no destination was on (then `gateway replay` it)")


@click.command()
@click.argument("path", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("-k", "word", metavar="TEXT", help="Only tests whose file or name has this text in it.")
@click.option("--update", is_flag=True, help="Rewrite the expectations of failing tests as they came out.")
def test(path: Path | None, word: str | None, update: bool) -> None:
    """Run the tests beside the mappings in PATH (a mappings folder, or one file of tests).

    Says which rules no test reaches. Exits 1 if a test fails.
    """
    from gateway.mapping_tests import load_tests, rewritten, run_test

    settings = current_settings()
    folder, only = (path, None) if path is None or (path / "sources").is_dir() else (_folder_of(path), path)
    folder = folder or settings.mappings
    mappings = mappings_to_look_at(folder, settings)
    tests = [each for each in checked(load_tests, folder, mappings, only) if not word or word in each.name]
    if not tests:
        fail(f"error: there is no test in {path or folder}" + (f" with `{word}` in its name" if word else ""), 2)
    failed: dict[str, list[Any]] = {}
    reached: dict[str, set[str]] = {}
    for file, of_file in groupby(tests, key=lambda each: each.document.file):
        done = [(each, asyncio.run(run_test(each, mappings, folder))) for each in of_file]
        bad = [(each, result) for each, result in done if result.failures]
        name = Path(file).relative_to(folder) if Path(file).is_relative_to(folder) else file
        click.echo(f"{'FAIL' if bad else 'ok  '}  {name}  {len(done) - len(bad)} of {len(done)}")
        for each, result in bad:
            click.echo(f"  {each.spec.name}")
            for failure in result.failures:
                click.echo(indented(str(failure), "    "))
        if bad:
            failed[file] = bad
        for each, result in done:
            reached.setdefault(each.source, set()).update(result.reached)
    if only is None and word is None:
        _tell_unreached(mappings, reached)
    if update:
        _update(failed, rewritten)
    elif failed:
        sys.exit(1)


def _update(failed: dict[str, list[Any]], rewritten: Any) -> None:
    left = 0
    for file, bad in failed.items():
        ran = [(each, result) for each, result in bad if result.ran]
        left += len(bad) - len(ran)
        if ran:
            try:
                Path(file).write_text(rewritten(ran, Path(file).read_text()))
            except ValueError as error:
                fail(f"error: {file} is not rewritten: {error}")
            click.echo(f"updated {file}: look at the difference before you keep it")
    if left:
        fail(f"{left} that cannot be run as written {'are' if left > 1 else 'is'} left as it was")


def _folder_of(path: Path) -> Path:
    """Return the mappings folder that a file or a folder of tests belongs to."""
    found = next((parent for parent in path.resolve().parents if (parent / "sources").is_dir()), None)
    return found or fail(f"error: {path} is not inside a mappings folder (one with `sources/` in it)", 2)


def _tell_unreached(mappings: Any, reached: dict[str, set[str]]) -> None:
    for source in mappings.sources.values():
        idle = [rule.name for rule in source.rules if rule.name not in reached.get(source.name, ())]
        if idle:
            click.echo(f"no test reaches these rules of {source.name}: {', '.join(idle)}")


@click.command()
@click.argument("kind", type=click.Choice(["source", "destination", "tests"]), required=False)
@click.option("--write", "folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
def schema(kind: Any, folder: Path | None) -> None:
    """Print the JSON Schema of one KIND of file, or write all with --write: editors complete and check by it."""
    import msgspec

    from gateway.schema import schema as schema_of
    from gateway.schema import write_schemas

    if folder is not None:
        for file in write_schemas(folder):
            click.echo(file)
    elif kind is not None:
        click.echo(pretty(msgspec.json.encode(schema_of(kind))))
    else:
        fail("error: say which: gateway schema source|destination|tests, or --write DIR for all", 2)


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Write a copy of the bundled mappings to DIR, with samples, tests and schemas, to own and edit."""
    from gateway.mappings import copy_bundled

    try:
        copy_bundled(folder)
    except FileExistsError as error:
        fail(f"error: {error}", 2)
    click.echo(f"""{folder} is yours. Next:
  export GATEWAY_MAPPINGS={folder}
  gateway check       # every mistake, with its place
  gateway test        # the tests beside the mappings
  {folder}/README.md is the language's reference; delete the sources and destinations that you do not use""")


@click.command()
@click.argument("source")
@click.argument("file", required=False)
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="The gateway to post to.")
@click.option("--secret", help="The signing secret; by default the one that the source's settings name.")
@click.option("--header", "-H", multiple=True, metavar="NAME=VALUE", help="A request header; may be repeated.")
def send(source: str, file: str | None, url: str, secret: str | None, header: tuple[str, ...]) -> None:
    """Sign FILE (a JSON body, or the name of a bundled sample) and post it to a gateway.

    Without FILE it lists the samples.
    """
    import httpx

    from gateway.mappings import minified, sample_headers, samples
    from gateway.signatures import SignatureError, sign

    settings = current_settings()
    mappings = mappings_to_look_at(settings.mappings, settings)
    expect_known(source, mappings.sources, "source")
    if file is None:
        click.echo("\n".join(samples(settings.mappings, source)) or f"there are no samples of {source}")
        return
    body, _ = body_of(source, file)
    body = minified(body)
    verification = _verification(mappings.sources[source].spec.verify, secret, settings.environment)
    try:
        signature = sign(verification, body, time.time(), f"msg_{time.time_ns()}")
    except SignatureError:
        names = ", ".join(_names(mappings.sources[source].spec.verify.secrets))
        fail(f"error: no secret to sign with: give --secret, or set {names or f'`verify.secrets` of {source}'}", 2)
    known = sample_headers(settings.mappings, source, Path(file).name, body, time.time())
    headers = known | signature | headers_of(header)
    try:
        answer = httpx.post(f"{url.rstrip('/')}/webhooks/{source}", content=body, headers=headers, timeout=30)
    except httpx.HTTPError as error:
        fail(f"error: {url} does not answer ({error}); is `gateway serve` running there?")
    click.echo(f"{answer.status_code} {answer.text}")
    sys.exit(0 if answer.is_success else 1)


def _verification(spec: Any, secret: str | None, environment: Any) -> Any:
    """Return how one source verifies, whatever the settings of the others are."""
    from msgspec import structs

    from gateway.documents import substitute
    from gateway.signatures import compile_verification

    secrets = secret or substitute(spec.secrets, environment)
    url = substitute(spec.url, environment) if spec.url else None
    try:
        return compile_verification(structs.replace(spec, secrets=secrets, url=url))
    except ValueError as error:
        fail(f"error: {error}", 2)
