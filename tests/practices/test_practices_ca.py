"""Rows 6, 10 and 20 of the practices document: the root of trust, validity, and time in a warehouse."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509

from hal.errors import ConfigError, ProfileViolation
from station.signer import ledger
from station.signer.profiles import load_profile, load_profiles
from tests.ca_parts import NOW, PROFILES, YEAR
from tests.openssl_root import OpensslRoot, openssl
from tests.production_ca import did, empty_ca, request_of
from tests.unit.test_signer_generations import Station

RSA = ("rsa:3072",)


def bundle(folder: Path, form: str, files: Sequence[Path]) -> list[Path]:
    """These certificates as a PKI delivers them."""
    made = folder / f"bundle.{form}"
    if form == "pem":
        made.write_text("".join(f"Subject: something\n{file.read_text()}" for file in files))
        return [made]
    if form in ("p7b", "p7c"):
        words = [word for file in files for word in ("-certfile", str(file))]
        openssl(
            "crl2pkcs7", "-nocrl", *words, "-outform", "PEM" if form == "p7b" else "DER", "-out", str(made)
        )
        return [made]
    ders = [file.with_suffix(".der") for file in files]
    for file, der in zip(files, ders, strict=True):
        openssl("x509", "-in", str(file), "-outform", "DER", "-out", str(der))
    return ders


@pytest.mark.parametrize(
    ("form", "key_type", "root_key", "with_root"),
    [
        ("p7b", "p256", RSA, True),
        ("p7c", "rsa3072", (), False),
        ("der", "p384", RSA, False),
        ("pem", "p256", (), True),
    ],
)
def test_row_06_a_third_partys_private_ca_of_three_levels_signs_the_station_in_any_form(
    short_root: Path, form: str, key_type: str, root_key: tuple[str, ...], with_root: bool
) -> None:
    with empty_ca(short_root, key_type) as (ca, csr):
        root = OpensslRoot(short_root / "root", "/O=Third Party/CN=Private root", root_key)
        policy = root.intermediate(short_root / "policy", "/O=Third Party/CN=Policy CA", root_key)
        sub = policy.intermediate(short_root / "sub", "/O=Third Party/CN=Sub CA")
        other = OpensslRoot(short_root / "other", "/O=Third Party/CN=Private root", root_key)
        issuing = sub.sign(csr)
        files = bundle(short_root, form, [sub.certificate, issuing, policy.certificate])
        lacking = ca.hallmark("ca", "install", str(issuing), "--root", str(root.certificate))
        assert (lacking.returncode, "no certificate for the issuer" in lacking.stderr) == (2, True)
        wrong = ca.hallmark("ca", "install", *map(str, files), "--root", str(other.certificate))
        assert (wrong.returncode, "is not signed by" in wrong.stderr) == (2, True), wrong.stderr
        ends = (str(root.certificate),) if with_root else ("--root", str(root.certificate))
        did(ca, "install", *map(str, files), *ends)
        ca.start()
        chain = ca.client.issue(request_of(ca, "u1"))
        assert len(chain) == 4
        root.verify(chain, short_root / "verified")


def test_row_06_the_own_root_signs_offline_and_its_revocation_list_is_the_stations(short_root: Path) -> None:
    with empty_ca(short_root) as (ca, csr):
        root = OpensslRoot(short_root / "root")
        did(ca, "install", str(root.sign(csr)), "--root", str(root.certificate))
        ca.start()
        chains = {unit: ca.client.issue(request_of(ca, unit)) for unit in ("good", "scrapped")}
        did(ca, "revoke", "scrapped", "--why", "cracked in the press")
        did(ca, "crl", "--out", str(short_root / "line.crl"))
        openssl(
            "crl", "-inform", "DER", "-in", str(short_root / "line.crl"), "-out", str(short_root / "line.pem")
        )
        words = ("-crl_check", "-CRLfile", str(short_root / "line.pem"))
        root.verify(chains["good"], short_root / "good", *words)
        with pytest.raises(AssertionError, match="certificate revoked"):
            root.verify(chains["scrapped"], short_root / "scrapped", *words)
        refused = ca.hallmark("ca", "revoke", "nobody")
        assert (refused.returncode, "no certificate" in refused.stderr) == (2, True)


def test_row_10_no_leaf_outlives_a_ca_above_it_and_none_without_an_end_is_under_one(tmp_path: Path) -> None:
    with ledger.opened(tmp_path) as book:
        station = Station(tmp_path, book)
        csr = station.request().csr
        # The root ends before the intermediate: the leaf ends with the root.
        station.root_certificate = station.root.signs(station.root, end=NOW + 8 * YEAR)
        station.install(station.certify(csr, end=NOW + 20 * YEAR))
        assert station.issue("u1").not_valid_after_utc == NOW + 8 * YEAR
        with pytest.raises(ProfileViolation, match=r"9999-12-31.*2035-02-27") as caught:
            station.issue("u2", profile="idevid-forever-p256")
        assert "outlives" in str(caught.value)
        assert book.counts() == (1, 0)


def test_row_10_a_certificate_without_an_end_is_issued_under_cas_without_one(tmp_path: Path) -> None:
    forever = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
    with ledger.opened(tmp_path) as book:
        station = Station(tmp_path, book)
        csr = station.request().csr
        station.root_certificate = station.root.signs(station.root, end=forever)
        station.install(station.certify(csr, end=forever))
        made = station.issue("u1", profile="idevid-forever-p256")
        assert made.not_valid_after_utc == forever
        assert b"\x18\x0f99991231235959Z" in made.tbs_certificate_bytes


def test_row_20_every_shipped_profile_outlasts_a_year_in_a_warehouse() -> None:
    for profile in load_profiles(PROFILES).values():
        assert profile.file.validity.warehouse_days >= 365
        assert profile.least_days >= profile.file.validity.warehouse_days + 180


@pytest.mark.parametrize(
    ("validity", "line", "key"),
    [
        ("days = 365", 3, "validity.days"),
        ("days = 730\nminimum_days = 365", 4, "validity.minimum_days"),
        ("days = 730\nminimum_days = 500\nwarehouse_days = 500", 4, "validity.minimum_days"),
        ("warehouse_days = 365", 2, "validity"),
        ("days = 730\nno_expiry = true", 2, "validity"),
        ("no_expiry = true\nminimum_days = 400", 4, "validity.minimum_days"),
    ],
)
def test_row_20_a_profile_whose_certificate_could_expire_in_the_warehouse_is_refused(
    tmp_path: Path, validity: str, line: int, key: str
) -> None:
    text = (
        'key_type = "p256"\n[validity]\n' + validity + '\n[subject]\ncommon_name = "{registration_id}"\n'
        '[extensions]\nkey_usage = ["digital_signature"]\n'
    )
    (tmp_path / "short.toml").write_text(text)
    with pytest.raises(ConfigError, match="expected") as caught:
        load_profile(tmp_path, "short")
    assert (caught.value.line, caught.value.key) == (line, key)
    (tmp_path / "short.toml").write_text(text.replace(validity, "days = 30\nwarehouse_days = 7"))
    assert load_profile(tmp_path, "short").least_days == 30


def test_row_20_issuing_ends_in_time_before_the_cas_end_and_is_announced(short_root: Path) -> None:
    with empty_ca(short_root) as (ca, csr):
        root = OpensslRoot(short_root / "root")
        # Six hundred days are enough for a client's 545, which include the warehouse, and not for an IDevID's 1,825.
        installed = did(ca, "install", str(root.sign(csr, days=600)), "--root", str(root.certificate))
        until = dt.datetime.now(dt.UTC) + dt.timedelta(days=600 - 545)
        assert (
            f"profile client-p256: the issuing CA's certificate allows this profile until {until:%Y-%m-%d}   SOON"
            in (installed)
        )
        assert "idevid-p256.toml:" in installed
        ca.start()
        made = x509.load_der_x509_certificate(ca.client.issue(request_of(ca, "u1", profile="client-p256"))[0])
        assert made.not_valid_after_utc - dt.datetime.now(dt.UTC) > dt.timedelta(days=545)
        with pytest.raises(ProfileViolation, match="wants at least 1825 days of validity"):
            ca.client.issue(request_of(ca, "u2"))
        assert "SOON" in did(ca, "status")


def test_row_20_nothing_is_issued_by_a_profile_that_was_shortened_later(tmp_path: Path) -> None:
    shutil.copytree(PROFILES, tmp_path / "profiles")
    short = tmp_path / "profiles/client-p256.toml"
    short.write_text(short.read_text().replace("minimum_days = 545", "minimum_days = 300"))
    with pytest.raises(ConfigError, match="warehouse_days"):
        load_profiles(tmp_path / "profiles")
