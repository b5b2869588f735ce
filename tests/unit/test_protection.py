"""Where keys are kept: the ranking, what drivers declare, and the policy on long-lived certificates."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hal.driver import Bindings, Driver, opened
from hal.errors import ProfileViolation, RecipeError
from hal.interfaces import KeyPlace
from hal.registry import load
from hal.types import KeyProtection
from tests.certificate_parts import FakeBoard, Visit
from tests.protection_parts import REASON, checked


def test_the_ranking_is_tpm_element_tee_file_plain() -> None:
    assert [kind.value for kind in sorted(KeyProtection, key=lambda kind: kind.rank)] == [
        *("tpm", "secure-element", "tee", "file", "plain")
    ]
    assert [kind.keeps_from_software for kind in KeyProtection] == [True, True, True, False, False]


def test_every_built_in_driver_that_keeps_keys_declares_how() -> None:
    names = ["smp-serial", "tcti", "tcti-tunnel"]
    kept = {name: load([name]).get(name) for name in names}
    assert {name: driver.protects(driver.settings()) for name, driver in kept.items()} == {
        "smp-serial": KeyProtection.FILE,
        "tcti": KeyProtection.TPM,
        "tcti-tunnel": KeyProtection.TPM,
    }
    assert load(["serial"]).get("serial").protects(None) is None


def test_a_driver_that_declares_nothing_counts_as_plain() -> None:
    silent = dataclasses.replace(load(["tcti-tunnel"]).get("tcti-tunnel"), protection=None)
    assert silent.protects(None) is KeyProtection.PLAIN


@pytest.mark.parametrize("found", [KeyProtection.PLAIN, KeyProtection.FILE, KeyProtection.TPM])
def test_a_place_weaker_than_its_driver_declared_is_not_opened(found: KeyProtection) -> None:
    class Place(FakeBoard):
        protection = found

    @contextlib.contextmanager
    def open_(settings: Any, needs: Bindings) -> Iterator[dict[type, object]]:
        yield {KeyPlace: Place(Visit().stage)}

    driver = Driver("d", "", type(None), open_, frozenset({KeyPlace}), protection=KeyProtection.FILE)
    if found is KeyProtection.PLAIN:
        said = "declares a file for keys, and opened a plain"
        with pytest.raises(RecipeError, match=said), opened([("r", driver, None)], {}):
            pass
    else:
        with opened([("r", driver, None)], {}) as bindings:
            assert bindings.get(KeyPlace).protection is found


@pytest.mark.parametrize("storage", ["file", "plain"])
def test_a_long_lived_certificate_for_a_key_that_software_can_copy_is_refused_with_file_and_line(
    tmp_path: Path, storage: str
) -> None:
    with pytest.raises(RecipeError, match="3650 days") as caught:
        checked(tmp_path, storage, "idevid-p256")
    error = caught.value
    assert (Path(error.file or "").name, error.line, error.key) == ("r.toml", 10, "step[1].place")
    assert f"kept as {storage}" in error.problem


@pytest.mark.parametrize(
    ("storage", "profile", "more", "station"),
    [
        ("file", "client-p256", "", ""),
        ("tee", "idevid-p256", "", ""),
        ("secure-element", "idevid-p256", "", ""),
        ("file", "idevid-p256", f'override = "{REASON}"\n', ""),
        ("file", "idevid-p256", "", "[policy]\nlong_lived_days = 4000\n"),
    ],
)
def test_what_is_short_safe_or_explained_is_taken(
    tmp_path: Path, storage: str, profile: str, more: str, station: str
) -> None:
    assert checked(tmp_path, storage, profile, more, station).protections == {"link": KeyProtection(storage)}


def test_a_reason_that_says_nothing_is_none(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="20 to 400 characters"):
        checked(tmp_path, "file", "idevid-p256", 'override = "because"\n')


def test_a_profile_that_cannot_be_read_is_no_way_round_the_policy(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="can't be told"):
        checked(tmp_path, "file", "not-there")


def test_a_certificate_is_judged_by_its_own_dates_before_it_is_installed() -> None:
    visit = Visit()
    visit.days = 2000
    with pytest.raises(ProfileViolation, match="lives 2000 days, and its key is kept as file: at most 825"):
        visit.run()
    assert "install" not in visit.stage.said


def test_the_reason_for_an_exception_is_in_the_record() -> None:
    visit = Visit()
    visit.days = 2000
    visit.run(override=REASON)
    facts = visit.stage.facts["certificate.key"]
    assert (facts["key_place"], facts["key_protection"]) == ("link", "file")
    assert facts["key_override"] == REASON
