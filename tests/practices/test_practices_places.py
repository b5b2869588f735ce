"""Rows 5, 7, 8, 10, 11 and 13 of the practices document: where keys live and where certificates come from."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from drivers.emulated import image
from hal.call import Call
from hal.errors import DuplicateKey, RecipeError
from hal.interfaces import KeyPlace
from hal.registry import load
from hal.secret import EMPTY
from hal.types import KeyProtection, KeyType
from station.store import Store
from tests import store_parts as parts
from tests.fixtures_smp import MakeBoard
from tests.protection_parts import REASON, checked


def test_row_05_a_unit_has_one_certificate_and_a_key_one_unit_also_after_a_restart(store_path: Path) -> None:
    with Store.open(store_path, ballast=4096) as store:
        parts.trip(store, 1)
    with Store.open(store_path, ballast=4096) as store:
        visit = parts.plug(store)
        parts.join(store, visit, 1)
        with pytest.raises(DuplicateKey, match="already has another"):
            store.record_certificate(visit, "p", parts.chain(5))
        other = parts.plug(store, "B")
        parts.join(store, other, 2)
        with pytest.raises(DuplicateKey, match="unit board-1 has it"):
            store.record_certificate(other, "p", parts.chain(1, serial=77))
        key = hashlib.sha256(b"another").digest()
        store.claim_key(other, key)
        with pytest.raises(DuplicateKey, match="unit board-2 has it"):
            store.claim_key(visit, key)


def test_row_07_each_place_is_ranked_and_the_recipe_says_which_is_used(tmp_path: Path) -> None:
    names = ["tcti-tunnel", "pkcs11-element", "smp-serial"]
    tpm, element, board = (load([name]).get(name) for name in names)
    settings = element.settings(module="/m.so", token="t")
    assert element.protects(settings) is KeyProtection.ELEMENT
    assert tpm.protects(tpm.settings()) is KeyProtection.TPM
    assert board.protects(board.settings()) is KeyProtection.FILE
    assert KeyProtection.TPM.rank < KeyProtection.ELEMENT.rank < KeyProtection.FILE.rank
    assert checked(tmp_path, "file", "client-p256").protections == {"link": KeyProtection.FILE}


def test_row_07_a_board_that_keeps_its_own_key_keeps_it_in_a_file_for_its_owner_alone(
    emulated_board: MakeBoard, tmp_path: Path
) -> None:
    (tmp_path / "factory.bin").write_bytes(image.build("1.0.0", b"factory" * 1000))
    board = emulated_board("--no-tpm", "--factory-image", str(tmp_path / "factory.bin"))
    driver = load(["smp-serial"]).get("smp-serial")
    with board.open(KeyPlace) as place:
        assert isinstance(place, KeyPlace)
        place.make_key(Call.lasting(60), KeyType.P256, EMPTY)
        assert place.protection is driver.protects(driver.settings())
    files = [path for path in board.control.parent.rglob("*") if path.is_file()]
    private = [path for path in files if b"PRIVATE KEY" in path.read_bytes()]
    assert len(private) == 1
    assert stat.S_IMODE(private[0].stat().st_mode) == 0o600


def test_row_10_a_long_lived_leaf_outside_secure_storage_is_refused_or_explained(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="software can copy it"):
        checked(tmp_path, "file", "idevid-p256")
    explained = checked(tmp_path, "file", "idevid-p256", f'override = "{REASON}"\n')
    assert explained.steps[1].options.override == REASON
    assert checked(tmp_path, "secure-element", "idevid-p256").profiles() == ["idevid-p256"]
