"""Generations of the issuing CA: one issues at a time, those before finish what they began, the old stay known."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hal.call import Call
from hal.errors import ConfigError, KeyMissing, TokenAbsent
from hal.types import KeyType, TokenCondition, TokenState
from station import messages
from station.config import SignerSection
from station.signer import ledger
from station.signer.administration import Administration
from station.signer.authority import CHAIN_FILE, Authority, chain_from, der, pem, spki_of, store
from station.signer.clock import TrustedClock
from station.signer.generations import Generations, key_label
from station.signer.issuing import Issuer
from tests.ca_parts import LIMITS, NOW, PROFILES, YEAR, Ca, Clocks
from tests.fixtures_signer import sign_request

HOUR = dt.timedelta(hours=1)


class KeyRing:
    """CaToken over keys in memory, by label."""

    def __init__(self) -> None:
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.signed: list[str] = []
        self.fail: Exception | None = None

    def state(self, call: Call) -> TokenState:
        return TokenState(TokenCondition.READY, "memory")

    def canary(self, call: Call) -> TokenState:
        return self.state(call)

    def _key(self, label: str) -> ec.EllipticCurvePrivateKey:
        if label not in self.keys:
            message = f"no key {label}"
            raise KeyMissing(message)
        return self.keys[label]

    def public_key(self, call: Call, label: str) -> bytes:
        return (
            self._key(label)
            .public_key()
            .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    def make_key(self, call: Call, label: str, key_type: KeyType) -> bytes:
        assert label not in self.keys
        self.keys[label] = ec.generate_private_key(ec.SECP256R1())
        return self.public_key(call, label)

    def sign(self, call: Call, label: str, data: bytes) -> bytes:
        if self.fail is not None:
            raise self.fail
        self.signed.append(label)
        return self._key(label).sign(data, ec.ECDSA(hashes.SHA256()))


class Station:
    """Token, ledger and administration of a production station, with a root elsewhere and a clock to turn."""

    def __init__(self, folder: Path, book: ledger.Ledger) -> None:
        self.folder, self.book = folder, book
        self.clocks = Clocks(NOW)
        self.token = KeyRing()
        self.root = Ca("root")
        self.answers: dict[str, x509.Certificate] = {}
        self.root_certificate = self.root.signs(self.root, end=NOW + 30 * YEAR)
        self.token.make_key(Call(), "issuing-ca", KeyType.P256)
        self.open()

    def open(self) -> None:
        """As after a restart."""
        self.generations = Generations(self.book, bench=False)
        self.clock = TrustedClock(self.book, self.generations, LIMITS, self.clocks.machine)
        self.administration = Administration(
            "line-1", SignerSection(), self.folder, self.book, self.token, self.generations, self.clock
        )
        self.issuer = Issuer(self.book, self.token, self.generations, PROFILES, self.clock)

    def request(self, **asked: Any) -> messages.CaRequest:
        given: dict[str, Any] = {
            "label": None,
            "new_key": False,
            "key_type": KeyType.P256,
            "common_name": None,
        } | asked
        made = self.administration.answer(
            Call(), messages.MakeCaRequest(organization=None, **given), "tester"
        )
        assert isinstance(made, messages.CaRequest)
        return made

    def certify(self, csr: bytes, **changed: object) -> x509.Certificate:
        request = x509.load_pem_x509_csr(csr)
        assert request.is_signature_valid
        public = request.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        return self.root.certifies(public, request.subject, **({"end": NOW + 25 * YEAR} | changed))

    def install(self, *certificates: x509.Certificate) -> messages.CaGeneration:
        asked = messages.InstallCa([der(one) for one in certificates], der(self.root_certificate))
        made = self.administration.answer(Call(), asked, "tester")
        assert isinstance(made, messages.CaGeneration)
        return made

    def activate(self, number: int, at: dt.datetime | None = None) -> messages.CaGeneration:
        asked = messages.ActivateCa(number, None if at is None else int(at.timestamp()))
        made = self.administration.answer(Call(), asked, "tester")
        assert isinstance(made, messages.CaGeneration)
        return made

    def roll(self) -> messages.CaGeneration:
        return self.install(self.certify(self.request(new_key=True).csr))

    def issue(self, unit: str, profile: str = "idevid-p256") -> x509.Certificate:
        return self.issue_chain(unit, profile)[0]

    def issue_chain(self, unit: str, profile: str = "idevid-p256") -> list[x509.Certificate]:
        return [
            x509.load_der_x509_certificate(one)
            for one in self.issuer.issue(Call.lasting(10), sign_request(unit, self.key_of(unit), profile))
        ]

    def key_of(self, unit: str) -> ec.EllipticCurvePrivateKey:
        return KEYS.setdefault(unit, ec.generate_private_key(ec.SECP256R1()))


KEYS: dict[str, ec.EllipticCurvePrivateKey] = {}


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    with ledger.opened(tmp_path) as book:
        made = Station(tmp_path, book)
        made.install(made.certify(made.request().csr))
        yield made


def test_the_first_generation_issues_at_once_and_others_when_somebody_says(station: Station) -> None:
    first, second = station.generations.all[0], station.roll()
    assert (second.number, second.label, second.state) == (2, "issuing-ca-2", "installed")
    assert station.issue("u1").issuer == first.authority.issuer.subject
    later = station.activate(2, NOW + HOUR)
    assert later.state == "next"
    assert station.issue("u2").issuer == first.authority.issuer.subject
    station.clocks.passes(HOUR)
    made, above = station.issue_chain("u3")
    assert above.subject.rfc4514_string() == "CN=line-1 issuing CA 2"
    made.verify_directly_issued_by(above)
    assert [station.administration.view(one).state for one in station.generations.all] == ["former", "active"]
    station.open()
    assert station.issue("u4").issuer == above.subject
    # The old chain stays what it was for the units that have it.
    assert station.issue("u1").issuer == first.authority.issuer.subject


def test_a_decision_takes_the_place_of_the_one_that_had_not_come_yet(station: Station) -> None:
    station.roll()
    station.activate(2, NOW + HOUR)
    station.activate(1)
    station.clocks.passes(2 * HOUR)
    assert station.issue("u1").issuer.rfc4514_string() == "CN=line-1 issuing CA"
    station.activate(2)
    assert station.issue("u2").issuer.rfc4514_string() == "CN=line-1 issuing CA 2"
    station.activate(1)
    assert station.issue("u3").issuer.rfc4514_string() == "CN=line-1 issuing CA"


def test_an_intent_of_the_former_ca_is_signed_by_the_former_key(station: Station) -> None:
    station.token.fail = TokenAbsent("gone")
    with pytest.raises(TokenAbsent):
        station.issue("u1")
    with station.book.using() as db:
        (before,) = db.execute("SELECT serial, tbs FROM certificates")
    station.token.fail = None
    station.roll()
    station.activate(2)
    station.open()
    made, above = station.issue_chain("u1")
    assert station.token.signed[-1] == "issuing-ca"
    assert (made.serial_number.to_bytes(20).lstrip(b"\0"), made.tbs_certificate_bytes) == before
    assert above.subject.rfc4514_string() == "CN=line-1 issuing CA"


def test_an_intent_whose_key_is_no_more_is_made_anew_but_not_because_of_a_wrong_token(
    station: Station,
) -> None:
    station.token.fail = TokenAbsent("gone")
    with pytest.raises(TokenAbsent):
        station.issue("u1")
    station.token.fail = None
    station.roll()
    station.activate(2)
    old, station.token.keys = station.token.keys, {}
    with pytest.raises(KeyMissing, match="neither"):
        station.issue("u1")
    station.token.keys = {"issuing-ca-2": old["issuing-ca-2"]}
    assert station.issue("u1").issuer.rfc4514_string() == "CN=line-1 issuing CA 2"


def test_a_renewed_certificate_of_the_same_key_is_a_generation_too(station: Station) -> None:
    again = station.request()
    assert again.label == "issuing-ca"
    held = station.generations.all[0].authority.issuer.subject
    assert x509.load_pem_x509_csr(again.csr).subject == held
    renewed = station.certify(again.csr, end=NOW + 28 * YEAR)
    made = station.install(renewed)
    assert (made.number, made.label) == (2, "issuing-ca")
    assert station.install(renewed).number == 2
    station.activate(2)
    assert station.issue_chain("u1")[1] == renewed


def test_a_generation_is_activated_only_within_its_validity_and_with_its_key(station: Station) -> None:
    csr = station.request(new_key=True).csr
    future = station.certify(csr, start=NOW + YEAR)
    made = station.install(future)
    assert made.state == "installed"
    with pytest.raises(ConfigError, match="can't begin to issue"):
        station.activate(2)
    assert station.activate(2, NOW + YEAR + HOUR).state == "next"
    with pytest.raises(ConfigError, match="no generation 7"):
        station.activate(7)
    del station.token.keys["issuing-ca-2"]
    with pytest.raises(KeyMissing):
        station.activate(2, NOW + YEAR + HOUR)


def test_a_request_is_for_the_key_that_waits_and_other_keys_of_the_token_are_left_alone(
    station: Station,
) -> None:
    assert station.request(new_key=True).label == "issuing-ca-2"
    assert station.request().label == "issuing-ca-2"
    assert station.request(label="spare").label == "spare"
    assert set(station.token.keys) == {"issuing-ca", "issuing-ca-2", "spare"}
    with pytest.raises(ConfigError, match="other work"):
        station.request(label="canary")
    assert key_label("a", ["a", "a-2", "b"]) == "a-3"


def test_every_issuer_there_ever_was_stays_known_to_the_station(station: Station) -> None:
    first = station.generations.all[0].authority.ders[0]
    station.roll()
    station.open()
    assert first in station.generations.issuers
    assert len(station.generations.issuers) == 2


def test_a_ca_of_the_other_mode_neither_issues_nor_is_installed(station: Station, tmp_path: Path) -> None:
    bench = Generations(station.book, bench=True)
    assert (bench.all, bench.others, bench.active(NOW)) == ((), 1, None)
    with pytest.raises(ConfigError, match="bench mode"):
        bench.install("issuing-ca", station.generations.all[0].authority, NOW, "tester")


def test_the_chain_of_an_older_release_is_taken_in_from_its_files(tmp_path: Path) -> None:
    with ledger.opened(tmp_path / "a") as book:
        made = Station(tmp_path / "a", book)
        csr = made.request().csr
        authority = chain_from(
            [made.certify(csr)], made.root_certificate, made.token.public_key(Call(), "issuing-ca"), NOW
        )
    (tmp_path / "b").mkdir()
    store(tmp_path / "b", authority)
    with ledger.opened(tmp_path / "b") as book:
        generations = Generations(book, bench=False)
        for _ in range(2):
            generations.adopt(tmp_path / "b", "issuing-ca", NOW)
        assert [one.authority.chain for one in generations.all] == [authority.chain]
        assert generations.active(NOW) is not None
        bench = Generations(book, bench=True)
        bench.adopt(tmp_path / "b", "issuing-ca", NOW)
        assert bench.all == ()


def test_the_copies_on_disk_are_those_of_what_issues(station: Station) -> None:
    station.roll()
    station.activate(2, NOW + HOUR)
    for number in (0, 1):
        station.clocks.passes(number * HOUR)
        station.administration.refresh_copies()
        wanted = station.generations.all[number].authority
        assert (station.folder / CHAIN_FILE).read_bytes() == pem(wanted.chain)


def test_what_people_did_is_on_record(station: Station) -> None:
    station.roll()
    station.activate(2)
    with station.book.using() as db:
        acts = list(db.execute("SELECT by, what, detail FROM acts ORDER BY id"))
    assert [what for _, what, _ in acts] == ["request", "install", "request", "install", "activate"]
    assert {by for by, _, _ in acts} == {"'tester'"}


def test_authorities_end_with_the_first_of_the_cas_above() -> None:
    root, middle = Ca("root"), Ca("middle")
    short = root.signs(root, end=NOW + YEAR)
    issuing = root.signs(middle, end=NOW + 5 * YEAR, start=NOW - HOUR)
    authority = Authority((issuing,), short)
    assert authority.not_after == NOW + YEAR
    assert authority.not_before == NOW - HOUR
    assert authority.spki == spki_of(issuing)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_does_before_the_signers_first_start_belongs_to_the_signer(tmp_path: Path) -> None:
    folder = tmp_path / "signer"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    with ledger.opened(folder) as book:
        station = Station(folder, book)
        station.install(station.certify(station.request().csr))
        found = {path.name: path.stat() for path in folder.iterdir()}
    assert {"ledger.db", "ledger.db-wal", "ca-chain.pem", "ca-root.pem"} <= set(found)
    assert {name for name, stat in found.items() if (stat.st_uid, stat.st_gid) != (65534, 65534)} == set()
    assert found["ledger.db"].st_mode & 0o777 == 0o600
