"""Servers in processes of their own, each pinned to one core: the gateway, what it is compared with, a collector.

What is measured runs on core 0; who asks it, and whoever it asks, on core 1.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from msgspec import Struct

from gateway.mappings import bundled
from tests.benchmarks.recipe import node
from tests.stores.servers import free_port

MEASURED, OTHERS = 0, 1
"""The two cores."""
START_WITHIN = 60.0
DELIVERED_WITHIN = 120.0
SECRET = "whsec_benchmark"
KEY = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH")
"""Of the environment: nobody's real destinations are to hear of a benchmark."""
DESTINATION = """
destination: {name}
enabled_by: [SINK]
endpoint: {url}
event: {{id: id, event_name: name, timestamp: at, properties: "merge(properties, {{amount: minor(properties.value)}})"}}
body: {{events: events}}
batch: {{max_events: 100, max_bytes: 1000000}}
"""


class Up(Struct, frozen=True):
    """A server that answers. `took` is how long its start was, in seconds."""

    port: int
    pid: int
    took: float

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str = "/livez") -> bytes:
        with urlopen(self.url + path, timeout=START_WITHIN) as answer:
            said: bytes = answer.read()
        return said


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Pin this process, and what it starts, to a core while the block runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def up(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], *, core: int = MEASURED, poll: float = 0.02
) -> Iterator[Up]:
    """Run a server while the block runs; its port is added to the command. It is up when `/livez` answers 200.

    It is asked every `poll` seconds. Raises `RuntimeError` with its log when it ends or is not up in time.
    """
    port, log = free_port(), folder / "log"
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    started = time.perf_counter()
    with log.open("wb") as written, on_core(core):
        process = subprocess.Popen([*command, str(port)], env=kept | dict(environment), stdout=written, stderr=written)
    try:
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/livez", timeout=START_WITHIN).close()
                break
            except OSError:
                if process.poll() is not None or time.perf_counter() - started > START_WITHIN:
                    raise RuntimeError(f"{' '.join(command)} did not start: {log.read_text()}") from None
                time.sleep(poll)
        yield Up(port, process.pid, time.perf_counter() - started)
    finally:
        process.kill()
        process.wait()


@contextmanager
def sink(core: int = OTHERS) -> Iterator[Up]:
    """Run a collector that counts; `ask()` says how many events it was sent."""
    command = [sys.executable, "-m", "tests.benchmarks.sink"]
    with tempfile.TemporaryDirectory() as folder, up(command, Path(folder), {}, core=core) as collector:
        yield collector


def wait_for(collector: Up, events: int) -> None:
    """Wait until a collector was sent so many events."""
    deadline = time.monotonic() + DELIVERED_WITHIN
    while (came := int(collector.ask())) < events:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{came:,} of {events:,} events were delivered within {DELIVERED_WITHIN:.0f} s")
        time.sleep(0.01)


@contextmanager
def bare(name: str, folder: Path, collectors: Sequence[str] = (), *, poll: float = 0.02) -> Iterator[Up]:
    """Run one of the applications of `bare.py`."""
    settings = {"STRIPE_WEBHOOK_SECRET": SECRET, "COLLECTORS": ",".join(collectors)}
    with up([sys.executable, "-m", "tests.benchmarks.bare", name], folder, settings, poll=poll) as served:
        yield served


@contextmanager
def recipe(installed: Path, folder: Path, collectors: Sequence[str] = (), *, poll: float = 0.02) -> Iterator[Up]:
    """Run the collectors' recipe for Node, which was installed there."""
    settings = {"STRIPE_WEBHOOK_SECRET": SECRET, "COLLECTORS": ",".join(collectors)}
    with up([str(node()), str(installed / "server.js")], folder, settings, poll=poll) as served:
        yield served


@contextmanager
def gateway(
    folder: Path, store: str, collectors: Sequence[str], *options: str, settings: Mapping[str, str] | None = None
) -> Iterator[Up]:
    """Run `gateway serve` with the bundled mapping of Stripe, and a destination for each of the collectors."""
    mappings = _mappings(folder / "mappings", collectors)
    environment = {
        "GATEWAY_STORE": store,
        "GATEWAY_SECRET_KEY": KEY,
        "GATEWAY_MAPPINGS": str(mappings),
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "SINK": "on",
        **(settings or {}),
    }
    command = [sys.executable, "-m", "gateway", "serve", *options, "--port"]
    with up(command, folder, environment) as served:
        yield served


def _mappings(folder: Path, collectors: Sequence[str]) -> Path:
    for name in ("sources", "destinations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(bundled() / "sources" / "stripe.yaml", folder / "sources")
    for name, url in zip(("first", "second"), collectors, strict=True):
        (folder / "destinations" / f"{name}.yaml").write_text(DESTINATION.format(name=name, url=url))
    return folder
