"""A folder that the kubelet fills from a ConfigMap, and replaces when that changes, is edited like any other."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.mappings import bundled
from gateway.reloading import MappingsInForce
from gateway.settings import Environment

WITHIN = 30.0
BROKEN = ("money_minor(data.object.amount,", "monye(data.object.amount,")


class Mounted:
    """The folder that a ConfigMap's volume is: files are links into `..data`, itself a link that is replaced whole."""

    def __init__(self, folder: Path, files: Path) -> None:
        self._folder = folder
        self._times = 0
        folder.mkdir(parents=True)
        self.texts = {file.name: file.read_text() for file in files.glob("*.yaml")}
        self.write()

    def write(self, **changed: str) -> None:
        """Do what the kubelet does: write all files anew, then swap one link, then take the old ones away."""
        self._times += 1
        made = self._folder / f"..2026_{self._times}"
        made.mkdir()
        for name, text in (self.texts | changed).items():
            (made / name).write_text(text)
        link = self._folder / "..data_tmp"
        link.symlink_to(made.name)
        link.rename(self._folder / "..data")
        for name in self.texts:
            if not (self._folder / name).is_symlink():
                (self._folder / name).symlink_to(f"..data/{name}")
        shutil.rmtree(self._folder / f"..2026_{self._times - 1}", ignore_errors=True)


def mounted(folder: Path) -> Mounted:
    """Mount the bundled mappings as the chart does, sources and destinations apart; return the sources."""
    Mounted(folder / "destinations", bundled() / "destinations")
    return Mounted(folder / "sources", bundled() / "sources")


@contextmanager
def followed(mappings: MappingsInForce) -> Iterator[asyncio.Event]:
    """Follow the folder as `--reload` does; the event tells that other mappings came into force."""
    swapped = asyncio.Event()
    following = asyncio.create_task(mappings.follow(swapped.set, watch=True))
    try:
        yield swapped
    finally:
        following.cancel()


async def test_an_edit_of_the_configmap_is_in_force_without_a_restart(tmp_path: Path) -> None:
    sources = mounted(tmp_path)
    mappings = MappingsInForce(tmp_path, Environment({}))
    before = {name: each.version for name, each in mappings.current.sources.items()}
    with followed(mappings) as swapped:
        sources.write(**{"stripe.yaml": f"{sources.texts['stripe.yaml']}\n# edited\n"})
        await asyncio.wait_for(swapped.wait(), WITHIN)
    after = {name: each.version for name, each in mappings.current.sources.items()}
    assert {name for name in before if before[name] != after[name]} == {"stripe"}


async def test_a_broken_edit_of_the_configmap_changes_nothing_until_it_is_mended(tmp_path: Path) -> None:
    sources = mounted(tmp_path)
    mappings = MappingsInForce(tmp_path, Environment({}))
    good = mappings.current
    with followed(mappings) as swapped:
        assert BROKEN[0] in sources.texts["stripe.yaml"]
        sources.write(**{"stripe.yaml": sources.texts["stripe.yaml"].replace(*BROKEN)})
        async with asyncio.timeout(WITHIN):
            while mappings.problem is None:  # noqa: ASYNC110 -- nothing else tells of a refusal
                await asyncio.sleep(0.05)
        assert "unknown function `monye`" in mappings.problem
        assert mappings.current is good
        sources.write()
        await asyncio.wait_for(swapped.wait(), WITHIN)
    assert mappings.problem is None
