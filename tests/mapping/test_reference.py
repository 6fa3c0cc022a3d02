"""The language's reference page names every function and every key that a file may have."""

from pathlib import Path

import pytest

from gateway.destinations import DestinationSpec
from gateway.functions import MAPPING
from gateway.mappings import bundled
from gateway.settings import Settings
from gateway.signatures import VerifySpec
from gateway.sources import RuleSpec, SourceSpec

PAGE = (bundled() / "README.md").read_text()
README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(MAPPING))
def test_every_function_is_documented(name: str) -> None:
    assert f"`{name}`" in PAGE or f"`{name}(" in PAGE


@pytest.mark.parametrize(
    "key",
    sorted(
        {
            name
            for spec in (SourceSpec, RuleSpec, DestinationSpec, VerifySpec)
            for name in spec.__struct_encode_fields__
            if name != "separator"  # shown by the pattern of `signature` itself
        }
    ),
)
def test_every_key_is_documented(key: str) -> None:
    assert f"`{key}`" in PAGE or f"{key}:" in PAGE


@pytest.mark.parametrize(
    "name", [f"GATEWAY_{name.upper()}" for name in Settings.__struct_fields__ if name != "environment"]
)
def test_every_setting_is_in_the_readme(name: str) -> None:
    assert f"`{name}`" in README


def test_every_setting_of_a_bundled_file_is_in_the_readme() -> None:
    import re

    texts = "".join(file.read_text() for file in bundled().glob("*/*.yaml"))
    missing = {name for name in re.findall(r"\$\{([A-Z_]+)", texts) if f"`{name}`" not in README}
    assert missing == set()
