"""A storm over several gateways: processes, connections and Redis die at random instants while payments come in.

What is random has a seed, so the same disasters come in the same order; when exactly they strike is the machine's.
"""

import asyncio
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path

import httpx
from redis import RedisError

from gateway.sealing import Sealer
from gateway.server import running
from gateway.settings import load_settings
from gateway.signatures import sign
from gateway.store.opening import Store, open_store
from tests.promises.served import STRIPE, payment
from tests.replicas.nursery import LEASE
from tests.replicas.processes import PATIENCE, ROOT, Collector, environment
from tests.stores.servers import Server, free_port

Disaster = Callable[[], Awaitable[None]]

REFUSES = 0.5
"""How many of the requests the collectors refuse."""
ANSWER_WITHIN = 1.0
"""Seconds that a sender waits for an answer before it sends again, to whichever replica."""
BETWEEN = 0.08
"""Seconds between two payments of one sender: the storm is about disasters, and a busy machine must keep up."""
LOSES = 20
"""Webhooks that a power cut takes at least."""


class Replica:
    """One gateway that is born again whenever it is killed."""

    def __init__(self, nursery: "subprocess.Popen[str]", log: Path) -> None:
        self._nursery = nursery
        self._log = log
        self.start()

    def start(self) -> None:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._nursery.stdin.write(f"serve --port {port} {self._log}\n")
        self._nursery.stdin.flush()
        self._pid = int(self._nursery.stdout.readline())

    def kill(self) -> None:
        """Kill it, and wait until it is gone: who is born before then finds an embedded store still locked."""
        process = os.pidfd_open(self._pid)
        os.kill(self._pid, signal.SIGKILL)
        gone, _, _ = select.select([process], [], [], PATIENCE)
        os.close(process)
        assert gone, f"process {self._pid} outlives SIGKILL"

    def pause(self) -> Callable[[], None]:
        """Stop it where it stands. Returns what lets it go on, and not who is born when it is killed meanwhile."""
        os.kill(self._pid, signal.SIGSTOP)
        return partial(os.kill, self._pid, signal.SIGCONT)

    async def is_up(self, client: httpx.AsyncClient) -> bool:
        with suppress(httpx.TransportError):
            return (await client.get(f"{self.url}/readyz")).is_success
        return False

    async def has_lost_a_lease(self) -> bool:
        """Say whether it was told that somebody else has what it wanted to settle."""
        return '"lease_lost"' in self._log.read_text()


class Storm:
    """Payments that are posted to some replica until one takes them, and what befalls the replicas meanwhile."""

    def __init__(
        self,
        settings: dict[str, str],
        nursery: "subprocess.Popen[str]",
        folder: Path,
        server: Server | None,
        collector: Collector,
        seed: int,
    ) -> None:
        self.settings = settings
        self.replicas: list[Replica] = []
        self.collector = collector
        self.accepted: set[str] = set()
        self._nursery = nursery
        self._folder = folder
        self._server = server
        self._chance = random.Random(seed)
        self._redis = asyncio.Lock()
        self._numbers = count(1)
        self._over = False

    def add_replica(self) -> None:
        self.replicas.append(Replica(self._nursery, self._folder / f"{len(self.replicas)}.log"))

    async def rage(self, disasters: Iterable[Disaster], seconds: float, senders: int) -> None:
        """Let the disasters strike at random instants of so many seconds, while senders send."""
        struck = list(disasters)
        self._chance.shuffle(struck)
        instants = [self._chance.uniform(0, seconds) for _ in struck]
        self._over = False
        async with httpx.AsyncClient(timeout=ANSWER_WITHIN) as client:
            await until(partial(self._all_up, client))
            async with asyncio.TaskGroup() as tasks:
                sending = [tasks.create_task(self._send_on(client)) for _ in range(senders)]
                async with asyncio.TaskGroup() as strikes:
                    strikes.create_task(asyncio.sleep(seconds))
                    for strike, instant in zip(struck, instants, strict=True):
                        strikes.create_task(_strike(strike, instant))
                await until(partial(self._all_up, client))
                self._over = True
                async with asyncio.timeout(PATIENCE):
                    await asyncio.wait(sending)

    async def send(self, orders: Iterable[str]) -> None:
        """Send these payments, each until it is taken."""
        async with httpx.AsyncClient(timeout=ANSWER_WITHIN) as client, asyncio.timeout(PATIENCE):
            for order in orders:
                await self._send(client, int(order.removeprefix("order_")))

    async def quiet(self) -> None:
        """Wait until the store has nothing left to deliver."""
        async with asyncio.timeout(PATIENCE):
            while True:
                async with self.store() as store:
                    found = (await store.counts()).values()
                    if found and all(each.pending == 0 for each in found):
                        return
                await asyncio.sleep(0.05)

    def store(self) -> "_Opened":
        return _Opened(self.settings)

    # disasters

    def of_replicas(self) -> list[Disaster]:
        """One replica after another is killed, or stands still for longer than its leases last."""
        return [self.kill_replica, self.kill_replica, self.kill_replica, self.outlast_a_lease]

    def of_connections(self) -> list[Disaster]:
        """Connections are cut, and Redis does not answer for a while."""
        return [self.cut_connections, self.cut_connections, self.cut_connections, self.pause_redis]

    async def kill_replica(self) -> None:
        replica = self._chance.choice(self.replicas)
        replica.kill()
        replica.start()

    async def outlast_a_lease(self) -> None:
        resume = self._chance.choice(self.replicas).pause()
        await asyncio.sleep(1.5 * LEASE / 1000)
        resume()

    async def cut_connections(self) -> None:
        assert self._server is not None
        async with self._redis:
            with suppress(RedisError), self._server.client() as client:
                client.client_kill_filter(_type="normal", skipme=True)

    async def pause_redis(self) -> None:
        assert self._server is not None
        async with self._redis:
            self._server.pause()
            await asyncio.sleep(0.3)
            self._server.resume()

    async def kill_redis(self) -> None:
        assert self._server is not None
        async with self._redis:
            self._server.kill()
            self._server.start(wait=False)

    async def cut_power(self) -> None:
        """Kill Redis and take from its disk what `everysec` had not had to put there yet."""
        assert self._server is not None
        async with self._redis:
            await asyncio.to_thread(self._server.wait)
            log = _append_only_file(self._server)
            on_disk, taken = log.stat().st_size, len(self.accepted)

            async def enough_is_not_on_disk() -> bool:
                return len(self.accepted) >= taken + LOSES

            await until(enough_is_not_on_disk)
            self._server.kill()
            os.truncate(log, on_disk)
            self._server.start(wait=False)

    # senders

    async def _all_up(self, client: httpx.AsyncClient) -> bool:
        return all([await each.is_up(client) for each in self.replicas])

    async def _send_on(self, client: httpx.AsyncClient) -> None:
        while not self._over:
            await self._send(client, next(self._numbers))
            await asyncio.sleep(BETWEEN)

    async def _send(self, client: httpx.AsyncClient, number: int) -> None:
        """Do as a sender does: send it again, to whichever replica, until one says that it has it."""
        body = payment(number)
        while True:
            url = f"{self._chance.choice(self.replicas).url}/webhooks/stripe"
            with suppress(httpx.TransportError):
                if (await client.post(url, content=body, headers=sign(STRIPE, body, time.time()))).is_success:
                    self.accepted.add(f"order_{number}")
                    return
            await asyncio.sleep(self._chance.uniform(0, 0.1))


@contextmanager
def storm_over_redis(folder: Path, fsync: str, *, seed: int, replicas: int = 4) -> Iterator[Storm]:
    """Start that many replicas on a Redis whose `appendfsync` is given, and collectors that refuse half."""
    server = Server("--appendonly", "yes", "--appendfsync", fsync, "--save", "").start()
    try:
        with _storm(server.url, folder, replicas, server, seed) as storm:
            yield storm
    finally:
        server.remove()


@contextmanager
def storm_over_sqlite(folder: Path, *, seed: int) -> Iterator[Storm]:
    """Start one gateway on an embedded store, and collectors that refuse half."""
    with _storm(f"sqlite:///{folder / 'gateway.db'}", folder, 1, None, seed) as storm:
        yield storm


@contextmanager
def _storm(store: str, folder: Path, replicas: int, server: Server | None, seed: int) -> Iterator[Storm]:
    collector = Collector(REFUSES, seed)
    with running(collector.app()) as sink:
        settings = environment(store, folder, sink)
        nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.replicas.nursery"],
            env=settings,
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with nursery:
            storm = Storm(settings, nursery, folder, server, collector, seed)
            for _ in range(replicas):
                storm.add_replica()
            yield storm


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.02)


def _append_only_file(server: Server) -> Path:
    with server.client() as client:
        folder = Path(client.config_get("dir")["dir"])
    return max(folder.glob("appendonlydir/*.incr.aof"), key=lambda file: file.stat().st_mtime)


async def _strike(disaster: Disaster, instant: float) -> None:
    await asyncio.sleep(instant)
    await disaster()


class _Opened:
    """The store, as a command of an operator's opens it."""

    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = load_settings(settings)

    async def __aenter__(self) -> Store:
        sealer = Sealer(self._settings.master_key())
        self._store = await open_store(self._settings, sealer, exclusive=False)
        return self._store

    async def __aexit__(self, *_: object) -> None:
        await self._store.close()
