"""docs/configuration.md names every key there is, where it belongs, with its default, and no key that there isn't."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hal.registry import load
from station import config, images, recipe_file
from station.signer import profiles
from station.steps import STEPS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/configuration.md").read_text()
BUILT_IN = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["hallmark.drivers"]
ROW = re.compile(r"^\| `(\w+)` \|(?: ([^|]*) \|)?", re.MULTILINE)
SECTIONS: dict[str, Any] = {
    "[station]": config.StationSection,
    "[[discovery]]": config.DiscoverySection,
    "[[nest]]": config.NestSection,
    "[signer]": config.SignerSection,
    "[device_keys]": config.DeviceKeysSection,
    "[escrow]": config.EscrowSection,
    "[trust]": config.TrustSection,
    "[[sink]]": config.SinkSection,
    "[[work_order]]": config.WorkOrderSection,
    "[orders]": config.OrdersSection,
    "[status]": config.StatusSection,
    "[policy]": config.PolicySection,
    "[audit]": config.AuditSection,
    "[pool]": config.PoolSection,
    "Recipes": recipe_file.RecipeFile,
    "[subject]": profiles.SubjectSection,
    "[validity]": profiles.ValiditySection,
    "[key]": profiles.KeySection,
    "[extensions]": profiles.ExtensionsSection,
    **{name: step.options for name, step in STEPS.items()},
}
UNSET: Any = object()


def rows(heading: str) -> dict[str, str]:
    """Key to default, of the table below a heading."""
    begin = rf"^(?:#+ {re.escape(heading)}|\*\*{re.escape(heading)}\*\*)$"
    match = re.search(rf"{begin}(.*?)(?=^#|^\*\*\[|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, f"the page has no heading {heading}"
    return {key: default.strip() for key, default in ROW.findall(match[1])}


def default(text: str) -> Any:
    """A default's value as the page writes it; UNSET where it writes none, or one in words."""
    if not (text.startswith("`") and text.endswith("`")):
        return UNSET
    return tomllib.loads(f"x = {text.strip('`')}")["x"]


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_on_the_page_with_its_default(heading: str) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(SECTIONS[heading])}
    written = rows(heading)
    assert set(written) == set(fields)
    for name, field in fields.items():
        if field.required:
            assert written[name] == "required", name
        elif (said := default(written[name])) is not UNSET:
            actual = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            assert said == actual, name


def test_every_section_of_station_toml_is_on_the_page() -> None:
    sections = {name.strip("[]") for name in SECTIONS if name.startswith("[")}
    assert {field.encode_name for field in msgspec.structs.fields(config.StationFile)} <= sections
    assert {field.encode_name for field in msgspec.structs.fields(profiles.ProfileFile)} - sections == {
        "key_type"
    }
    assert "key_type" in rows("Certificate profiles")


def test_the_manifests_keys_are_on_the_page() -> None:
    named = [*msgspec.structs.fields(images.Manifest), *msgspec.structs.fields(images.ManifestEntry)]
    assert set(rows("Images")) == {field.encode_name for field in named}


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_drivers_settings_are_on_the_page_with_their_defaults(name: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(load([name]).get(name).settings)}
    written = rows(name)
    assert set(written) == set(fields)
    for key, field in fields.items():
        if field.default is dataclasses.MISSING:
            assert written[key] == "required", key
        elif (said := default(written[key])) is not UNSET:
            assert said == (list(field.default) if isinstance(field.default, tuple) else field.default), key
