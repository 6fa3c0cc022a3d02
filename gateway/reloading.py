"""The mappings in force, and how an edited folder takes their place: whole, between two webhooks, or not at all.

A folder with a mistake changes nothing; what is wrong with it is logged and kept as `problem` until it is mended.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from watchfiles import Change, awatch

from gateway.documents import MappingErrors, Variables
from gateway.mappings import Mappings, load_mappings

_LOG = structlog.get_logger(__name__)


class MappingsInForce:
    """The mappings of a folder. `current` is always a whole set that was loaded without a mistake."""

    def __init__(self, path: Path, variables: Variables) -> None:
        """Load the folder, or raise `MappingErrors`: at the start there is nothing to fall back on."""
        self._path = path
        self._variables = variables
        self._asked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.current = load_mappings(path, variables)
        self.problem: str | None = None

    def __call__(self) -> Mappings:
        """Return the mappings in force. Who handles one webhook asks once."""
        return self.current

    def ask(self) -> None:
        """Have the folder read again. May be called from a signal handler or another thread."""
        if self._loop is None:  # nobody waits yet: whoever begins to follow finds that it was asked for
            self._asked.set()
        else:
            self._loop.call_soon_threadsafe(self._asked.set)

    async def follow(self, swapped: Callable[[], Awaitable[None]], *, watch: bool) -> None:
        """Read the folder again whenever asked (and with `watch`, when a file in it changes), until cancelled.

        `swapped` is awaited after each time that other mappings came into force.
        """
        self._loop = asyncio.get_running_loop()
        watcher = asyncio.create_task(self._watch()) if watch else None
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                if await self._read():
                    await swapped()
        finally:
            if watcher is not None:
                watcher.cancel()

    async def _watch(self) -> None:
        async for _ in awatch(self._path, watch_filter=_is_yaml, debounce=200, step=50):
            self._asked.set()

    async def _read(self) -> bool:
        try:
            # On a thread: webhooks are taken in meanwhile, under the mappings that are still in force.
            mappings = await asyncio.to_thread(load_mappings, self._path, self._variables)
        except MappingErrors as errors:
            self.problem = str(errors)
            _LOG.error("mappings_refused", mistakes=len(errors.diagnostics), first=str(errors.diagnostics[0]))
            return False
        self.problem = None
        self.current = mappings
        _LOG.info("mappings_in_force", versions={name: each.version for name, each in mappings.sources.items()})
        return True


def _is_yaml(_: Change, path: str) -> bool:
    return path.endswith((".yaml", ".yml")) and "/tests/" not in path
