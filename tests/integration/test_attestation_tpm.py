"""Credentials and certifications against real (software) TPMs, and against what other tools make and open."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from drivers.tpm import context, templates
from hal.errors import KeyConflict, ResidencyUnproven
from hal.interfaces import EndorsementIdentity, IdentityKeys, KeyAttestation, KeyPlace, Ownership
from hal.secret import EMPTY, Secret
from hal.types import AkKind, Credential, EndorsementKey, Hierarchy, KeyType, SrkTemplate
from station.attestation import check_ak, check_device_key, check_offline
from station.credential import make_credential
from station.signature import verify_signature
from station.tpm_structures import public_area
from tests.fixtures_tpm import Recorder, lasting, listening
from tests.tpm_parts import prove_ak, prove_resident

MAGIC = bytes.fromhex("badcc0de 00000001")
"""How tpm2-tools begin a credential's file: magic and version, then TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET."""


class Tools:
    """tpm2-tools at a TPM that listens."""

    def __init__(self, tcti: str, folder: Path) -> None:
        self.tcti, self.folder = tcti, folder

    def __call__(self, tool: str, *words: str | Path) -> None:
        command = [f"tpm2_{tool}", *map(str, words), "-T", self.tcti]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        subprocess.run(["tpm2_flushcontext", "-t", "-T", self.tcti], capture_output=True, check=False)

    def keys(self, algorithm: str) -> tuple[bytes, bytes]:
        """EK (at 0x81010009) and AK as tpm2-tools make them: TPM2B_PUBLIC of the EK, Name of the AK."""
        self("createek", "-G", algorithm, "-c", "0x81010009", "-u", "ek.pub")
        self("createak", "-C", "0x81010009", "-c", "ak.ctx", "-n", "ak.name", "-u", "ak.pub")
        return (self.folder / "ek.pub").read_bytes(), (self.folder / "ak.name").read_bytes()

    def activate(self, credential: bytes) -> bytes:
        (self.folder / "credential").write_bytes(credential)
        self("startauthsession", "--policy-session", "-S", "session.ctx")
        self("policysecret", "-S", "session.ctx", "-c", "e")
        self(
            *("activatecredential", "-c", "ak.ctx", "-C", "0x81010009", "-i", "credential", "-o", "secret"),
            *("-P", "session:session.ctx"),
        )
        self("flushcontext", "session.ctx")
        return (self.folder / "secret").read_bytes()


@pytest.fixture
def tools(tpm_state: Path, tmp_path: Path) -> Iterator[Tools]:
    with listening(tpm_state, tmp_path / "s") as (_, tcti):
        yield Tools(tcti, tmp_path)


@pytest.mark.parametrize("algorithm", ["rsa", "ecc"])
def test_tpm2_tools_open_our_credential(tools: Tools, algorithm: str) -> None:
    ek, name = tools.keys(algorithm)
    secret = secrets.token_bytes(32)
    made = make_credential(public_area(ek), name, secret)
    assert tools.activate(MAGIC + made.id_object + made.encrypted_secret) == secret


def test_our_activation_opens_what_tpm2_tools_make(
    line: Recorder, ek: EndorsementKey, tmp_path: Path
) -> None:
    with line.visit() as tpm:
        attestation = tpm.get(KeyAttestation)
        ak = attestation.attestation_key(lasting(), AkKind.VISIT)
        (tmp_path / "ek").write_bytes(ek.public)
        (tmp_path / "secret").write_bytes(b"a secret of no TPM's")
        subprocess.run(
            [
                *("tpm2_makecredential", "-T", "none", "-u", tmp_path / "ek", "-s", tmp_path / "secret"),
                *("-n", public_area(ak).name.hex(), "-o", tmp_path / "made"),
            ],
            check=True,
            capture_output=True,
        )
        made = (tmp_path / "made").read_bytes().removeprefix(MAGIC)
        cut = 2 + int.from_bytes(made[:2], "big")
        opened = attestation.activate(lasting(), ek, ak, Credential(made[:cut], made[cut:]))
    assert opened == b"a secret of no TPM's"


@pytest.mark.parametrize("template", ["L-1", "L-2", "H-3"])
def test_each_kind_of_ek_opens_its_credential(line: Recorder, template: str) -> None:
    with line.visit() as tpm:
        report = tpm.get(EndorsementIdentity).derive(lasting(), template)
        key = next(item for item in report.keys if item.template == template)
        prove_ak(tpm, key)


@pytest.mark.parametrize("key_type", [KeyType.P256, KeyType.RSA2048])
def test_a_device_key_is_proven_in_both_ways(line: Recorder, ek: EndorsementKey, key_type: KeyType) -> None:
    with line.visit() as tpm:
        tpm.get(Ownership).make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)
        key = tpm.get(KeyPlace).make_key(lasting(), key_type, EMPTY)
        attesting = prove_resident(tpm, ek, key)
    assert attesting.covers(key.spki)
    check_offline(attesting.proven_transcript(), key.spki)


def test_a_key_that_was_imported_is_not_proven_to_be_resident(line: Recorder, ek: EndorsementKey) -> None:
    """fixedTPM can't be claimed: it is in the public area that Name and credential are made over."""
    with line.visit() as tpm:
        tpm.get(Ownership).make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)
        key = tpm.get(KeyPlace).make_key(lasting(), KeyType.P256, EMPTY)
        assert key.public is not None
        claimed = key.public[:9] + bytes([key.public[9] ^ 0x10]) + key.public[10:]
        attestation = tpm.get(KeyAttestation)
        made = make_credential(public_area(ek.public), public_area(claimed).name, bytes(32))
        with pytest.raises(ResidencyUnproven):
            attestation.activate(lasting(), ek, claimed, Credential(made.id_object, made.encrypted_secret))
        with pytest.raises(ResidencyUnproven):
            attestation.activate(lasting(), ek, key.public, Credential(made.id_object, made.encrypted_secret))


# --- the TCG's IDevID and IAK -----------------------------------------------------------------------------------

IDEVID_POLICY = "ad6b3a2284fd698a0710bf5cc1b9bdf15e2532e3f601fa4b93a6a8fa8de579ea"
IAK_POLICY = "5437182326e414fca797d5f174615a1641f61255797c3a2b22c21d120b2d1e07"
"""For SHA-256, as Keylime's agent has them from TCG TPM 2.0 Keys for Device Identity and Attestation."""


def test_the_policies_of_idevid_and_iak_are_the_specifications() -> None:
    assert templates.idevid_policy().hex() == IDEVID_POLICY
    assert templates.iak_policy().hex() == IAK_POLICY


@contextlib.contextmanager
def identity_keys(line: Recorder, owner: Secret = EMPTY) -> Iterator[tuple[object, bytes]]:
    with line.visit() as tpm:
        keys = tpm.get(IdentityKeys)
        assert keys.iak(lasting()) is None
        device = keys.make_idevid(lasting(), owner)
        iak = keys.make_iak(lasting(), owner)
        assert keys.iak(lasting()) == iak
        assert tpm.get(KeyPlace).key(lasting()) == device
        with pytest.raises(KeyConflict):
            keys.make_iak(lasting(), owner)
        with pytest.raises(KeyConflict):
            keys.make_idevid(lasting(), owner)
        yield tpm, iak


def test_an_idevid_is_certified_by_the_iak_and_signs(line: Recorder, ek: EndorsementKey) -> None:
    with identity_keys(line) as (tpm, iak):
        place = tpm.get(KeyPlace)  # type: ignore[attr-defined]
        key = place.key(lasting())
        check_device_key(public_area(key.public))
        check_ak(public_area(iak))
        attesting = prove_resident(tpm, ek, key, kind=AkKind.IAK)  # type: ignore[arg-type]
        transcript = attesting.proven_transcript()
        assert transcript.ak.public == iak
        check_offline(transcript, key.spki)
        verify_signature(load_der_public_key(key.spki), place.prove(lasting(), b"n" * 32), b"n" * 32)
        assert tpm.get(Ownership).state(lasting()).lockout_counter == 0  # type: ignore[attr-defined]


def test_a_power_cut_after_an_idevid_signed_counts_no_try(line: Recorder, ek: EndorsementKey) -> None:
    """Its template covers it by dictionary-attack protection: the TPM is shut down in order after each use."""
    with identity_keys(line) as (tpm, _):
        key = tpm.get(KeyPlace).key(lasting())  # type: ignore[attr-defined]
        prove_resident(tpm, ek, key, kind=AkKind.IAK)  # type: ignore[arg-type]
        tpm.get(KeyPlace).prove(lasting(), b"n" * 32)  # type: ignore[attr-defined]
        line.inner.power_cut()  # type: ignore[attr-defined]
    line.inner.power_on()  # type: ignore[attr-defined]
    with line.visit() as tpm:
        assert tpm.get(Ownership).state(lasting()).lockout_counter == 0


def test_identity_keys_come_back_after_a_clear(line: Recorder, ek: EndorsementKey) -> None:
    """Recoverable (7.3.1): the endorsement seed outlives a Clear, and the templates are everybody's."""
    from drivers.tpm.context import Tpm
    from drivers.tpm.tss import ESYS_TR

    with identity_keys(line) as (_, iak):
        pass
    tpm = Tpm(line)
    with tpm.use(lasting(), "test") as esapi:
        esapi.clear(ESYS_TR.PLATFORM)
    tpm.close()
    with identity_keys(line) as (_, again):
        assert again == iak


def test_identity_keys_under_auths(
    line: Recorder, ek: EndorsementKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Owner auth for the handle, endorsement auth for making and administering; none of them in clear."""
    monkeypatch.setattr(context, "WORTH_KEEPING", 0.0)
    owner, endorsement = Secret.random(), Secret.random()
    with line.visit() as tpm:
        own = tpm.get(Ownership)
        own.set_auth(lasting(), ek, Hierarchy.OWNER, owner, EMPTY)
        own.set_auth(lasting(), ek, Hierarchy.ENDORSEMENT, endorsement, EMPTY)
        device = tpm.get(IdentityKeys).make_idevid(lasting(), owner)
        tpm.get(IdentityKeys).make_iak(lasting(), owner)
        prove_resident(tpm, ek, device, kind=AkKind.IAK)
    assert not line.carried(owner.reveal())
    assert not line.carried(endorsement.reveal())
