"""The `gateway` command. Results go to stdout, everything else to stderr.

Exit codes: 0 all is well, 1 something is wrong with what was asked about, 2 the command itself was used wrongly.
"""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import rich_click as click

from gateway import __version__

click.rich_click.TEXT_MARKUP = "rich"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gateway")
def main() -> None:
    """Payment webhooks in; attributed, privacy-safe analytics events out."""


def _fail(message: str, code: int = 1) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)


def _settings() -> Any:
    from gateway.settings import SettingsError, load_settings

    try:
        return load_settings(os.environ)
    except SettingsError as error:
        _fail(f"error: these settings are not right:\n{error}", 2)


def _mappings(path: Path, variables: Any, senders: Any = None) -> Any:
    from gateway.checking import pictured
    from gateway.documents import MappingErrors
    from gateway.mappings import load_mappings
    from gateway.settings import SettingsError

    try:
        return load_mappings(path, variables, senders)
    except MappingErrors as errors:
        number = len(errors.diagnostics)
        told = "\n".join(map(pictured, errors.diagnostics))
        _fail(f"{told}\n{number} mistake{'s' if number > 1 else ''} in {path}")
    except SettingsError as error:
        _fail(f"error: {error}", 2)


@main.command()
@click.option("--once", is_flag=True, help="Exit when the story is told: 0 if all went as expected, else 1.")
@click.option("--port", default=0, help="Port of the demo's gateway; any free one by default.")
def demo(once: bool, port: int) -> None:
    """Show the whole way on this machine: link a visitor, pay, and see what the collectors get."""
    from rich.console import Console

    from gateway.demo import run
    from gateway.telemetry import configure_logs

    configure_logs(json=False, quiet=True)
    sys.exit(0 if run(port, once=once, console=Console(highlight=False)) else 1)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=8080, show_default=True)
@click.option("--reload", "watch", is_flag=True, help="Put edits of the mappings in force as they are saved.")
@click.option("--no-deliver", is_flag=True, help="Only take webhooks and links in; `gateway deliver` delivers.")
def serve(host: str, port: int, watch: bool, no_deliver: bool) -> None:
    """Run the gateway. Everything else is set in the environment; see the README's table.

    SIGHUP has the mappings read again; a broken edit changes nothing.
    """
    _serve(host, port, watch=watch, deliver=not no_deliver)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=8081, show_default=True, help="Port of /livez, /readyz and /metrics.")
@click.option("--reload", "watch", is_flag=True, help="Put edits of the mappings in force as they are saved.")
def deliver(host: str, port: int, watch: bool) -> None:
    """Only deliver what other gateways took in, over a Redis that they share. Run as many as you like."""
    if _settings().embedded:
        _fail("error: an embedded store is one process's own: set GATEWAY_STORE to a Redis, or run `gateway serve`", 2)
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

    settings = _settings()
    configure_logs(json=not sys.stderr.isatty())
    try:
        app = create_app(settings, receive=receive, deliver=deliver, watch=watch)
        asyncio.run(_match(settings))
    except MappingErrors as errors:
        _fail(str(errors))
    except (SettingsError, StoreMismatch) as error:
        _fail(f"error: {error}", 2)
    # uvicorn raises the signal again after its clean stop; a stop that was asked for is no failure.
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, lambda *_: None)
    signal.signal(signal.SIGHUP, lambda *_: app.state.mappings.ask())
    # A COMMIT's thread waits this long at most for the loop's to give way; by default 5 ms, and nobody gets an answer.
    sys.setswitchinterval(0.0005)
    server(app, host, port, settings.trusted_proxies).run()


@main.command()
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

    settings = _settings()
    folder = path or settings.mappings
    found = checking.mistakes(folder, settings.environment)
    if form == "json":
        click.echo(_pretty(msgspec.json.encode([checking.finding(each) for each in found])))
    elif found:
        click.echo("\n".join(map(checking.pictured, found)), err=True)
        click.echo(f"{len(found)} mistake{'s' if len(found) > 1 else ''} in {folder}", err=True)
    if found:
        sys.exit(1)
    if form == "text":
        mappings = _mappings(folder, settings.environment)
        if setup is not None:
            _known(setup, mappings.sources, "source")
            for line in checking.setup(mappings.sources[setup], f"{url.rstrip('/')}/webhooks/{setup}"):
                click.echo(line)
        else:
            _tell_state(mappings, settings.environment)


def _tell_state(mappings: Any, environment: Any) -> None:
    for source in mappings.sources.values():
        names = ", ".join(re.findall(r"\$\{(\w+)", source.spec.verify.secrets)) or "`verify.secrets`"
        state = "ready" if source.verification.keys else f"off, every webhook gets 401: set {names}"
        click.echo(f"source       {source.name:<12} {len(source.rules):>3} rules  {source.version}  {state}")
        if source.verification.keys:
            for type, why in source.spec.setup.required.items():
                click.echo(f"             must send {type}: {why}")
            click.echo(f"             `gateway check --setup {source.name}` says how it is subscribed")
    for destination in (*mappings.destinations.values(), *mappings.off.values()):
        missing = [name for name in destination.enabled_by if not environment(name)]
        state = f"off: set {', '.join(missing)}" if missing else "on"
        click.echo(f"destination  {destination.name:<12}            {destination.version}  {state}")


@main.command()
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
    settings = _settings()
    mappings = _dry(path or settings.mappings, settings)
    if source is not None:
        _known(source, mappings.sources, "source")
    if old is not None:
        _tell_changes(settings, _dry(old, settings), mappings, source, file, header, limit)
        return
    if source is None or file is None:
        _fail("error: say what to translate: gateway translate SOURCE FILE", 2)
    body, headers = _body(source, file, path)
    translation = _translated(mappings, source, headers | _pairs(header), body, file)
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
        return events_of(mappings, source, headers, body, _now())
    except MalformedWebhook as error:
        _fail(f"error: {name}: {error}")


def _tell_events(translation: Any) -> None:
    import msgspec

    from gateway.dry_run import shown

    for emission in translation.emissions:
        click.echo(_pretty(msgspec.json.Encoder(decimal_format="number").encode(shown(emission.event))))
    if translation.request is not None:
        click.echo(f"asks about data: {translation.request.kind}")


def _tell_requests(translation: Any, destinations: Any, destination: str) -> None:
    from gateway.dry_run import requests_of

    _known(destination, destinations, "destination")
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
            told = list(changes(*(events_of(each, origin, headers, body, _now()) for each in (old, new))))
        except MalformedWebhook as error:
            told = [f"refused by one of the two: {error}"]
        if told:
            differing += 1
            click.echo("\n".join([f"{origin} {name}", *told]))
    click.echo(f"{differing} of {looked_at} webhooks differ", err=True)


def _bodies(settings: Any, source: str | None, file: str | None, header: tuple[str, ...], limit: int) -> Iterator[Any]:
    """Yield name, source, headers and body of one file, or of what is stored."""
    if source is not None and file is not None:
        body, headers = _body(source, file)
        yield file, source, headers | _pairs(header), body
        return
    with _stored(settings) as store:
        for webhook, kept in store.newest(limit):
            if source in (None, webhook.source):
                yield f"{webhook.type} {webhook.id}", webhook.source, kept.headers, kept.body


def _stored(settings: Any) -> Any:
    from gateway.deliveries import StoreMismatch, StoreUnavailable
    from gateway.settings import SettingsError
    from gateway.stored import StoredRequests

    try:
        return StoredRequests(settings)
    except (SettingsError, StoreMismatch, StoreUnavailable) as error:
        _fail(f"error: {error}", 2)


@main.command("explain")
@click.argument("what", metavar="WEBHOOK_ID | SOURCE")
@click.argument("file", required=False)
@click.option("--header", "-H", multiple=True, metavar="NAME=VALUE", help="A request header; may be repeated.")
@click.option("--mappings", "path", type=click.Path(exists=True, file_okay=False, path_type=Path))
def explain_command(what: str, file: str | None, header: tuple[str, ...], path: Path | None) -> None:
    """Explain one webhook: which rules matched, what each expression gave, which subject resolved, what was skipped.

    Of a stored webhook by its sender's id (gateway explain evt_…), or of SOURCE and a FILE or sample.
    """
    from gateway.explain import explain, lines

    settings = _settings()
    mappings = _dry(path or settings.mappings, settings)
    if file is not None:
        _known(what, mappings.sources, "source")
        body, headers = _body(what, file, path)
        told = explain(mappings.sources[what], headers | _pairs(header), body, mappings.profiles, lambda _: {}, _now())
        click.echo("\n".join(lines(told)))
        sys.exit(1 if told.steps[-1].name == "refused" else 0)
    found = 0
    with _stored(settings) as store:
        for webhook, kept in store.called(what):
            found += 1
            _known(webhook.source, mappings.sources, "source")
            source = mappings.sources[webhook.source]
            told = explain(source, kept.headers, kept.body, mappings.profiles, store.linked, webhook.received_at)
            click.echo("\n".join(lines(told)))
            _tell_deliveries(store.deliveries(webhook.webhook))
    if not found:
        _fail(f"error: there is no webhook {what} in the store, or retention has taken its body")


@main.command()
@click.argument("path", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("-k", "word", metavar="TEXT", help="Only tests whose file or name has this text in it.")
@click.option("--update", is_flag=True, help="Rewrite the expectations of failing tests as they came out.")
def test(path: Path | None, word: str | None, update: bool) -> None:
    """Run the tests beside the mappings in PATH (a mappings folder, or one file of tests).

    Says which rules no test reaches. Exits 1 if a test fails.
    """
    from gateway.mapping_tests import load_tests, rewritten, run_test

    settings = _settings()
    folder, only = (path, None) if path is None or (path / "sources").is_dir() else (_folder_of(path), path)
    folder = folder or settings.mappings
    mappings = _dry(folder, settings)
    tests = [each for each in _checked(load_tests, folder, mappings, only) if not word or word in each.name]
    if not tests:
        _fail(f"error: there is no test in {path or folder}" + (f" with `{word}` in its name" if word else ""), 2)
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
                click.echo(_indented(str(failure), "    "))
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
                _fail(f"error: {file} is not rewritten: {error}")
            click.echo(f"updated {file}: look at the difference before you keep it")
    if left:
        _fail(f"{left} that cannot be run as written {'are' if left > 1 else 'is'} left as it was")


@main.command()
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
        click.echo(_pretty(msgspec.json.encode(schema_of(kind))))
    else:
        _fail("error: say which: gateway schema source|destination|tests, or --write DIR for all", 2)


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Write a copy of the bundled mappings to DIR, with samples, tests and schemas, to own and edit."""
    from gateway.mappings import copy_bundled

    try:
        copy_bundled(folder)
    except FileExistsError as error:
        _fail(f"error: {error}", 2)
    click.echo(f"""{folder} is yours. Next:
  export GATEWAY_MAPPINGS={folder}
  gateway check       # every mistake, with its place
  gateway test        # the tests beside the mappings
  {folder}/README.md is the language's reference; delete the sources and destinations that you do not use""")


@main.command()
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

    settings = _settings()
    mappings = _dry(settings.mappings, settings)
    _known(source, mappings.sources, "source")
    if file is None:
        click.echo("\n".join(samples(settings.mappings, source)) or f"there are no samples of {source}")
        return
    body, _ = _body(source, file)
    body = minified(body)
    verification = _verification(mappings.sources[source].spec.verify, secret, settings.environment)
    try:
        signature = sign(verification, body, time.time(), f"msg_{time.time_ns()}")
    except SignatureError:
        _fail(f"error: no secret to sign with: give --secret, or set what `verify.secrets` of {source} names", 2)
    known = sample_headers(settings.mappings, source, Path(file).name, body, time.time())
    headers = known | signature | _pairs(header)
    try:
        answer = httpx.post(f"{url.rstrip('/')}/webhooks/{source}", content=body, headers=headers, timeout=30)
    except httpx.HTTPError as error:
        _fail(f"error: {url} does not answer ({error}); is `gateway serve` running there?")
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
        _fail(f"error: {error}", 2)


@main.command("link-token")
@click.argument("user")
@click.option("--minutes", default=15, show_default=True, type=click.IntRange(1, 1440), help="How long it is good for.")
def link_token(user: str, minutes: int) -> None:
    """Print a token that lets a page link the visitor of USER."""
    from gateway.browser import make_token

    settings = _settings()
    if not settings.link_secret:
        _fail("error: GATEWAY_LINK_SECRET is not set; make one with `openssl rand -hex 32`", 2)
    click.echo(make_token(user, settings.link_secret, int(time.time()), minutes * 60))


@main.command()
def doctor() -> None:
    """Say what is wrong with the settings, the mappings and the store, or may be some day. Exits 1 if something is."""
    from gateway.doctor import examine

    findings = asyncio.run(examine(_settings()))
    for each in findings:
        click.echo(f"{'ok' if each.well else '!!'}    {each.about}: {each.told}")
    sys.exit(0 if all(each.well for each in findings) else 1)


@main.group()
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

    settings = _settings()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("copying", total=None)
        try:
            copied = asyncio.run(
                copy_store(
                    settings, source, target, lambda done, total: progress.update(task, completed=done, total=total)
                )
            )
        except (SettingsError, StoreMismatch, StoreUnavailable) as error:
            _fail(f"error: {error}", 2)
    click.echo(
        f"copied {copied.webhooks} webhooks and {copied.links} links; {copied.known} webhooks were there already"
    )


@main.group()
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

    now, wanted = _now(), _subjects(subjects)
    with _stored(_settings()) as stored:
        found = stored.links(wanted)
    if as_json:
        click.echo(_pretty(msgspec.json.encode(found)))
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


@main.command()
@click.option("--subject", "subjects", multiple=True, required=True, metavar="NAME=VALUE", help="May be repeated.")
def forget(subjects: tuple[str, ...]) -> None:
    """Erase all that is kept of a person: links, stored webhooks, and deliveries that have not gone out.

    `gateway forget --subject email=ada@example.com`. What collectors were sent before must be erased there.
    """
    from gateway.deliveries import StoreUnavailable
    from gateway.privacy import told
    from gateway.telemetry import configure_logs

    configure_logs(json=False, quiet=True)
    with _stored(_settings()) as stored:
        try:
            click.echo(told(stored.forget(_subjects(subjects, normal=False))))
        except (ValueError, StoreUnavailable) as error:
            _fail(f"error: {error}")


def _subjects(pairs: tuple[str, ...], *, normal: bool = True) -> dict[str, str]:
    """Return subjects by name; with `normal` in the form in which links are kept."""
    from gateway.identity import normalise_subject

    subjects: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or (form := normalise_subject(name, value)) is None:
            _fail(f"error: {pair}: write NAME=VALUE, such as user=42 or email=ada@example.com", 2)
        subjects[name] = form if normal else value
    return subjects


@main.command()
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
        _fail("error: say which: a webhook's id, or --source, --type, --since, --until or --dead", 2)

    async def work(archive: Archive) -> tuple[int, int]:
        state: Any = "dead" if dead else None
        wanted = archive.wanted(id=webhook, source=source, type=type_, since=since, until=until, state=state)
        # All numbers first: a replay changes what is dead, and so which page comes next.
        numbers = [(each.webhook.webhook, each.webhook.id) async for each in archive.each(wanted)]
        done = refused = 0
        with _progress("replaying", len(numbers)) as advance:
            for number, id in numbers:
                try:
                    replayed = await (archive.rehearse(number) if dry_run else archive.replay(number))
                except Refused as error:
                    refused += 1
                    click.echo(f"{id}: {error}", err=True)
                else:
                    done += 1
                    _tell_difference(id, replayed.difference)
                advance()
        return done, refused

    done, refused = _archive(work)
    if not done and webhook:
        _fail(f"error: there is no webhook {webhook} in the store, or retention has taken its body")
    many = f"{done} webhook{'' if done == 1 else 's'}"
    if dry_run:
        click.echo(f"{many} would be replayed; nothing was changed", err=True)
    else:
        click.echo(f"replayed {many}; a running gateway delivers what is due")
    if refused:
        _fail(f"{refused} could not be replayed")


def _tell_difference(id: str, difference: Any) -> None:
    if difference is None or not (difference.events or difference.deliveries):
        return
    click.echo(id)
    for line in difference.events:
        click.echo(f"  {line}")
    for each in difference.deliveries:
        click.echo(f"  {each.event} for {each.destination}: {each.now} -> {each.then}")


_STATES = ["waiting", "due", "leased", "parked", "sent", "skipped", "dead", "pending"]


@main.command()
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
            _echo_json(way)
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
        _echo_json(found)
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
    _table(("webhook", "came at", "source", "type", "id", "deliveries"), rows)


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
        click.echo(_indented(_pretty(msgspec.json.encode(way.request.body)), "  "))


@main.command()
@click.option("--destination", "-d")
@click.option("--state", type=click.Choice(_STATES))
@click.option("--reason", help="Why it was skipped, parked or died.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def deliveries(destination: str | None, state: Any, reason: str | None, limit: int, as_json: bool) -> None:
    """List deliveries, those of the newest webhooks first."""
    found = _archive(lambda archive: _deliveries(archive, destination, state, reason, limit))
    if as_json:
        _echo_json(found)
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
    _table(("webhook, number", "destination", "event", "state", "reason", "tries", "id"), rows)


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


@main.group()
def dead() -> None:
    """Look at deliveries that no collector took, and start them again."""


@dead.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def dead_list(as_json: bool) -> None:
    """Count what is dead, by destination and reason."""
    found = _archive(lambda archive: archive.dead())
    if as_json:
        _echo_json(found)
        return
    rows = [(each.destination, each.reason, str(each.number), str(each.newest)) for each in found.groups]
    _table(("destination", "reason", "deliveries", "newest webhook"), rows)


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
        _fail("error: say which: WEBHOOK NUMBER, or --destination and --reason, or --all", 2)

    async def work(archive: Archive) -> int:
        if webhook is not None and number is not None:
            return (await archive.retry(webhook, number)).retried
        groups = (await archive.dead()).groups
        total = sum(
            each.number for each in groups if destination in {None, each.destination} and reason in {None, each.reason}
        )
        done, after = 0, None
        with _progress("retrying", total) as advance:
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

    settings = _settings()
    if settings.embedded and not settings.store_path.exists():
        _fail(f"error: there is no store at {settings.store_path}: set GATEWAY_STORE to the gateway's", 2)

    async def run() -> Any:
        async with opened(settings) as archive:
            return await work(archive)

    try:
        return asyncio.run(run())
    except MappingErrors as errors:
        _fail(str(errors))
    except (Missing, Refused) as error:
        _fail(f"error: {error}")
    except (SettingsError, StoreMismatch, StoreUnavailable, Unclear) as error:
        _fail(f"error: {error}", 2)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Any]:
    """Show on stderr how far long work has come. Yields what says that so much is done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=total < 2 or not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda number=1: progress.advance(task, number)


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for row in rows:
        table.add_row(*map(Text, row))  # texts, as a payload may hold what looks like markup
    Console(highlight=False).print(table)


def _echo_json(found: Any) -> None:
    import msgspec

    click.echo(_pretty(msgspec.json.encode(found)))


def _folder_of(path: Path) -> Path:
    """Return the mappings folder that a file or a folder of tests belongs to."""
    for parent in path.resolve().parents:
        if (parent / "sources").is_dir():
            return parent
    _fail(f"error: {path} is not inside a mappings folder (one with `sources/` in it)", 2)


def _tell_unreached(mappings: Any, reached: dict[str, set[str]]) -> None:
    for source in mappings.sources.values():
        idle = [rule.name for rule in source.rules if rule.name not in reached.get(source.name, ())]
        if idle:
            click.echo(f"no test reaches these rules of {source.name}: {', '.join(idle)}")


def _checked(load: Any, *arguments: Any) -> Any:
    from gateway.documents import MappingErrors

    try:
        return load(*arguments)
    except MappingErrors as errors:
        _fail(str(errors))


def _indented(text: str, indent: str) -> str:
    return "\n".join(indent + line for line in text.splitlines())


def _dry(path: Path, settings: Any) -> Any:
    """Load mappings to look at what they do: no secret of a sender is needed, and none of a destination must be set."""
    from gateway.mappings import switches

    senders = lambda name: "https://gateway.example/webhooks" if name.endswith("_URL") else None  # noqa: E731
    return _mappings(path, _Filled(settings.environment, switches(path)), senders)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _tell_deliveries(deliveries: Any) -> None:
    click.echo("what became of it, as stored")
    for each in deliveries:
        tries = f", {len(each.attempts)} tries" if each.attempts else ""
        click.echo(f"  {each.destination}: {each.state.name.lower()}{f': {each.reason}' if each.reason else ''}{tries}")
    if not deliveries:
        click.echo("  no delivery: no rule made an event, or no destination was on (then `gateway replay` it)")


class _Filled:
    """Stands in for the settings that turn destinations on, so that a dry run needs no credentials."""

    def __init__(self, environment: Any, switches: frozenset[str]) -> None:
        self._environment = environment
        self._switches = switches

    def __call__(self, name: str) -> str | None:
        if (value := self._environment(name)) or name not in self._switches:
            return str(value) if value else None  # the default of the file, if it has one
        if name.endswith(("_URL", "_HOST")):
            return "https://" + name.lower().replace("_", "-") + ".example"
        return "whsec_AAAA" if name.endswith("_SECRET") else f"<{name}>"


def _known(name: str, known: Any, what: str) -> None:
    from gateway.documents import suggest

    if name not in known:
        hint = suggest(name, list(known)) or f"there are: {', '.join(known) or 'none'}"
        _fail(f"error: there is no {what} `{name}`; {hint}", 2)


def _body(source: str, file: str, folder: Path | None = None) -> tuple[bytes, dict[str, str]]:
    """Return a body from a file or a bundled sample, with the headers that belong to it."""
    from gateway.mappings import sample, sample_headers, samples

    folder = folder or _settings().mappings
    body = Path(file).read_bytes() if Path(file).is_file() else sample(folder, source, file)
    if body is None:
        names = ", ".join(samples(folder, source)[:6])
        _fail(f"error: {file} is neither a file nor a sample of {source}; samples are: {names} …", 2)
    return body, _checked(sample_headers, folder, source, Path(file).name, body, time.time())


def _pairs(headers: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for header in headers:
        name, equals, value = header.partition("=")
        if not equals:
            _fail(f"error: --header {header}: write NAME=VALUE", 2)
        pairs[name.strip().lower()] = value.strip()
    return pairs


def _pretty(data: bytes) -> str:
    import msgspec

    return msgspec.json.format(data, indent=2).decode()
