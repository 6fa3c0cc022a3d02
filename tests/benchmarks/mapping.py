"""`python -m tests.benchmarks mapping`: JSON in, mapped JSON out, next to other ways within a Python process.

Everything is measured in one run on one core, in turns, so that the ratios hold on any machine; each way must give the
same values as the `jmespath` package before its time counts. The other languages are not the project's dependencies:

    uv pip install pyvrl vector-vrl jsonata-rs cel-expr-python common-expression-language jq

What is not installed is named in the table. (`vector-vrl` has wheels for Python 3.12 and later only.)
"""

import importlib
import json
import timeit
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from statistics import median
from typing import Any

import jmespath
import msgspec
from msgspec import Struct

from gateway.expressions import compile_projection, compile_template
from gateway.functions import MAPPING
from gateway.identity import PROFILES
from gateway.sealing import Sealer
from gateway.sources import Source, read_verified
from gateway.translate import translate
from tests.benchmarks.documents import CEL, JQ, JSONATA, VRL, Case, cases, rules_source, session
from tests.benchmarks.report import Asked, Cell, Scale, Table, asked, show, step
from tests.benchmarks.servers import OTHERS, on_core

ROUNDS = 11
SECONDS = 0.05
BATCH = 100
RULES = (1, 18, 1_000)

Run = Callable[[], object]
decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


class Missing(Exception):
    """A way that cannot be measured here: its package is not installed."""


class Call(Struct, frozen=True):
    """Maps `number` webhooks at once; gives the bytes of the last."""

    run: Callable[[], bytes]
    number: int = 1


def with_jmespath(case: Case) -> Call:
    parsed = {name: jmespath.compile(text) for name, text in case.expressions.items()}

    def run() -> bytes:
        document = json.loads(case.body)
        return json.dumps({name: each.search(document) for name, each in parsed.items()}).encode()

    return Call(run)


def with_template(case: Case) -> Call:
    compiled = compile_template(case.expressions, MAPPING)
    return Call(lambda: encode(compiled(decode(case.body))))


def with_projection(case: Case) -> Call:
    projection = compile_projection([case.expressions], MAPPING)
    read, compiled = projection.decode, projection.compiled[0]
    return Call(lambda: encode(compiled(read(case.body))))


def by_hand_json(case: Case) -> Call:
    return Call(lambda: json.dumps(case.by_hand(json.loads(case.body))).encode())


def by_hand_msgspec(case: Case) -> Call:
    return Call(lambda: encode(case.by_hand(decode(case.body))))


def with_pyvrl(case: Case) -> Call:
    remap = _optional("pyvrl").Transform(f". = {VRL.program(case)}").remap
    return Call(lambda: encode(remap(decode(case.body))))


def with_vector_vrl(case: Case) -> Call:
    execute = _optional("vector_vrl").execute_vrl
    program = f'. = {{"mapped": encode_json({VRL.program(case)})}}'  # it would return nested objects as text

    def run() -> bytes:
        results = execute(program, [case.body.decode() for _ in range(BATCH)])  # compiles at every call
        mapped: list[bytes] = [result["mapped"].encode() for result in results]
        return mapped[-1]

    return Call(run, BATCH)


def with_jsonata(case: Case) -> Call:
    evaluate = _optional("jsonata").Jsonata(JSONATA.program(case)).evaluate
    return Call(lambda: encode(evaluate(decode(case.body))))


def with_cel_cpp(case: Case) -> Call:
    cel = _optional("cel_expr_python.cel")
    evaluate = cel.NewEnv(variables={"d": cel.Type.DYN}).compile(CEL.program(case)).eval
    return Call(lambda: encode(evaluate(data={"d": decode(case.body)}).plain_value()))


def with_cel_rust(case: Case) -> Call:
    execute = _optional("cel").compile(CEL.program(case)).execute
    return Call(lambda: encode(execute({"d": decode(case.body)})))


def with_jq(case: Case) -> Call:
    program = _optional("jq").compile(JQ.program(case))
    return Call(lambda: program.input_text(case.body.decode()).text().encode())


def _optional(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Missing from None


# Title, the package whose version the table names, and how it maps.
WAYS: tuple[tuple[str, str, Callable[[Case], Call]], ...] = (
    ("json + JMESPath", "jmespath", with_jmespath),
    ("msgspec + compiled template", "", with_template),
    ("projected + compiled template", "", with_projection),
    ("json + Python by hand", "", by_hand_json),
    ("msgspec + Python by hand", "", by_hand_msgspec),
    ("msgspec + VRL", "pyvrl", with_pyvrl),
    (f"VRL, {BATCH} webhooks a call", "vector-vrl", with_vector_vrl),
    ("msgspec + JSONata (Rust)", "jsonata-rs", with_jsonata),
    ("msgspec + CEL (C++)", "cel-expr-python", with_cel_cpp),
    ("msgspec + CEL (Rust)", "common-expression-language", with_cel_rust),
    ("jq", "jq", with_jq),
)


def measure(runs: Mapping[str, Run], scale: Scale) -> dict[str, list[float]]:
    """Microseconds of each, round by round: all take turns, so that a slow moment hits all alike."""
    timers = {name: timeit.Timer(run) for name, run in runs.items()}
    seconds, rounds = (0.0, 1) if scale == "quick" else (SECONDS, ROUNDS)
    counts = {name: max(1, int(seconds / min(timer.repeat(3, 1)))) for name, timer in timers.items()}
    took: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, timer in timers.items():
            took[name].append(timer.timeit(counts[name]) / counts[name] * 1e6)
    return took


def times(slow: list[float], fast: list[float]) -> float:
    """How often `fast` goes into `slow`: the median over the rounds."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def documents(case: Case, scale: Scale) -> Table:
    """Measure each way to map a document."""
    step(case.title)
    calls: dict[str, Call] = {}
    missing: list[str] = []
    expected = json.loads(with_jmespath(case).run())
    for title, package, make in WAYS:
        try:
            call = make(case)
        except Missing:
            missing.append(f"{title}, {package}")
            continue
        if json.loads(call.run()) != expected:
            raise AssertionError(f"{title} maps the {case.title} to other values: {call.run()!r}")
        calls[f"{title}, {package} {version(package)}" if package else title] = call
    took = measure({name: call.run for name, call in calls.items()}, scale)
    took = {name: [each / calls[name].number for each in rounds] for name, rounds in took.items()}
    base = next(iter(took.values()))
    rows: list[tuple[Cell, ...]] = [(name, median(each), times(base, each)) for name, each in took.items()]
    rows += [(name, None, "not installed") for name in missing]
    title = f"{case.title}: {len(case.body):,} bytes, {len(case.expressions)} expressions"
    return Table(f"mapping: {case.title}", title, ("bytes in, bytes out", "µs", "times as fast"), tuple(rows))


def rules(scale: Scale) -> Table:
    """Measure what rules cost that do not match: nothing, once their type was seen."""
    step(f"one rule of {RULES[-1]:,}")
    body = session()
    key = Sealer(bytes(32)).subject_key
    profiles = [PROFILES["default"]]
    runs: dict[str, Run] = {}
    for number in RULES:
        source = rules_source(number)
        webhook = read_verified({}, body, source, 0)
        assert len(translate(webhook, source, profiles, key).emissions) == 1
        conditions = [jmespath.compile(f"type == 'other.{index}'") for index in range(number)]
        runs[f"find {number}"] = partial(source.rules_for, webhook.type)
        runs[f"first {number}"] = partial(_find_anew, source, webhook.type)
        runs[f"translate {number}"] = partial(translate, webhook, source, profiles, key)
        runs[f"jmespath {number}"] = partial(_try_each, conditions, webhook.document)
    took = measure(runs, scale)
    rows: list[tuple[Cell, ...]] = []
    for name, title in (
        ("translate", "`translate`, the whole webhook"),
        ("find", "`rules_for`, of that"),
        ("first", "`rules_for`, a type's first webhook"),
        ("jmespath", "for comparison: a JMESPath condition on the type, a rule"),
    ):
        cells = [took[f"{name} {number}"] for number in RULES]
        rows.append((title, *(median(each) for each in cells), times(cells[-1], cells[0])))
    columns = ("", *(f"{number:,}" for number in RULES), "ratio")
    return Table("rules", "One rule of many matches: µs by the number of rules", columns, tuple(rows))


def _find_anew(source: Source, type: str) -> object:
    source._by_type.clear()
    return source.rules_for(type)


def _try_each(conditions: list[Any], document: object) -> list[object]:
    return [condition for condition in conditions if condition.search(document)]


def main(asked: Asked) -> list[Table]:
    """Measure both documents, and one rule of many."""
    with on_core(OTHERS):
        return [*(documents(case, asked.scale) for case in cases()), rules(asked.scale)]


if __name__ == "__main__":
    show(main(asked()))
