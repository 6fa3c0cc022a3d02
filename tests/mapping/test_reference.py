"""The language's reference page names every function and every key that a file may have."""

import re
import textwrap
from pathlib import Path

import pytest

from gateway.checking import mistakes, types_of
from gateway.destinations import DestinationSpec, compile_destination
from gateway.documents import parse, shape
from gateway.functions import MAPPING
from gateway.mapping_tests import LinkSpec, TestSpec, TestsSpec, WebhookSpec, load_tests, run_test
from gateway.mappings import bundled, copy_bundled, load_mappings
from gateway.settings import Settings
from gateway.signatures import VerifySpec
from gateway.sources import RuleSpec, SetupSpec, SourceSpec, compile_source

MAPPINGS = load_mappings(bundled(), lambda _: None)
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
            for spec in (SourceSpec, SetupSpec, RuleSpec, DestinationSpec, VerifySpec, TestSpec, WebhookSpec, LinkSpec)
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


@pytest.mark.parametrize(("source", "written"), [("stripe", '"enabled_events[]={}"'), ("shopify", "`{}`")])
def test_the_readme_subscribes_to_every_type_that_a_rule_names(source: str, written: str) -> None:
    types = types_of(MAPPINGS.sources[source])
    assert [type for type in types if written.format(type) not in README] == []


def test_every_setting_of_a_bundled_file_is_in_the_readme() -> None:
    texts = "".join(file.read_text() for file in bundled().glob("*/*.yaml"))
    missing = {name for name in re.findall(r"\$\{([A-Z0-9_]+)", texts) if f"`{name}`" not in README}
    assert missing == set()


def blocks(kind: str) -> list[str]:
    """Return the fenced blocks of the language's page."""
    return [textwrap.dedent(each) for each in re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)]


async def test_the_provider_of_the_page_works_as_the_page_says(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    copy_bundled(folder)
    source = next(each for each in blocks("yaml") if "source: acme" in each)
    tests = next(each for each in blocks("yaml") if "sample: payment.completed" in each)
    files = {
        "samples/acme/payment.completed.json": blocks("json")[0],
        "sources/acme.yaml": source,
        "tests/acme/payments.yaml": tests,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    assert mistakes(folder, lambda _: None) == []
    mappings = load_mappings(folder, lambda _: None)
    (test,) = load_tests(folder, mappings, folder / "tests/acme")
    assert (await run_test(test, mappings, folder)).failures == ()


async def test_the_collector_of_the_page_works_as_the_page_says(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    copy_bundled(folder)
    (folder / "destinations/acme_stats.yaml").write_text(
        next(each for each in blocks("yaml") if each.startswith("destination: acme_stats"))
    )
    file = folder / "tests/stripe/acme_stats.yaml"
    file.write_text(next(each for each in blocks("yaml") if "a purchase as Acme Stats" in each))
    assert mistakes(folder, lambda _: None) == []
    mappings = load_mappings(folder, {"ACME_STATS_KEY": "private"}.get)
    (test,) = load_tests(folder, mappings, file)
    assert (await run_test(test, mappings, folder)).failures == ()


def test_the_second_instance_of_the_page_is_like_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    copy_bundled(folder)
    (folder / "destinations/nexly_eu.yaml").write_text(next(each for each in blocks("yaml") if "like: nexly" in each))
    settings = {"NEXLY_EU_APP_ID": "eu", "NEXLY_EU_INGEST_KEY": "key"}
    mappings = load_mappings(folder, settings.get)
    assert (list(mappings.destinations), "nexly" in mappings.off) == (["nexly_eu"], True)
    second = mappings.destinations["nexly_eu"]
    assert (second.product, second.secrets["app_id"].reveal()) == ("nexly", "eu")


@pytest.mark.parametrize("text", [each for each in blocks("yaml") if "acme" not in each and "like:" not in each])
def test_every_other_block_of_the_page_is_what_it_says_it_is(text: str) -> None:
    if text.startswith("source:"):
        assert compile_source(parse(text, "page"), "v", lambda _: None).rules
    elif text.startswith("destination:"):
        assert compile_destination(parse(text, "page"), "v", lambda _: None).name
    else:
        assert shape(parse(text, "page"), TestsSpec).tests
