"""A board without a TPM in memory, a CA, and a visit at its certificate step, for tests of what the steps decide."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hal.call import Call
from hal.driver import Bindings
from hal.errors import DeadlineExceeded
from hal.interfaces import CertificateStore, KeyPlace
from hal.secret import Secret
from hal.types import DeviceKey, KeyProtection, KeyType
from station.messages import Facts
from station.recipe import PlannedStep
from station.steps import certificate
from tests.runner_parts import UNIT, Stage

DER = serialization.Encoding.DER
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
NOW = dt.datetime.now(dt.UTC)


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(DER, SPKI)


def named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class Ca:
    def __init__(self, name: str) -> None:
        self.key, self.name = ec.generate_private_key(ec.SECP256R1()), named(name)
        self.certificate = self.certify(self.key, name)

    def certify(self, key: ec.EllipticCurvePrivateKey, name: str, days: int = 2) -> bytes:
        made = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(days=1))
            .not_valid_after(NOW + dt.timedelta(days=days - 1))
            .sign(self.key, hashes.SHA256())
        )
        return made.public_bytes(DER)


CA = Ca("issuing")


@dataclass
class FakeBoard:
    """KeyPlace and CertificateStore in memory; each lie is one attribute."""

    protection = KeyProtection.FILE

    stage: Stage
    private: ec.EllipticCurvePrivateKey | None = None
    chain: list[bytes] = field(default_factory=list)
    csr_key: ec.EllipticCurvePrivateKey | None = None
    csr_name: str | None = None
    damage: bool = False
    prover: ec.EllipticCurvePrivateKey | None = None
    late: str = ""

    def _lose_answer(self, what: str) -> None:
        if self.late == what:
            self.late = ""
            raise DeadlineExceeded("no answer in time")

    def key(self, call: Call) -> DeviceKey | None:
        del call
        return None if self.private is None else DeviceKey(spki(self.private), KeyType.P256)

    def make_key(self, call: Call, key_type: KeyType, owner: Secret) -> DeviceKey:
        del call, key_type
        assert not len(owner)
        assert self.private is None, "a second key was asked for"
        self.stage.say("make key")
        self.private = ec.generate_private_key(ec.SECP256R1())
        self._lose_answer("make key")
        return DeviceKey(spki(self.private), KeyType.P256)

    def csr(self, call: Call, common_name: str) -> bytes:
        del call
        key = self.csr_key or self.private
        assert key is not None
        builder = x509.CertificateSigningRequestBuilder().subject_name(named(self.csr_name or common_name))
        der = bytearray(builder.sign(key, hashes.SHA256()).public_bytes(DER))
        der[-1] ^= self.damage
        return bytes(der)

    def prove(self, call: Call, nonce: bytes) -> bytes:
        del call
        key = self.prover or self.private
        assert key is not None
        return key.sign(nonce, ec.ECDSA(hashes.SHA256()))

    def install(self, call: Call, chain: Sequence[bytes]) -> None:
        del call
        self.stage.say("install")
        self.chain = list(chain)
        self._lose_answer("install")

    def installed(self, call: Call) -> Sequence[bytes]:
        del call
        return self.chain


class Visit:
    """A board without a TPM at its certificate step, joined as a unit with these facts on record."""

    def __init__(self, recorded: dict[str, Facts] | None = None, intents: Sequence[str] = ()) -> None:
        self.stage = Stage()
        self.board = FakeBoard(self.stage)
        self.stage.board = Bindings()
        self.stage.board.add("link", KeyPlace, self.board)
        self.stage.board.add("link", CertificateStore, self.board)
        self.stage.unit = msgspec.structs.replace(UNIT, facts=recorded or {}, intents=list(intents))
        self.identity: bytes | None = None
        self.issued: list[str] = []
        self.days = 2
        """That a certificate lives."""
        self.stage.issue = self._issue  # type: ignore[method-assign]

    def _issue(self, profile: str, csr: bytes) -> list[bytes]:
        self.stage.say(f"issue {profile}")
        assert x509.load_der_x509_csr(csr).is_signature_valid
        assert self.board.private is not None
        self.issued.append(profile)
        return [CA.certify(self.board.private, UNIT.registration_id, self.days), CA.certificate]

    def run(self, **options: Any) -> None:
        trip = self.stage.trip()
        trip.unit = self.stage.unit
        trip.facts["registration_id"] = UNIT.registration_id
        if self.identity:
            trip.facts["identity_spki"] = self.identity
        chosen = certificate.Options(**{"profile": "p", "place": "link", **options})
        self.stage.run(PlannedStep(certificate.STEP, chosen), trip=trip)

    def recorded(self) -> dict[str, Facts]:
        """What the record says after it."""
        return {**self.stage.facts}
