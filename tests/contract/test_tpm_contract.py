"""Both TPM drivers keep every promise of the interfaces: over the tunnel TCTI, and over a TCTI of the host."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from hal.call import Call
from hal.conformance import endorsement_identity, identity_keys, key_attestation, key_place, ownership
from hal.driver import Bindings
from hal.interfaces import EndorsementIdentity, KeyPlace, Ownership
from hal.secret import EMPTY, Secret
from hal.types import Credential, Hierarchy, KeyType, SrkTemplate
from station.credential import make_credential
from station.tpm_structures import public_area
from tests.fixtures_tpm import Recorder

Open = Callable[[], AbstractContextManager[Bindings]]


@pytest.fixture(params=["tunnel", "tcti"])
def open_device(request: pytest.FixtureRequest) -> Open:
    if request.param == "tcti":
        return request.getfixturevalue("tcti_device")
    return request.getfixturevalue("line").visit


def owned(open_device: Open, owner: Secret) -> Callable[[Bindings], None]:
    """Makes SRK and owner auth now; gives what each later visit does before it uses that auth."""
    with open_device() as device:
        ek = endorsement_identity.chosen(device.get(EndorsementIdentity))
        device.get(Ownership).make_srk(Call.lasting(20), ek, SrkTemplate.P256, EMPTY)
        if len(owner):
            device.get(Ownership).set_auth(Call.lasting(20), ek, Hierarchy.OWNER, owner, EMPTY)

    def prepare(device: Bindings) -> None:
        assert device.get(Ownership).proves(Call.lasting(20), ek, Hierarchy.OWNER, owner)

    return prepare


def test_endorsement_identity_keeps_its_contract(open_device: Open) -> None:
    endorsement_identity.check(open_device)


def credential(ek: bytes, name: bytes, secret: bytes) -> Credential:
    """Made as the station makes it."""
    made = make_credential(public_area(ek), name, secret)
    return Credential(made.id_object, made.encrypted_secret)


def test_key_attestation_keeps_its_contract(open_device: Open) -> None:
    key_attestation.check(open_device, credential)


@pytest.mark.parametrize("owner", [EMPTY, Secret.random()], ids=["no-auth", "owner-auth"])
def test_identity_keys_keep_their_contract(open_device: Open, owner: Secret) -> None:
    identity_keys.check(open_device, owner, owned(open_device, owner))


def test_ownership_keeps_its_contract(open_device: Open) -> None:
    ownership.check(open_device)


def test_no_auth_value_crosses_the_line_in_clear(line: Recorder) -> None:
    auths = ownership.check(line.visit)
    assert len(line.sent) > 100
    for auth in auths.values():
        assert not line.carried(auth.reveal())


@pytest.mark.parametrize("key_type", [KeyType.P256, KeyType.P384, KeyType.RSA2048])
def test_key_place_keeps_its_contract(open_device: Open, key_type: KeyType) -> None:
    owned(open_device, EMPTY)
    key = key_place.check(open_device, key_type)
    assert key.resident
    assert key.public is not None
    assert key.name == endorsement_identity.name_of(key.public)


def test_key_and_certificate_places_keep_their_contract_under_an_owner_auth(open_device: Open) -> None:
    owner = Secret.random()
    prepare = owned(open_device, owner)
    key_place.check(open_device, KeyType.P256, owner, prepare)
    with open_device() as device:
        report = device.get(EndorsementIdentity).endorsements(Call.lasting(20))
        ecc, rsa = sorted((key.certificate for key in report.keys if key.certificate), key=len)
    key_place.check_store(open_device, [[rsa, ecc], [ecc], [ecc, rsa, ecc]], prepare)
    with open_device() as device:
        assert device.get(KeyPlace).key(Call.lasting(20)) is not None
