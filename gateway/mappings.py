"""The mapping directory: every source and destination in it, loaded whole or not at all."""

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from gateway.destinations import Destination, DestinationSpec, compile_destination, inherited
from gateway.documents import Diagnostic, Document, MappingErrors, Variables, parse, shape, yaml_files
from gateway.identity import PROFILES, Profile
from gateway.sources import Source, compile_source

T = TypeVar("T")


class SubjectNames(Struct, frozen=True):
    """The subjects that mappings read, and those of them that a page may link by itself."""

    all: frozenset[str]
    browser: frozenset[str]


class Mappings(Struct, frozen=True):
    """What is in force. `destinations` are those that are on, `off` the others."""

    sources: Mapping[str, Source]
    destinations: Mapping[str, Destination]
    off: Mapping[str, Destination]
    profiles: tuple[Profile, ...]

    @property
    def fetches(self) -> bool:
        """Whether a source asks its provider for more than its webhooks say."""
        return any(each.enabled for source in self.sources.values() for each in source.fetches)

    @property
    def subjects(self) -> SubjectNames:
        """The subjects of all sources."""
        return SubjectNames(
            all=frozenset(name for source in self.sources.values() for name in source.subject_names),
            browser=frozenset(name for source in self.sources.values() for name in source.browser_subjects),
        )


def bundled() -> Path:
    """Return the folder of the mappings that come with the gateway."""
    package = Path(__file__).parent
    installed = package / "bundled"
    return installed if installed.is_dir() else package.parent / "mappings"  # a checkout has them beside the package


def copy_bundled(folder: Path) -> None:
    """Copy the bundled mappings to a folder that is new or empty. Raises `FileExistsError` that says what to do."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; name a folder that is new or empty")
    shutil.copytree(bundled(), folder, dirs_exist_ok=True)


def load_mappings(
    path: Path, variables: Variables, senders: Variables | None = None, *, only_set_up: bool = False
) -> Mappings:
    """Load `sources/*.yaml` and `destinations/*.yaml` under `path`.

    `variables` gives what `${NAME}` stands for, `senders` what it does in sources if that differs. With `only_set_up`
    files whose settings are all missing are not looked at. Raises `MappingErrors` with every mistake of every file.
    """
    senders = senders or variables
    diagnostics: list[Diagnostic] = []
    if not (path / "sources").is_dir():
        message = "there is no `sources` folder here: a mappings folder has `sources/` and `destinations/`"
        raise MappingErrors([Diagnostic(str(path), 1, 1, message)])

    def each(folder: str, name_of: Callable[[T], str], make: Callable[[Document, str], T]) -> dict[str, T]:
        made: dict[str, T] = {}
        for file in yaml_files(path / folder):
            try:
                text, version = _read_text(file)
                if only_set_up and not _is_set_up(text, senders if folder == "sources" else variables):
                    continue
                document = parse(text, str(file))
                item = make(document, version)
            except MappingErrors as errors:
                diagnostics.extend(errors.diagnostics)
                continue
            if (name := name_of(item)) in made:
                diagnostics.append(Diagnostic(str(file), 1, 1, f"`{name}` is defined in another file of {folder}/ too"))
            made[name] = item
        return made

    def destination(document: Document, version: str) -> Destination:
        likened = isinstance(document.data, dict) and "like" in document.data
        return compile_destination(inherited(document, files()) if likened else document, version, variables)

    files = cache(lambda: _by_name(path / "destinations"))
    sources = each("sources", lambda source: source.name, lambda doc, version: compile_source(doc, version, senders))
    destinations = each("destinations", lambda destination: destination.name, destination)
    if not sources and not diagnostics and not only_set_up:
        diagnostics.append(Diagnostic(str(path / "sources"), 1, 1, "there is no source in this folder"))
    if diagnostics:
        raise MappingErrors(diagnostics)
    on = {name: made for name, made in destinations.items() if all(map(variables, made.enabled_by))}
    profiles = {profile.name: profile for profile in [PROFILES["default"], *(made.profile for made in on.values())]}
    off = {name: made for name, made in destinations.items() if name not in on}
    return Mappings(sources, on, off, tuple(profiles.values()))


def switches(path: Path) -> frozenset[str]:
    """Return the settings that turn the destinations of a folder on."""
    found: set[str] = set()
    for document in _by_name(path / "destinations").values():
        try:
            spec = shape(document, DestinationSpec)
        except MappingErrors:
            continue
        found.update(spec.enabled_by)
    return frozenset(found)


def _by_name(folder: Path) -> dict[str, Document]:
    """Return the destinations' documents by name, but for those that cannot be read: their own turn tells that."""
    found: dict[str, Document] = {}
    for file in yaml_files(folder):
        try:
            document, _ = read_document(file)
        except MappingErrors:
            continue
        if isinstance(document.data, dict):
            found[str(document.data.get("destination"))] = document
    return found


_SETTING = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b|(?<=\$\{)[A-Z][A-Z0-9_]*")


def _is_set_up(text: str, variables: Variables) -> bool:
    """Tell whether a file may be in force: it names a setting that is set, or none at all."""
    names = set(_SETTING.findall(text))
    return not names or any(map(variables, names))


def read_document(file: Path) -> tuple[Document, str]:
    """Return a YAML file with its version, the first 12 hex digits of its SHA-256. Raises `MappingErrors`."""
    text, version = _read_text(file)
    return parse(text, str(file)), version


def _read_text(file: Path) -> tuple[str, str]:
    try:
        content = file.read_bytes()
        text = content.decode()
    except OSError as error:
        raise MappingErrors([Diagnostic(str(file), 1, 1, f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise MappingErrors([Diagnostic(str(file), 1, 1, f"is not UTF-8 (at byte {error.start})")]) from None
    return text, hashlib.sha256(content).hexdigest()[:12]


def sample(path: Path, source: str, name: str) -> bytes | None:
    """Return a sample body of a source by its name, with or without `.json`; None when there is none."""
    if "/" in name or "\\" in name:
        return None
    file = path / "samples" / source / (name if name.endswith(".json") else f"{name}.json")
    return file.read_bytes() if file.is_file() else None


def samples(path: Path, source: str) -> list[str]:
    """Return the names of a source's samples."""
    return sorted(file.stem for file in (path / "samples" / source).glob("*.json"))


def sample_headers(path: Path, source: str, name: str, body: bytes, now: float) -> dict[str, str]:
    """Return the headers, names in lower case, that a provider sends with a sample besides the signature.

    `samples/<source>/headers.yaml` gives them by the sample's name, `*` as a wildcard; `{hash}` stands for the body's
    SHA-256 (32 hex digits of it) and `{now}` for the time (`now`, in seconds). Raises `MappingErrors`.
    """
    headers = {"content-type": "application/json"}
    file = path / "samples" / source / "headers.yaml"
    if not file.is_file():
        return headers
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    digest = hashlib.sha256(body).hexdigest()[:32]
    for pattern, given in shape(read_document(file)[0], dict[str, dict[str, str]]).items():
        if fnmatchcase(name.removesuffix(".json"), pattern):
            for header, text in given.items():
                headers[header.lower()] = text.replace("{hash}", digest).replace("{now}", moment)
    return headers


def minified(body: bytes) -> bytes:
    """Return a sample as a provider would send it: without the white space that makes it readable."""
    return msgspec.json.format(body, indent=-1)
