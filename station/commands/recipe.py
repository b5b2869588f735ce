"""`hallmark recipe`: check and show recipes, and sign the manifest of firmware images."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

from hal.errors import ConfigError, RecipeError
from station.config import load_configuration
from station.images import MANIFEST
from station.recipe import Recipe
from station.recipe_file import load_recipe
from station.signed import load_private_key, write_signed

HELP = "check or show recipes, sign the images' manifest"


def arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for what, text in (
        ("check", "check recipes without a board"),
        ("show", "show what a recipe does, step by step"),
    ):
        one = sub.add_parser(what, help=text)
        one.add_argument(
            "recipes", nargs="*", metavar="FILE", help="names in the recipes folder (default: all nests')"
        )
        one.add_argument("--json", action="store_true", help="for scripts")
    sign = sub.add_parser("sign-images", help="write and sign manifest.json for images")
    sign.add_argument("folder", type=Path, help="the images folder")
    sign.add_argument(
        "images", nargs="+", metavar="FILE=VERSION", help="image file names in it, with their versions"
    )
    sign.add_argument(
        "--key",
        type=Path,
        required=True,
        help="private key (Ed25519, EC or RSA), PEM, not encrypted (keep it offline)",
    )


def run(args: argparse.Namespace) -> int:
    if args.what == "sign-images":
        return _sign(args.folder, args.images, args.key)
    configuration = load_configuration(args.paths, signed=False)
    names = args.recipes or sorted({nest.recipe for nest in configuration.file.nest})
    if not names:
        print("No nest names a recipe; name one on the command line.", file=sys.stderr)
        return 1
    found, failed = [], False
    for name in names:
        try:
            found.append(load_recipe(configuration, name))
        except RecipeError as error:
            failed = True
            for problem in (error, *error.others):
                print(problem, file=sys.stderr)
    for recipe in found:
        for warning in recipe.warnings:
            print(warning, file=sys.stderr)
    if args.json:
        print(json.dumps([_summary(recipe) for recipe in found], indent=2))
    else:
        for recipe in found:
            print(f"{recipe.name}: {recipe.sku}, pass {recipe.recipe_pass}: {len(recipe.steps)} steps, fine")
            if args.what == "show":
                _show(recipe)
    return 2 if failed else 0


def _summary(recipe: Recipe) -> dict[str, object]:
    return {
        "recipe": recipe.name,
        "sku": recipe.sku,
        "pass": recipe.recipe_pass,
        "sha256": recipe.digest,
        "drivers": {plan.role: plan.driver for plan in recipe.drivers},
        "keys": {role: kept.value for role, kept in recipe.protections.items()},
        "steps": {item.step.use: [action.name for action in item.actions] for item in recipe.steps},
        "warnings": [
            {"file": item.file, "line": item.line, "key": item.key, "message": item.message}
            for item in recipe.warnings
        ],
    }


def _show(recipe: Recipe) -> None:
    for plan in recipe.drivers:
        kept = recipe.protections.get(plan.role)
        print(f"  opens {plan.role}: {plan.driver}{f' (keeps keys as {kept.value})' if kept else ''}")
    for number, item in enumerate(recipe.steps, 1):
        print(f"  {number}. {item.step.use}: {item.step.summary}")
        print(f"     {', '.join(action.name for action in item.actions)}")


def _sign(folder: Path, images: list[str], key: Path) -> int:
    """manifest.json and its detached signature."""
    entries = []
    for item in images:
        name, _, version = item.partition("=")
        if not version or "/" in name:
            raise ConfigError(f"{item!r}; expected FILE=VERSION with a file name in {folder}")
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise ConfigError(f"can't be read ({error.strerror})", file=str(folder / name)) from error
        digest = hashlib.sha256(data).hexdigest()
        entries.append({"name": name, "version": version, "sha256": digest, "size": len(data)})
    manifest = json.dumps({"images": entries}, indent=2).encode() + b"\n"
    write_signed(folder / MANIFEST, manifest, load_private_key(key))
    print(f"{folder / MANIFEST}: {len(entries)} images signed")
    return 0
