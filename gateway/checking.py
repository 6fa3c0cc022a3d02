"""What `gateway check` tells: every mistake of a mappings folder at once, and how each source is set up."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gateway.documents import Diagnostic, MappingErrors, Variables, yaml_files
from gateway.lints import lint
from gateway.mapping_tests import load_tests
from gateway.mappings import load_mappings, read_document, sample_headers
from gateway.sources import MalformedWebhook, Source, compile_source, read_verified


def mistakes(path: Path, variables: Variables) -> list[Diagnostic]:
    """Return all that is wrong in a mappings folder: what keeps it from use, and what is most likely a mistake."""
    found: list[Diagnostic] = []
    try:
        mappings = load_mappings(path, variables)
    except MappingErrors as errors:
        found += errors.diagnostics
    else:
        try:
            load_tests(path, mappings)
        except MappingErrors as errors:
            found += errors.diagnostics
    for file in yaml_files(path / "sources"):
        found += _lints(path, file)
    return sorted(set(found), key=lambda each: (each.file, each.line, each.column, each.message))


def _lints(path: Path, file: Path) -> list[Diagnostic]:
    try:
        document, version = read_document(file)
        source = compile_source(document, version, lambda _: None)
    except MappingErrors:
        return []  # `load_mappings` has told that
    samples: list[object] = []
    types: list[str] = []
    found: list[Diagnostic] = []
    for each in sorted((path / "samples" / source.name).glob("*.json")):
        body = each.read_bytes()
        try:
            sample = msgspec.json.decode(body)
            headers = sample_headers(path, source.name, each.name, body, 0)
            types.append(read_verified(headers, body, source, 0).type)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            found.append(Diagnostic(str(each), 1, 1, f"this sample is no JSON: {error}"))
        except MappingErrors as errors:
            return errors.diagnostics  # of headers.yaml, and so for all samples
        except MalformedWebhook as error:
            hint = "if what is missing stands in a header, write the header into headers.yaml beside the sample"
            found.append(Diagnostic(str(each), 1, 1, f"this sample is no webhook of {source.name}: {error}", hint))
        else:
            samples.append(sample)
    return [*found, *lint(document, source.spec, samples, types)]


def source_line(diagnostic: Diagnostic) -> str | None:
    """Return the line that a diagnostic points into, or None if it cannot be read."""
    try:
        lines = Path(diagnostic.file).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return lines[diagnostic.line - 1] if diagnostic.line <= len(lines) else None


def pictured(diagnostic: Diagnostic) -> str:
    """Return a diagnostic with its line and a caret under the place, as a compiler prints it."""
    head = f"{diagnostic.file}:{diagnostic.line}:{diagnostic.column}: error: {diagnostic.message}"
    parts = [head]
    line = source_line(diagnostic)
    if line is not None and line.strip():
        # A line is shown around the place: some are long.
        start = max(0, diagnostic.column - 80)
        shown = line[start : start + 120].replace("\t", " ")
        parts += [f"{diagnostic.line:>5} | {shown}", f"      | {' ' * (diagnostic.column - 1 - start)}^"]
    if diagnostic.hint:
        parts.append(f"  hint: {diagnostic.hint}")
    return "\n".join(parts)


def finding(diagnostic: Diagnostic) -> dict[str, object]:
    """Return a diagnostic as editors and CI read it. `line` and `column` are 1-based."""
    return {**msgspec.structs.asdict(diagnostic), "severity": "error"}


def types_of(source: Source) -> list[str]:
    """Return the types that a source's rules name, wildcards apart, in the order of the file."""
    return list(dict.fromkeys(type for rule in source.rules for type in rule.on if "*" not in type))


def setup(source: Source, url: str) -> Iterator[str]:
    """Yield how the sender's endpoint is set up: what it must send, why, and the command if there is one."""
    types = types_of(source)
    yield f"subscribe {url} to these {len(types)} types: {', '.join(types)}"
    for type, why in source.spec.setup.required.items():
        yield f"do not leave out {type}: {why}"
    if source.spec.setup.command:
        command = source.spec.setup.command.replace("{url}", shlex.quote(url))
        each = [source.spec.setup.each.replace("{type}", type) for type in types]
        yield " \\\n    ".join([command, *filter(None, each)])
