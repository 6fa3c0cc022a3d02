"""What the tests of the shared store share: a server of their own that may be harmed, and the store on it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.store.redis import RedisStore
from tests.stores.harness import FINGERPRINT
from tests.stores.servers import Server

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(*DURABLE).start()
    yield server
    server.remove()


@pytest.fixture
async def opened(server: Server) -> AsyncIterator[RedisStore]:
    store = await RedisStore.open(server.url, FINGERPRINT, answer_within=10.0)
    yield store
    await store.close()
