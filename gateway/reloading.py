"""The mappings in force, and how an edited folder takes their place: whole, between two webhooks, or not at all.

A folder with a mistake changes nothing; what is wrong with it is logged and kept as `problem` until it is mended.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from gateway.documents import MappingErrors, Variables
from gateway.mappings import Mappings, load_mappings

LOOK_AGAIN = 0.5
"""Seconds between two looks at the folder's files. A look costs some 0.1 ms."""

_LOG = structlog.get_logger(__name__)


class MappingsInForce:
    """The mappings of a folder. `current` is always a whole set that was loaded without a mistake."""

    def __init__(self, path: Path, variables: Variables) -> None:
        """Load what is set up, or raise `MappingErrors`: at the start there is nothing to fall back on.

        The rest, which nobody uses yet, is read as soon as `follow` runs: that takes longer than all else of a start.
        """
        self._path = path
        self._variables = variables
        self._asked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seen = _looks(path)
        self.current = load_mappings(path, variables, only_set_up=True)
        self.all_read = asyncio.Event()
        """Set once all files were read."""
        if not self.current.sources:  # nothing is set up, or something is wrong: it is told now
            self.current = load_mappings(path, variables)
            self.all_read.set()
        self.problem: str | None = None

    def __call__(self) -> Mappings:
        """Return the mappings in force. Who handles one webhook asks once."""
        return self.current

    def ask(self) -> None:
        """Have the folder read again. May be called from a signal handler or another thread."""
        if self._loop is None or self._loop.is_closed():
            self._asked.set()  # nobody waits: whoever begins to follow finds that it was asked for
        else:
            self._loop.call_soon_threadsafe(self._asked.set)

    async def follow(self, swapped: Callable[[], None], *, watch: bool) -> None:
        """Read the folder again whenever asked (and with `watch`, when a file in it changed), until cancelled.

        `swapped` is called each time that other mappings came into force.
        """
        self._loop = asyncio.get_running_loop()
        if not self.all_read.is_set():
            self._asked.set()
        watcher = asyncio.create_task(self._watch()) if watch else None
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                in_force = await self._read()
                self.all_read.set()
                if in_force:
                    swapped()
        finally:
            if watcher is not None:
                watcher.cancel()

    async def _watch(self) -> None:
        """Ask whenever the files are not those that were read last: edited, renamed, or a whole folder replaced.

        The files are looked at, not listened to: notifications are lost between loading and listening, when the
        folder itself is replaced (as a ConfigMap's is), and on network file systems.
        """
        while True:
            if await asyncio.to_thread(_looks, self._path) != self._seen:
                self._asked.set()
            await asyncio.sleep(LOOK_AGAIN)

    async def _read(self) -> bool:
        before = self.current
        self._seen = _looks(self._path)  # before they are read: what is edited meanwhile looks different after
        try:
            # On a thread: webhooks are taken in meanwhile, under the mappings that are still in force.
            mappings = await asyncio.to_thread(load_mappings, self._path, self._variables)
        except MappingErrors as errors:
            self.problem = str(errors)
            _LOG.error("mappings_refused", mistakes=len(errors.diagnostics), first=str(errors.diagnostics[0]))
            return False
        except Exception as error:  # a secret's file that cannot be read, say: whatever it is, it must not end this
            self.problem = f"{type(error).__name__}: {error}"
            _LOG.error("mappings_refused", error=self.problem)
            return False
        self.problem = None
        self.current = mappings
        versions = {name: each.version for name, each in mappings.sources.items()}
        if gone := sorted(before.sources.keys() - versions.keys()):
            _LOG.warning("sources_gone", sources=gone, next_step="their webhooks get 404 from now on")
        _LOG.info("mappings_in_force", versions=versions)
        return True


def _looks(path: Path) -> frozenset[tuple[str, int, int, int]]:
    """Return what tells the folder's mapping files from edited ones: name, inode, size and time of change."""
    seen: set[tuple[str, int, int, int]] = set()
    for kind in ("sources", "destinations"):
        for file in (path / kind).glob("*.y*ml"):
            with suppress(OSError):  # it went away while it was looked at
                stat = file.stat()
                seen.add((f"{kind}/{file.name}", stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return frozenset(seen)
