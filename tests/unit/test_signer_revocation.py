"""Revocation: what was revoked is given to nobody, and lists that openssl takes, each number standing for one list."""

from __future__ import annotations

import datetime as dt
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from hal.call import Call
from hal.errors import ClockUntrusted, ConfigError, IssuanceRefused, TokenAbsent
from station import messages
from station.signer import ledger
from station.signer.authority import Authority, pem
from tests.ca_parts import NOW, YEAR
from tests.openssl_root import openssl
from tests.unit.test_signer_generations import Station

DAY = dt.timedelta(days=1)


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    with ledger.opened(tmp_path) as book:
        made = Station(tmp_path, book)
        made.install(made.certify(made.request().csr))
        yield made


def revoke(
    station: Station, name: str, reason: messages.ca.Reason = "cessation-of-operation"
) -> messages.Revoked:
    made = station.administration.answer(Call(), messages.Revoke(name, reason, "why"), "anna")
    assert isinstance(made, messages.Revoked)
    return made


def make(station: Station, generation: int | None = None) -> x509.CertificateRevocationList:
    made = station.administration.answer(Call(), messages.MakeCrl(generation), "anna")
    assert isinstance(made, messages.RevocationList)
    found = x509.load_der_x509_crl(made.crl)
    assert number(found) == made.number
    assert len(list(found)) == made.entries
    return found


def number(found: x509.CertificateRevocationList) -> int:
    return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def test_openssl_refuses_what_is_on_the_list_and_takes_the_others(station: Station, tmp_path: Path) -> None:
    units = {unit: station.issue(unit) for unit in ("u1", "u2")}
    assert revoke(station, "u1", "key-compromise").new
    found = make(station)
    authority = station.generations.all[0].authority
    assert isinstance(authority, Authority)
    (tmp_path / "list.pem").write_bytes(found.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "cas.pem").write_bytes(pem(authority.above))
    at = str(int((NOW + dt.timedelta(minutes=1)).timestamp()))
    for unit, said in (("u1", "certificate revoked"), ("u2", "OK")):
        (tmp_path / "leaf.pem").write_bytes(pem([units[unit]]))
        files = ["-CAfile", str(tmp_path / "cas.pem"), "-CRLfile", str(tmp_path / "list.pem")]
        done = subprocess.run(
            ["openssl", "verify", "-crl_check", "-attime", at, *files, str(tmp_path / "leaf.pem")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert said in done.stdout + done.stderr
    shown = openssl(
        *("crl", "-in", str(tmp_path / "list.pem"), "-noout", "-text", "-CAfile", str(tmp_path / "cas.pem"))
    )
    assert "verify OK" in shown.stderr
    for wanted in ("Version 2", "X509v3 CRL Number", "X509v3 Authority Key Identifier", "Key Compromise"):
        assert wanted in shown.stdout


def test_a_revoked_unit_is_given_no_certificate_and_one_that_was_begun_is_not_finished(
    station: Station,
) -> None:
    station.issue("u1")
    station.token.fail = TokenAbsent("gone")
    with pytest.raises(TokenAbsent):
        station.issue("u2")
    station.token.fail = None
    for unit in ("u1", "u2"):
        revoke(station, unit)
        with pytest.raises(IssuanceRefused, match="was revoked"):
            station.issue(unit)
    assert len(list(make(station))) == 2


def test_a_unit_is_named_by_itself_its_registration_id_or_its_serial_number(station: Station) -> None:
    made = [station.issue(unit) for unit in ("u1", "u2", "u3")]
    serials = [f"{one.serial_number:040x}" for one in made]
    openssl_like = ":".join(serials[2][index : index + 2] for index in range(0, 40, 2)).upper()
    assert [revoke(station, name).unit for name in ("u1", "dev-u2", openssl_like)] == ["u1", "u2", "u3"]
    for unknown in ("u4", "zz", "", "00"):
        with pytest.raises(ConfigError, match="no certificate"):
            revoke(station, unknown or "?")


def test_revoking_again_changes_nothing(station: Station) -> None:
    station.issue("u1")
    first = revoke(station, "u1", "superseded")
    station.clocks.passes(DAY)
    again = revoke(station, "u1", "key-compromise")
    assert (again.new, again.at, again.reason) == (False, first.at, "superseded")
    (entry,) = make(station)
    assert entry.revocation_date_utc == NOW
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value == "superseded"


def test_an_unspecified_reason_is_left_out_of_the_entry(station: Station) -> None:
    station.issue("u1")
    revoke(station, "u1", "unspecified")
    (entry,) = make(station)
    assert list(entry.extensions) == []


def test_numbers_grow_and_a_list_that_was_not_signed_is_signed_as_it_stands(station: Station) -> None:
    assert number(make(station)) == 1
    station.issue("u1")
    revoke(station, "u1")
    station.token.fail = TokenAbsent("gone")
    with pytest.raises(TokenAbsent):
        make(station)
    with station.book.using() as db:
        ((intended,),) = list(db.execute("SELECT tbs FROM crls WHERE crl IS NULL"))
    station.token.fail = None
    station.open()
    station.clocks.passes(DAY)
    assert number(make(station)) == 3
    with station.book.using() as db:
        ((second,),) = list(db.execute("SELECT crl FROM crls WHERE number = 2"))
    assert isinstance(second, bytes)
    assert x509.load_der_x509_crl(second).tbs_certlist_bytes == intended


def test_each_name_and_key_has_a_list_of_its_own(station: Station) -> None:
    station.issue("u1")
    station.roll()
    station.activate(2)
    station.issue("u2")
    for unit in ("u1", "u2"):
        revoke(station, unit)
    lists = {generation: make(station, generation) for generation in (1, 2)}
    for generation, found in lists.items():
        authority = station.generations.get(generation).authority
        assert found.issuer == authority.issuer.subject
        assert found.is_signature_valid(authority.issuer.public_key())  # type: ignore[arg-type]
        assert number(found) == 1
        assert len(list(found)) == 1
    # A renewed certificate of the same name and key goes on with the same list.
    station.install(station.certify(station.request().csr, end=NOW + 26 * YEAR))
    assert number(make(station, 3)) == 2
    assert len(list(make(station, 3))) == 1


def test_an_entry_stays_until_a_list_after_its_certificates_end(station: Station) -> None:
    made = station.issue("u1")
    revoke(station, "u1")
    end = made.not_valid_after_utc - station.clocks.now
    station.clocks.passes(end - DAY)
    assert len(list(make(station))) == 1
    station.clocks.passes(2 * DAY)
    assert len(list(make(station))) == 1
    station.clocks.passes(DAY)
    assert len(list(make(station))) == 0


def test_a_list_ends_with_its_ca_and_a_ca_that_ended_or_may_not_signs_none(station: Station) -> None:
    authority = station.generations.all[0].authority
    end = authority.issuer.not_valid_after_utc
    station.clocks.passes(end - NOW - 2 * DAY)
    assert make(station).next_update_utc == end
    station.clocks.passes(3 * DAY)
    with pytest.raises(ConfigError, match="signs no more lists"):
        make(station)


def test_a_ca_without_crl_sign_signs_no_list(station: Station) -> None:
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    station.install(station.certify(station.request(new_key=True).csr, usage=usage))
    with pytest.raises(ConfigError, match="cRLSign"):
        make(station, 2)


def test_an_untrusted_clock_dates_no_list(station: Station) -> None:
    station.issue("u1")
    station.clocks.now -= DAY
    with pytest.raises(ClockUntrusted):
        make(station)
    with pytest.raises(ClockUntrusted):
        revoke(station, "u1")


def test_a_list_has_every_unit_that_was_revoked_once(station: Station) -> None:
    for count in range(60):
        station.issue(f"m{count}")
        revoke(station, f"m{count}")
    found = make(station)
    assert len({entry.serial_number for entry in found}) == 60
