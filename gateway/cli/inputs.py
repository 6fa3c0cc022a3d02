"""What commands are given: settings, mappings, bodies, headers, subjects; or the message that ends the command."""

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from gateway.cli.outputs import fail

if TYPE_CHECKING:
    from gateway.documents import Variables
    from gateway.mappings import Mappings
    from gateway.settings import Settings
    from gateway.stored import StoredRequests

P = ParamSpec("P")
T = TypeVar("T")


def current_settings() -> "Settings":
    """Return the settings of the environment."""
    from gateway.settings import SettingsError, load_settings

    try:
        return load_settings(os.environ)
    except SettingsError as error:
        fail(f"error: these settings are not right:\n{error}", 2)


def mappings_of(path: Path, variables: "Variables", senders: "Variables | None" = None) -> "Mappings":
    """Return the mappings in a folder."""
    from gateway.checking import pictured
    from gateway.documents import MappingErrors
    from gateway.mappings import load_mappings
    from gateway.settings import SettingsError

    try:
        return load_mappings(path, variables, senders)
    except MappingErrors as errors:
        number = len(errors.diagnostics)
        told = "\n".join(map(pictured, errors.diagnostics))
        fail(f"{told}\n{number} mistake{'s' if number > 1 else ''} in {path}")
    except SettingsError as error:
        fail(f"error: {error}", 2)


def mappings_to_look_at(path: Path, settings: "Settings") -> "Mappings":
    """Load mappings to look at what they do: no secret of a sender is needed, and none of a destination must be set."""
    from gateway.mappings import switches

    senders = lambda name: "https://gateway.example/webhooks" if name.endswith("_URL") else None  # noqa: E731
    return mappings_of(path, _Filled(settings.environment, switches(path)), senders)


class _Filled:
    """Stands in for the settings that turn destinations on, so that a dry run needs no credentials."""

    def __init__(self, environment: "Variables", switches: frozenset[str]) -> None:
        self._environment = environment
        self._switches = switches

    def __call__(self, name: str) -> str | None:
        if (value := self._environment(name)) or name not in self._switches:
            return str(value) if value else None  # the default of the file, if it has one
        if name.endswith(("_URL", "_HOST")):
            return "https://" + name.lower().replace("_", "-") + ".example"
        return "whsec_AAAA" if name.endswith("_SECRET") else f"<{name}>"


def checked(load: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Return what loading something gives, or end the command with its mistakes."""
    from gateway.documents import MappingErrors

    try:
        return load(*arguments, **named)
    except MappingErrors as errors:
        fail(str(errors))


def expect_known(name: str, known: Collection[str], what: str) -> None:
    """End the command if there is no such thing."""
    from gateway.documents import suggest

    if name not in known:
        hint = suggest(name, list(known)) or f"there are: {', '.join(known) or 'none'}"
        fail(f"error: there is no {what} `{name}`; {hint}", 2)


def body_of(source: str, file: str, folder: Path | None = None) -> tuple[bytes, dict[str, str]]:
    """Return a body from a file or a bundled sample, with the headers that belong to it."""
    from gateway.mappings import sample, sample_headers, samples

    folder = folder or current_settings().mappings
    body = Path(file).read_bytes() if Path(file).is_file() else sample(folder, source, file)
    if body is None:
        names = ", ".join(samples(folder, source)[:6])
        all_of_them = f"`gateway send {source}` lists all"
        fail(f"error: {file} is neither a file nor a sample of {source}; samples are: {names} … ({all_of_them})", 2)
    return body, checked(sample_headers, folder, source, Path(file).name, body, time.time())


def headers_of(headers: tuple[str, ...]) -> dict[str, str]:
    """Return headers by name, in lower case, from texts such as `X-Topic=orders/paid`."""
    pairs: dict[str, str] = {}
    for header in headers:
        name, equals, value = header.partition("=")
        if not equals:
            fail(f"error: --header {header}: write NAME=VALUE", 2)
        pairs[name.strip().lower()] = value.strip()
    return pairs


def subjects_of(pairs: tuple[str, ...], *, normal: bool = True) -> dict[str, str]:
    """Return subjects by name; with `normal` in the form in which links are kept."""
    from gateway.identity import normalise_subject

    subjects: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or (form := normalise_subject(name, value)) is None:
            fail(f"error: {pair}: write NAME=VALUE, such as user=42 or email=ada@example.com", 2)
        subjects[name] = form if normal else value
    return subjects


def stored_requests(settings: "Settings") -> "StoredRequests":
    """Return the webhooks of the settings' store."""
    from gateway.deliveries import StoreMismatch, StoreUnavailable
    from gateway.settings import SettingsError
    from gateway.stored import StoredRequests

    try:
        return StoredRequests(settings)
    except (SettingsError, StoreMismatch, StoreUnavailable) as error:
        fail(f"error: {error}", 2)
