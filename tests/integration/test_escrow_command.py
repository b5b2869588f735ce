"""`hallmark escrow` as an officer uses it: sealed records opened, compared, proven on a live (software) TPM."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.swtpm.process import SwtpmProcess, manufacture
from hal.errors import EscrowUnreadable
from hal.interfaces import EndorsementIdentity, Ownership
from hal.secret import EMPTY, Secret
from hal.types import EndorsementKey, Hierarchy, SrkTemplate
from station import cli
from station.archive import ArchiveRecord, SealedEscrow
from station.escrow import EscrowRecord, seal
from station.escrow_opener import open_record, parse
from tests.fixtures_tpm import Recorder, lasting, listening
from tests.integration.test_escrow_cms import NEW_KEYS, RECORD, make_officer, opened
from tests.ownership_parts import certificate_key

VALUE = RECORD.auths["owner"].reveal().hex()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A unit's exported folder and its officer, as `hallmark units export` leaves them."""
    officer = make_officer(tmp_path, "officer", NEW_KEYS["p256"]())
    unit = tmp_path / "unit"
    unit.mkdir()
    older = dataclasses.replace(RECORD, generation=1, auths={"lockout": Secret(b"\xcc" * 32)})
    (unit / "escrow.p7m").write_bytes(seal([officer], RECORD))
    (unit / f"escrow-{RECORD.ek_name.hex()[:16]}-1.p7m").write_bytes(seal([officer], older))
    (unit / "unit.json").write_text(json.dumps({"unit": RECORD.unit, "ek_name": RECORD.ek_name.hex()}))
    return unit


def escrow(*words: object) -> int:
    return cli.main(["escrow", *map(str, words)])


# --- opening ----------------------------------------------------------------------------------------------------


def test_each_officer_alone_opens_it_here_as_with_openssl(tmp_path: Path) -> None:
    keys = {name: make() for name, make in NEW_KEYS.items()}
    officers = {name: make_officer(tmp_path, name, key) for name, key in keys.items()}
    sealed = seal(list(officers.values()), RECORD)
    for name, key in keys.items():
        assert isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
        assert opened(tmp_path, name, sealed).stdout == RECORD.canonical()
        for certificate in (None, officers[name]):
            assert open_record(sealed, key, certificate) == RECORD
    for stranger in (NEW_KEYS["p256"](), NEW_KEYS["rsa2048"]()):
        assert isinstance(stranger, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
        with pytest.raises(EscrowUnreadable, match="opens no part"):
            open_record(sealed, stranger)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A record sealed to the officer with the private key 17."""
    officer = make_officer(
        tmp_path_factory.mktemp("once"), "officer", ec.derive_private_key(17, ec.SECP256R1())
    )
    return seal([officer], RECORD)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_changed_octet_opens_to_another_record(once: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(once) - 1))
    changed = once[:at] + bytes([once[at] ^ data.draw(st.integers(1, 255))]) + once[at + 1 :]
    cut = data.draw(st.sampled_from([changed, once[:at], once + changed[at : at + 1]]))
    found = RECORD
    with contextlib.suppress(EscrowUnreadable):
        found = open_record(cut, ec.derive_private_key(17, ec.SECP256R1()))
    assert found == RECORD, "who is named as a recipient is not authenticated; what was sealed is"


@given(st.binary(max_size=300))
def test_any_octets_are_a_record_or_a_sentence(octets: bytes) -> None:
    for read in (parse, lambda given: open_record(given, ec.derive_private_key(17, ec.SECP256R1()))):
        with pytest.raises(EscrowUnreadable):
            read(octets)


def test_without_being_asked_no_value_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert escrow("open", folder, "--key", folder.parent / "officer.key") == 0
    said = capsys.readouterr()
    assert "generation 2" in said.out
    assert "lockout, owner" in said.out
    assert VALUE not in said.out + said.err
    assert escrow("open", folder, "--key", folder.parent / "officer.key", "--json") == 0
    assert VALUE not in capsys.readouterr().out
    assert escrow("open", folder, "--key", folder.parent / "officer.key", "--reveal") == 0
    assert json.loads(capsys.readouterr().out)["auths"]["owner"] == VALUE


def test_values_go_to_a_new_file_of_the_officers_own(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "clear.json"
    words = ("open", folder, "--key", tmp_path / "officer.key", "--out", out)
    assert escrow(*words, "--generation", 1) == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert parse(out.read_bytes()).auths == {"lockout": Secret(b"\xcc" * 32)}
    assert escrow(*words) == 2, "an older file is not overwritten"


def test_a_keys_password_comes_over_a_descriptor(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key((tmp_path / "officer.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    (tmp_path / "locked.key").write_bytes(certificate_key(key, b"correct horse"))
    for password, code in ((b"correct horse\n", 0), (b"wrong", 2)):
        reader, writer = os.pipe()
        os.write(writer, password)
        os.close(writer)
        words = ("open", folder, "--key", tmp_path / "locked.key", "--password-fd", reader)
        assert escrow(*words) == code
        os.close(reader)
    assert "correct horse" not in "".join(capsys.readouterr())


def test_a_record_among_another_units_files_is_noticed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "officer.key"
    for summary in (
        {"unit": "another", "ek_name": RECORD.ek_name.hex()},
        {"unit": RECORD.unit, "ek_name": "000b" + "22" * 32},
        {"unit": RECORD.unit, "ek_name": None},
    ):
        (folder / "unit.json").write_text(json.dumps(summary))
        assert escrow("open", folder, "--key", key) == 1
        assert "EscrowUnreadable" in capsys.readouterr().err


def test_the_archive_record_alone_is_enough(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sealed = (folder / "escrow.p7m").read_bytes()
    item = SealedEscrow(RECORD.ek_name, 2, ["lockout", "owner"], sealed)
    archive = ArchiveRecord("line-1", RECORD.unit, "board-1", "gw", [], [item], {})
    (tmp_path / "archive.json").write_bytes(msgspec.json.encode(archive))
    words = ("open", tmp_path / "archive.json", "--key", tmp_path / "officer.key", "--reveal")
    assert escrow(*words) == 0
    assert json.loads(capsys.readouterr().out)["unit"] == RECORD.unit


# --- the drill --------------------------------------------------------------------------------------------------


@pytest.fixture
def owned(line: Recorder, swtpm: SwtpmProcess, ek: EndorsementKey) -> EscrowRecord:
    """A TPM with all auths set, switched off, and its record."""
    auths = {hierarchy: Secret.random() for hierarchy in Hierarchy}
    with line.visit() as tpm:
        own = tpm.get(Ownership)
        own.make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)
        for hierarchy, auth in auths.items():
            own.set_auth(lasting(), ek, hierarchy, auth, EMPTY)
    swtpm.power_off()
    return EscrowRecord(ek.name, "u-17", "line-1", 1, {item.value: auth for item, auth in auths.items()})


@pytest.fixture
def drilled(
    tmp_path: Path, tpm_state: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[EscrowRecord], tuple[int, dict[str, object], str]]]:
    """Seals a record and drills it on the TPM at a unix socket: exit code, what is said as JSON, and on stderr."""
    officer = make_officer(tmp_path, "officer", NEW_KEYS["p256"]())
    with listening(tpm_state, tmp_path / "s") as (_, tcti):

        def run(record: EscrowRecord) -> tuple[int, dict[str, object], str]:
            (tmp_path / "escrow.p7m").write_bytes(seal([officer], record))
            code = escrow(
                *("drill", tmp_path / "escrow.p7m", "--key", tmp_path / "officer.key"),
                *("--tcti", tcti, "--json"),
            )
            said = capsys.readouterr()
            return code, json.loads(said.out)["proven"] if said.out else {}, said.err

        yield run


def test_a_drill_proves_the_record_on_the_live_tpm(
    owned: EscrowRecord, drilled: Callable[[EscrowRecord], tuple[int, dict[str, object], str]]
) -> None:
    for _ in range(2):  # and leaves it as it was
        code, proven, _ = drilled(owned)
        assert (code, proven) == (0, {"owner": True, "endorsement": True, "lockout": True})


def test_a_record_that_is_not_in_force_is_found_out_before_the_lockout_auth_is_tried(
    owned: EscrowRecord, drilled: Callable[[EscrowRecord], tuple[int, dict[str, object], str]]
) -> None:
    wrong = dataclasses.replace(owned, auths={**owned.auths, "owner": Secret.random()})
    for _ in range(3):
        code, proven, _ = drilled(wrong)
        assert (code, proven) == (1, {"owner": False, "endorsement": True, "lockout": None})
    assert drilled(owned)[0] == 0, "the lockout auth is still taken"


def test_another_tpms_record_is_refused_and_nothing_is_tried(
    owned: EscrowRecord,
    drilled: Callable[[EscrowRecord], tuple[int, dict[str, object], str]],
    tmp_path: Path,
    ek_ca: Path,
) -> None:
    manufacture(tmp_path / "other", ek_ca)
    with SwtpmProcess(tmp_path / "other") as process, Recorder(process).visit() as tpm:
        other = tpm.get(EndorsementIdentity).endorsements(lasting()).keys[0]
    code, proven, said = drilled(dataclasses.replace(owned, ek_name=other.name))
    assert (code, proven) == (1, {})
    assert "nothing was tried" in said
    assert drilled(owned)[0] == 0


def test_a_drill_without_a_tpm_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    officer = make_officer(tmp_path, "officer", NEW_KEYS["p256"]())
    (tmp_path / "escrow.p7m").write_bytes(seal([officer], RECORD))
    words = ("drill", tmp_path / "escrow.p7m", "--key", tmp_path / "officer.key")
    assert escrow(*words, "--tcti", "swtpm:path=/nonexistent") == 1
    assert escrow(*words, "--port", "/nonexistent/tty") == 1
    assert capsys.readouterr().err.count("What to do:") == 2
