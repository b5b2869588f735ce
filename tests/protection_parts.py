"""A recipe for a board that keeps its own key, checked as a station would, for tests of the policy on key places."""

from __future__ import annotations

import shutil
from pathlib import Path

from station.config import load_configuration
from station.paths import Paths
from station.recipe import Recipe
from station.recipe_file import load_recipe

ROOT = Path(__file__).resolve().parents[1]
REASON = "prototype run, boards stay in the laboratory"
STATION = """\
[station]
name = "s"
drivers = ["serial", "smp-serial", "tcti-tunnel", "pkcs11"]
[signer]
settings = { module = "/m.so", token = "t" }
"""
RECIPE = """\
sku = "gw"
drivers = { link = "smp-serial" }
[settings.link]
key_storage = "%s"
[[step]]
use = "key-identity"
[[step]]
use = "certificate"
%splace = "link"
"""


def checked(
    tmp_path: Path,
    storage: str,
    profile: str,
    more: str = "",
    station: str = "",
    certificate: str | None = None,
) -> Recipe:
    """`certificate`: what its step says of the source, in the place of the profile."""
    paths = Paths(tmp_path)
    folder = paths.configuration.parent
    if not folder.exists():
        (folder / "recipes").mkdir(parents=True)
        shutil.copytree(ROOT / "config/profiles", folder / "profiles")
    source = f'profile = "{profile}"\n' if certificate is None else certificate.partition("[[step]]")[0]
    more += certificate[len(source) :] if certificate else ""
    paths.configuration.write_text(STATION + station)
    (folder / "recipes/r.toml").write_text(RECIPE % (storage, source) + more)
    return load_recipe(load_configuration(paths, signed=False), "r.toml")
