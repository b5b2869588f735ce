"""`hallmark check`, `recipe`, `drivers`: what they find without a board, on a bench laid out for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.emulated.bench import layout as files
from drivers.emulated.bench.layout import Layout, NestPlan

OFFLINE = ("check", "--offline")


@pytest.fixture
def bench() -> Iterator[Layout]:
    with tempfile.TemporaryDirectory(prefix="hm-") as folder:
        root = Path(folder)
        nest = NestPlan("A", root / "dev/A", "gw-200.toml")
        layout = Layout(root, (nest,), image_size=4096)
        files.make(layout)
        files.write_station(layout, "http://127.0.0.1:1")
        (layout.etc / "trust/ek/root.pem").write_bytes((layout.officer / "officer.pem").read_bytes())
        yield layout


def hallmark(bench: Layout, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        bench.hallmark(*words),
        env={**os.environ, **bench.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_bench_that_is_right_is_fine(bench: Layout) -> None:
    done = hallmark(bench, *OFFLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fine     recipe: gw-200.toml: gw-200, 7 steps" in done.stdout
    assert "signed" in done.stdout


def test_without_a_signer_the_token_is_what_is_wrong(bench: Layout) -> None:
    done = hallmark(bench, "check", "--json")
    assert done.returncode == 1
    rows = {row["what"]: row for row in json.loads(done.stdout)}
    assert rows["CA token"]["state"] == "error"
    assert rows["CA token"]["hint"]


Damage = Callable[[Layout], object]
CASES: dict[str, tuple[Damage, str, str]] = {
    "an unknown key": (
        lambda bench: edited(bench.etc / "station.toml", "[station]\n", "[station]\ncolour = 1\n"),
        "station.toml:2: station.colour: unknown key",
        "expected one of",
    ),
    "a wrong type": (
        lambda bench: edited(bench.etc / "station.toml", 'name = "bench"', "name = 7"),
        "station.toml:2: station.name",
        "found",
    ),
    "a driver that isn't listed": (
        lambda bench: edited(bench.etc / "station.toml", '"pkcs11", ', ""),
        "signer.driver",
        "station.drivers",
    ),
    "a driver's unknown setting": (
        lambda bench: edited(bench.etc / "station.toml", "interval = 0.1", "intervall = 0.1"),
        "discovery[0].settings.intervall",
        "unknown key",
    ),
    "a missing recipe": (
        lambda bench: (bench.etc / "recipes/gw-200.toml").unlink(),
        "recipes/gw-200.toml",
        "can't be read",
    ),
    "a step that nobody knows": (
        lambda bench: edited(bench.etc / "recipes/gw-200.toml", 'use = "configure"', 'use = "conjure"'),
        "step[4].use",
        "expected one of",
    ),
    "a step that no driver serves": (
        lambda bench: edited(bench.etc / "recipes/gw-200.toml", ', tpm = "tcti-tunnel"', ""),
        "tpm-identity needs one driver with EndorsementIdentity",
        "offered by: none",
    ),
    "a profile that isn't there": (
        lambda bench: edited(bench.etc / "recipes/gw-200.toml", '"idevid-tpm-p256"', '"idevid-p999"'),
        "idevid-p999",
        "expected idevid-p999.toml",
    ),
    "an image that was changed": (
        lambda bench: (bench.etc / "images/gw-200-1.4.2.bin").write_bytes(b"x" * 5000),
        "gw-200-1.4.2.bin",
        "What to do",
    ),
    "a manifest signed by somebody else": (
        lambda bench: (bench.etc / "images/manifest.json.sig").write_bytes(bytes(64)),
        "manifest.json is not signed by firmware.pem",
        "What to do",
    ),
    "no escrow officer": (
        lambda bench: edited(bench.etc / "station.toml", '["trust/officer.pem"]', "[]"),
        "escrow.officers",
        "at least one escrow officer",
    ),
    "no EK root": (
        lambda bench: (bench.etc / "trust/ek/root.pem").unlink(),
        "trust/ek",
        "holds no EK root",
    ),
    "a credential that isn't there": (
        lambda bench: bench.dps_key_file.unlink(),
        "sink[0].settings.key",
        "missing",
    ),
    "a credential that others can read": (
        lambda bench: bench.dps_key_file.chmod(0o644),
        "sink[0].settings.key",
        "0600",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named_with_file_and_key(bench: Layout, case: str) -> None:
    damage, where, what = CASES[case]
    damage(bench)
    done = hallmark(bench, *OFFLINE)
    assert done.returncode in (1, 2), done.stdout
    said = done.stdout + done.stderr
    assert where in said
    assert what in said
    assert "Traceback" not in said


def test_all_problems_of_a_file_are_told_at_once(bench: Layout) -> None:
    edited(bench.etc / "station.toml", "[station]\n", "[station]\ncolour = 1\nshape = 2\n")
    done = hallmark(bench, *OFFLINE)
    assert "station.colour" in done.stderr
    assert "station.shape" in done.stderr


def test_a_software_only_driver_is_refused_in_production(bench: Layout) -> None:
    edited(bench.etc / "station.toml", 'mode = "bench"', 'mode = "production"')
    edited(bench.etc / "station.toml", '"serial", ', '"serial", "swtpm", ')
    edited(bench.etc / "station.toml", "[signer]", "[orders]\nrequired = false\n\n[signer]")
    done = hallmark(bench, *OFFLINE)
    assert done.returncode == 2
    assert "driver 'swtpm' is for bench mode only" in done.stderr


def test_unsigned_work_orders_and_missing_order_keys_are_found_in_production(bench: Layout) -> None:
    station = bench.etc / "station.toml"
    edited(station, 'mode = "bench"', 'mode = "production"')
    done = hallmark(bench, *OFFLINE)
    assert done.returncode == 2
    assert "work_order[0]: work orders have to be signed here" in done.stderr
    station.write_text(station.read_text().partition("\n[[work_order]]")[0])
    done = hallmark(bench, *OFFLINE)
    assert done.returncode == 2
    assert "orders.keys" in done.stdout
    assert "expected at least one public key" in done.stdout


def test_a_recipe_is_shown_step_by_step(bench: Layout) -> None:
    done = hallmark(bench, "recipe", "show")
    assert done.returncode == 0
    assert "3. tpm-ownership: escrow and set the auths, make the SRK" in done.stdout
    assert "escrow, srk, dictionary-attack, lockout-auth, platform, state" in done.stdout


def test_drivers_are_listed_and_only_named_ones_loaded(bench: Layout) -> None:
    done = hallmark(bench, "drivers", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)["drivers"]}
    assert rows["smp-serial"]["state"] == "loaded"
    assert "FirmwareTarget" in rows["smp-serial"]["offers"]
    assert rows["udev"]["state"] == "installed"


def test_a_command_without_a_daemon_ends_with_3_and_says_what_to_do(bench: Layout) -> None:
    done = hallmark(bench, "status")
    assert done.returncode == 3
    assert "What to do" in done.stderr


def test_help_names_every_command_and_each_has_its_own() -> None:
    words = [sys.executable, "-m", "station.cli"]
    text = subprocess.run([*words, "--help"], capture_output=True, text=True, check=True).stdout
    for name in (
        "run",
        "signer",
        "uploader",
        "status",
        "units",
        "outbox",
        "audit",
        "ca",
        "check",
        "config",
        "orders",
        "recipe",
        "drivers",
    ):
        assert f"\n    {name} " in text
    done = subprocess.run([*words, "check", "--help"], capture_output=True, text=True, check=True)
    assert "--offline" in done.stdout


def test_a_recipe_with_keys_for_the_cloud_needs_both_halves_of_the_upload_key(bench: Layout) -> None:
    recipe = files.data_folder() / "recipes/gw-100-symmetric.toml"
    text = recipe.read_text().replace("gw-100-symmetric-1.4.2.bin", "gw-200-1.4.2.bin")
    (bench.etc / "recipes/gw-200.toml").write_text(text.replace('"gw-100-symmetric"', '"gw-200"'))
    done = hallmark(bench, *OFFLINE)
    assert done.returncode == 2
    assert "upload_key" in done.stdout
    assert "gw-200.toml makes symmetric keys" in done.stdout
    with (bench.etc / "station.toml").open("a") as stream:
        stream.write('\n[device_keys]\nupload_key = "trust/upload.pem"\n')
    private, public = bench.etc / "credentials/upload-key", bench.etc / "trust/upload.pem"
    public.write_text("no key")
    assert "public key in PEM" in hallmark(bench, *OFFLINE).stdout
    make = ("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private)
    subprocess.run(make, check=True, capture_output=True)
    private.chmod(0o600)
    subprocess.run(
        ("openssl", "pkey", "-in", private, "-pubout", "-out", public), check=True, capture_output=True
    )
    assert hallmark(bench, *OFFLINE).returncode == 0
    private.unlink()
    done = hallmark(bench, *OFFLINE)
    assert done.returncode == 2
    assert "'upload-key' is missing" in done.stdout
