"""Calls to Redis: where it is, how concurrent calls share round trips, and what is said when it does not answer.

Callers hand in commands and await their answers. All that arrive during one turn of the event loop, or while earlier
ones are under way, go out in one pipeline (on a cluster: one for each node). Functions that the server does not know,
as after FUNCTION FLUSH or on an empty server, are loaded and called again. When a connection breaks, what was on it
is sent once more, as an idle connection may have died long ago: so a function may run twice for one call, and each is
written so that the second time changes nothing.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from hiredis import pack_command
from msgspec import Struct
from redis import exceptions as failures
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.deliveries import StoreUnavailable
from gateway.sealing import Secret

MAX_BATCH = 512
"""Commands in one pipeline."""
PIPELINES = 2
"""Pipelines under way at once: while the server works on one, the next one is made ready."""
WAITING_PIPELINES = 32
"""The same where pipelines wait for the server's disk: those that do must not hold the others up."""
DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
_FILES = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_OPTIONS = _FILES | {"sentinel_username", "sentinel_password"}
_FORMS = (
    "redis://host:port/db, rediss://host:port/db, unix:///path/to/socket, redis+sentinel://host:port,host:port/service "
    "or redis+cluster://host:port,host:port"
)

Argument = bytes | str | int
Client = Redis | RedisCluster
Topology = Literal["single", "unix", "sentinel", "cluster"]
_Failure = (failures.RedisError, failures.RedisClusterException, OSError, TimeoutError)


class Address(Struct, frozen=True):
    """Where Redis is, and who asks. Printed without secrets."""

    topology: Topology
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    username: str = ""
    password: Secret = Secret("")
    tls: bool = False
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if self.topology == "unix":
            return f"unix://{self.path}"
        scheme = "rediss" if self.tls else "redis"
        named = "" if self.topology == "single" else f"+{self.topology}"
        service = f"/{self.service}" if self.service else ""
        return f"{scheme}{named}://{','.join(f'{host}:{port}' for host, port in self.hosts)}{service}"

    def __repr__(self) -> str:
        return f"Address({self})"


def parse_address(url: str) -> Address:
    """Read a GATEWAY_STORE. Raises `ValueError`, which never repeats the URL: it may hold a password."""
    scheme, _, rest = url.partition("://")
    topology, tls = _SCHEMES.get(scheme, (None, False))
    if topology is None:
        raise ValueError(f"`{scheme}://` is no Redis: write {_FORMS}")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    userinfo, _, hosts = authority.rpartition("@")
    username, _, password = userinfo.partition(":")
    options = tuple(parse_qsl(query))
    if unknown := sorted({name for name, _ in options} - _OPTIONS - {"db"}):
        raise ValueError(f"`{unknown[0]}` is no option of a Redis address; there are {', '.join(sorted(_OPTIONS))}")
    segments = [unquote(each) for each in path.split("/") if each]
    db = dict(options).get("db", "0")
    if topology == "unix":
        return Address(
            topology, path=f"{slash}{unquote(path)}", db=_number(db, "db"),
            username=unquote(username), password=Secret(unquote(password)),
        )  # fmt: skip
    service = segments.pop(0) if topology == "sentinel" and segments else ""
    if topology == "sentinel" and not service:
        raise ValueError("Sentinel is asked for a service by its name: redis+sentinel://host:port,host:port/service")
    if topology == "cluster" and segments:
        raise ValueError("a cluster has no numbered databases: end the address after the hosts")
    return Address(
        topology,
        tuple(_host(each, SENTINEL_PORT if topology == "sentinel" else DEFAULT_PORT) for each in hosts.split(",")),
        service=service,
        db=_number(segments[0] if segments else db, "db"),
        username=unquote(username),
        password=Secret(unquote(password)),
        tls=tls,
        options=options,
    )


_SCHEMES: Mapping[str, tuple[Topology, bool]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("unix", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}


def _host(text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname:
            return parts.hostname, parts.port or port
    except ValueError:
        pass
    raise ValueError(f"an address of Redis names its hosts as host:port, with commas between: {_FORMS}")


def _number(text: str, name: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{name} of a Redis address is a number")
    return int(text)


class _Command(Struct):
    arguments: tuple[Argument, ...]
    key: bytes
    durable: bool
    answer: "asyncio.Future[Answer]"
    again: bool = False


class Answer(Struct, frozen=True):
    """What the server said; `again`: the command was sent twice, so this may be the second answer to it."""

    value: Any
    again: bool


class Calls:
    """A connection to Redis, shared by all that run on one event loop."""

    def __init__(self, address: Address, library: str, version: str, *, answer_within: float, wait_aof: bool) -> None:
        self._address = address
        self._library = library
        self._prefix = f"gateway_{version}_"
        self._timeout = answer_within
        self._wait_aof = wait_aof
        self._lanes = WAITING_PIPELINES if wait_aof else PIPELINES
        self._sentinel: Sentinel | None = None
        self.client = self._connect()
        self._waiting: list[_Command] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._looking = asyncio.Lock()

    async def close(self) -> None:
        """Wait for what is under way and let go of the connections."""
        while self._under_way or self._waiting:
            await asyncio.sleep(0)
            await asyncio.gather(*self._under_way, return_exceptions=True)
        await self.client.aclose()
        for each in self._sentinel.sentinels if self._sentinel else ():
            await each.aclose()

    async def call(self, function: str, key: bytes, *arguments: Argument, durable: bool = False) -> Any:
        """Call a function on a key. Raises `StoreUnavailable`."""
        return (await self.ask(function, key, *arguments, durable=durable)).value

    def ask(self, function: str, key: bytes, *arguments: Argument, durable: bool = False) -> "asyncio.Future[Answer]":
        """Call a function on a key, and also say whether it was called again.

        `durable`: with WAITAOF, the answer comes only when what the function wrote is on the server's disk.
        """
        return self._submit(("FCALL", self._prefix + function, 1, key, *arguments), key, durable=durable)

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of keys, in one round trip (on a cluster: one for each node)."""
        if not isinstance(self.client, RedisCluster):
            return cast("list[bytes | None]", (await self._submit(("MGET", *keys), keys[0])).value)
        answers = await asyncio.gather(*(self._submit(("GET", key), key) for key in keys))
        return [answer.value for answer in answers]

    async def fields(self, key: bytes) -> dict[bytes, bytes]:
        """Return a whole hash."""
        answer = (await self._submit(("HGETALL", key), key)).value
        if isinstance(answer, dict):  # the cluster's client makes one
            return answer
        return dict(zip(answer[::2], answer[1::2], strict=True))

    async def load(self) -> None:
        """Load the functions where they are missing."""
        for node in await self.primaries():
            try:
                await node("FUNCTION", "LOAD", self._library)
            except failures.ResponseError as error:
                if "already exists" not in str(error):
                    raise

    async def primaries(self) -> "list[Node]":
        """Return all servers that take writes."""
        if isinstance(self.client, RedisCluster):
            await self.client.initialize()
            return [Node(self.client, each) for each in self.client.get_primaries()]
        return [Node(self.client, None)]

    def unavailable(self, error: BaseException) -> StoreUnavailable:
        """Say in words why Redis did not do it."""
        return StoreUnavailable(f"{self._address}: {explained(error)}")

    def _submit(
        self, arguments: tuple[Argument, ...], key: bytes, *, durable: bool = False
    ) -> "asyncio.Future[Answer]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append(_Command(arguments, key, durable and self._wait_aof, future))
        self._schedule(loop)
        return future

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting and not self._scheduled and len(self._under_way) < self._lanes:
            self._scheduled = True
            loop.call_soon(self._send, loop)

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = False
        batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        task = loop.create_task(self._run(batch))
        self._under_way.add(task)
        task.add_done_callback(self._sent)
        self._schedule(loop)

    def _sent(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        self._schedule(task.get_loop())

    async def _run(self, batch: list[_Command]) -> None:
        try:
            results = await self._execute(batch)
            missing = [index for index, result in enumerate(results) if _unknown_function(result)]
            if missing:
                await self.load()
                for index, result in zip(missing, await self._execute([batch[i] for i in missing]), strict=True):
                    results[index] = result
        except _Failure as error:
            results = [error] * len(batch)
        except BaseException as error:
            for each in batch:
                _reject(each.answer, self.unavailable(error))
            raise
        for each, result in zip(batch, results, strict=True):
            if isinstance(result, BaseException):
                _reject(each.answer, self.unavailable(result))
            elif not each.answer.done():  # its caller may have been cancelled meanwhile
                each.answer.set_result(Answer(result, each.again))

    async def _execute(self, batch: Sequence[_Command]) -> list[Any]:
        """Send a batch, and what a broken connection left open once more."""
        results = await self._attempt(batch)
        broken = [index for index, result in enumerate(results) if _broken(result)]
        if broken:
            await self._look_again()
            for index in broken:
                batch[index].again = True
            for index, result in zip(broken, await self._attempt([batch[i] for i in broken]), strict=True):
                results[index] = result
        if any(isinstance(result, failures.ReadOnlyError) for result in results):
            # What was the primary is a replica now: another connection may lead to its successor.
            await self._look_again()
        return results

    async def _attempt(self, batch: Sequence[_Command]) -> list[Any]:
        try:
            # Each answer has a time limit of its own; this one is for all of them and for the way to the server.
            async with asyncio.timeout(3 * self._timeout):
                if isinstance(self.client, RedisCluster):
                    return await self._pipe_to_nodes(self.client, batch)
                return await self._pipe(self.client, batch)
        except _Failure as error:
            return [error] * len(batch)

    async def _pipe(self, client: Redis, batch: Sequence[_Command]) -> list[Any]:
        commands = [each.arguments for each in batch]
        if any(each.durable for each in batch):
            commands.append(self._wait())
        # A pipeline of the client's own packs in Python, which takes longer than all else here together.
        packed = b"".join(pack_command(cast("Any", each)) for each in commands)
        connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(packed)
            results = [await _answer(connection) for _ in commands]
        except BaseException:
            await connection.disconnect()  # what else is on its way would be taken for an answer to the next command
            raise
        finally:
            await client.connection_pool.release(connection)
        return self._waited(batch, results[: len(batch)], results[len(batch) :])

    async def _pipe_to_nodes(self, client: RedisCluster, batch: Sequence[_Command]) -> list[Any]:
        await client.initialize()
        nodes = [client.nodes_manager.get_node_from_slot(client.keyslot(each.key)) for each in batch]
        waits = {node.name: node for node, each in zip(nodes, batch, strict=True) if each.durable}
        pipe = client.pipeline(transaction=False)
        for node, each in zip(nodes, batch, strict=True):
            # The node is named, as the client would ask the server for the keys of each call of a function.
            pipe.execute_command(*each.arguments, target_nodes=node)
        for node in waits.values():
            pipe.execute_command(*self._wait(), target_nodes=node)
        results = await pipe.execute(raise_on_error=False)
        return self._waited(batch, results[: len(batch)], results[len(batch) :])

    def _wait(self) -> tuple[Argument, ...]:
        return "WAITAOF", 1, 0, int(self._timeout * 800)

    @staticmethod
    def _waited(batch: Sequence[_Command], results: list[Any], waited: list[Any]) -> list[Any]:
        """Let what had to be on disk fail where it is not."""
        failed = next((each for each in waited if isinstance(each, Exception) or each[0] < 1), None)
        if failed is None:
            return results
        error = failed if isinstance(failed, Exception) else failures.TimeoutError("the append-only file is not synced")
        return [
            error if each.durable and not isinstance(result, Exception) else result
            for each, result in zip(batch, results, strict=True)
        ]

    async def _look_again(self) -> None:
        """Forget idle connections and, of a cluster, who serves what."""
        async with self._looking:
            if isinstance(self.client, RedisCluster):
                await self.client.nodes_manager.initialize()
            else:
                await self.client.connection_pool.disconnect(inuse_connections=False)

    def _connect(self) -> Client:
        address = self._address
        options: dict[str, Any] = {
            "protocol": 2,
            "username": address.username or None,
            "password": address.password.reveal() or None,
            "socket_timeout": self._timeout,
            "socket_connect_timeout": self._timeout,
            "retry": Retry(NoBackoff(), 0),
        }
        if address.topology == "unix":
            return Redis(unix_socket_path=address.path, db=address.db, **options)
        given = dict(address.options)
        if address.tls:
            options |= {"ssl": True} | {name: given[name] for name in _FILES if name in given}
        if address.topology == "cluster":
            return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in address.hosts], **options)
        if address.topology == "single":
            ((host, port),) = address.hosts[:1]
            return Redis(host=host, port=port, db=address.db, **options)
        asks = options | {
            "username": given.get("sentinel_username"),
            "password": given.get("sentinel_password"),
        }
        self._sentinel = Sentinel(list(address.hosts), sentinel_kwargs=asks, **options)  # type: ignore[no-untyped-call]
        return cast("Redis", self._sentinel.master_for(address.service, db=address.db))


class Node(Struct, frozen=True):
    """One server that takes writes."""

    client: Client
    node: Any

    @property
    def name(self) -> str:
        """What a message calls it: nothing, where there is but one."""
        return f"{self.node.name}: " if self.node is not None else ""

    async def __call__(self, *command: Argument) -> Any:
        """Send it one command."""
        named = {"target_nodes": self.node} if self.node is not None else {}
        return await cast("Awaitable[Any]", self.client.execute_command(*command, **named))


def explained(error: BaseException) -> str:
    """Return what happened, and what to do about it. Redis repeats no secret in its errors, and nor does this."""
    text = " ".join(str(error).split()) or type(error).__name__
    for type_, words in _BY_TYPE:
        if isinstance(error, type_):
            return f"{words} ({text})"
    for code, words in _BY_CODE:
        if text.startswith(code):
            return f"{words} ({text})"
    return f"{type(error).__name__}: {text}"


_BY_TYPE: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (failures.OutOfMemoryError, "it is full: give it more memory, or keep webhooks for less long (GATEWAY_RETENTION)"),
    (failures.ReadOnlyError, "it is a replica and takes no writes: name the primary, or use Sentinel or Cluster"),
    (failures.BusyLoadingError, "it is loading its data and will be back by itself"),
    (
        (failures.AuthenticationError, failures.AuthorizationError, failures.AuthenticationWrongNumberOfArgsError),
        "it refuses the user name or the password in GATEWAY_STORE",
    ),
    (failures.NoPermissionError, "its ACL does not let this user do it"),
    (failures.MasterDownError, "its primary is away"),
    (failures.ClusterDownError, "the cluster is down: some of its slots have no primary"),
    (failures.SlotNotCoveredError, "the cluster is down: some of its slots have no primary"),
    (failures.TryAgainError, "it is moving slots between nodes"),
    ((failures.TimeoutError, TimeoutError), "it did not answer in time"),
    ((failures.ConnectionError, OSError), "it cannot be reached"),
)
_BY_CODE = (
    ("MISCONF", "it refuses writes, as it cannot save to its disk: see its log"),
    ("NOREPLICAS", "it refuses writes, as too few replicas follow it"),
    ("BUSY", "it is busy with a script of somebody's"),
    ("NOAUTH", "it asks for a password: write it into GATEWAY_STORE"),
    ("WRONGPASS", "it refuses the user name or the password in GATEWAY_STORE"),
    ("LOADING", "it is loading its data and will be back by itself"),
)


async def _answer(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except failures.ResponseError as error:
        return error


def _broken(result: object) -> bool:
    return isinstance(result, (failures.ConnectionError, OSError)) and not isinstance(
        result, (failures.AuthenticationError, failures.BusyLoadingError, TimeoutError)
    )


def _unknown_function(result: object) -> bool:
    return isinstance(result, failures.ResponseError) and "Function not found" in str(result)


def _reject(future: "asyncio.Future[Answer]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
