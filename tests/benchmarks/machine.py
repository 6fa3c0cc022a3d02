"""What a figure was measured on: the machine, its disk, what is installed, and how busy it was."""

import os
import platform
import re
import sqlite3
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from msgspec import Struct

from tests.benchmarks.recipe import locked, node
from tests.stores.servers import binary

PACKAGES = (
    "litestar",
    "uvicorn",
    "uvloop",
    "httptools",
    "msgspec",
    "httpx",
    "redis",
    "cryptography",
    "jmespath",
    "fastapi",
    "stripe",
)
SYNCS = 40


class Machine(Struct, frozen=True):
    """Where and under which circumstances a part ran. `load` are the averages of 1, 5 and 15 minutes at its start."""

    processor: str
    cores: int
    memory: float
    """GB."""
    system: str
    disk: str
    """The kind of file system that stores were put on."""
    fsync: float
    """Milliseconds to append 4 KB to a file there and have it on the disk: the median."""
    versions: dict[str, str]
    date: str
    load: tuple[float, float, float]


def machine() -> Machine:
    """Look at this machine, now."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        system=f"{platform.system()} {platform.release()}",
        disk=_file_system(Path(tempfile.gettempdir()).resolve()),
        fsync=_fsync(),
        versions=_versions(),
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        load=os.getloadavg(),
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _file_system(folder: Path) -> str:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return max((len(place), kind) for place, kind in mounts if folder.is_relative_to(place))[1]


def _fsync() -> float:
    took = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(SYNCS):
            started = time.perf_counter()
            file.write(bytes(4_096))
            file.flush()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - started)
    return round(statistics.median(took) * 1000, 3)


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version(), "SQLite": sqlite3.sqlite_version}
    found["Redis"] = _said_by(binary(), "--version", r"v=([\d.]+)")
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["Node"] = _said_by(str(node()), "--version", r"v([\d.]+)")
    return found | {f"{name} (npm)": each for name, each in locked().items()}


def _said_by(program: str, option: str, pattern: str) -> str:
    said = subprocess.run([program, option], capture_output=True, text=True, check=True).stdout
    found = re.search(pattern, said)
    return found[1] if found else said.strip()
