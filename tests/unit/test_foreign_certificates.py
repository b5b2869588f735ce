"""Certificates made elsewhere: which ones a device may have. openssl's verdict is asked too where it has one."""

from __future__ import annotations

import datetime as dt
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import CertificateUntrusted
from station.foreign import Terms, judge, judge_self_signed, read_leaf
from tests.stock_parts import DER, NOW, Pki, _begun, name, new_key, self_signed, spki

PKI = Pki()
OTHER = Pki("Another")


def openssl_verifies(chain: list[bytes], root: x509.Certificate, folder: Path) -> bool:
    from cryptography.hazmat.primitives.serialization import Encoding

    pems = [x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in chain]
    (folder / "leaf.pem").write_bytes(pems[0])
    (folder / "between.pem").write_bytes(b"".join(pems[1:]) or pems[0])
    (folder / "root.pem").write_bytes(root.public_bytes(Encoding.PEM))
    command = ["openssl", "verify", "-purpose", "sslclient", "-CAfile", str(folder / "root.pem")]
    command += ["-untrusted", str(folder / "between.pem"), str(folder / "leaf.pem")]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


def test_a_chain_that_leads_to_an_anchor_is_taken_as_openssl_takes_it(tmp_path: Path) -> None:
    key = new_key()
    chain = PKI.chain("gw-1", key)
    leaf = judge(chain, PKI.terms, NOW)
    assert (leaf.common_name, leaf.spki) == ("gw-1", spki(key))
    assert openssl_verifies(chain, PKI.root, tmp_path)


def test_an_issuing_ca_may_be_the_anchor_itself_and_the_device_may_keep_its_leaf_only() -> None:
    terms = Terms((PKI.issuing.public_bytes(DER),), 545)
    assert judge([PKI.leaf("gw-1", new_key())], terms, NOW).common_name == "gw-1"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"signer": OTHER.key}, "leads to no anchor"),
        ({"days": 500}, "fewer than 545 days"),
        ({"start": -2}, "leads to no anchor|valid from"),
        ({"ca": True}, "a CA's certificate|leads to no anchor"),
        ({"purposes": None}, "no extended key usage"),
        ({"purposes": [ExtendedKeyUsageOID.SERVER_AUTH]}, "does not allow clientAuth"),
    ],
)
def test_a_certificate_that_a_device_may_not_have_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(CertificateUntrusted, match=said):
        judge(PKI.chain("gw-1", new_key(), **changed), PKI.terms, NOW)


def test_another_pki_a_missing_link_too_many_and_none_are_refused(tmp_path: Path) -> None:
    chain = PKI.chain("gw-1", new_key())
    for wrong, terms, said in (
        (chain, OTHER.terms, "leads to no anchor"),
        (chain[:1], PKI.terms, "leads to no anchor"),
        ([], PKI.terms, "0 certificates"),
        (chain * 5, PKI.terms, "10 certificates"),
        (chain, Terms((), 545), "no anchor that"),
        ([b"rubbish"], PKI.terms, "can't be read"),
        ([b"x" * 20_000], PKI.terms, "20000 octets"),
    ):
        with pytest.raises(CertificateUntrusted, match=said):
            judge(wrong, terms, NOW)
    assert not openssl_verifies(chain, OTHER.root, tmp_path)


def test_a_vendors_certificate_may_keep_silent_about_what_it_is_for() -> None:
    silent = PKI.chain("gw-1", new_key(), purposes=None)
    terms = Terms(PKI.terms.anchors, 545, client_auth=False)
    assert judge(silent, terms, NOW).common_name == "gw-1"
    with pytest.raises(CertificateUntrusted, match="clientAuth"):
        judge(PKI.chain("gw-1", new_key(), purposes=[ExtendedKeyUsageOID.SERVER_AUTH]), terms, NOW)


@pytest.mark.parametrize(
    "key", [rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP224R1())], ids=["rsa", "ec"]
)
def test_a_weak_key_is_refused(key: Any) -> None:
    subject = name("weak")
    der = _begun(subject, subject, key, 800).sign(key, hashes.SHA256()).public_bytes(DER)
    with pytest.raises(CertificateUntrusted, match=r"bits|on 'secp224r1'"):
        read_leaf(der)


def test_what_a_device_made_itself_is_taken_when_it_holds() -> None:
    key = new_key()
    leaf = judge_self_signed([self_signed("gw-1", key)], 545, NOW)
    assert (leaf.common_name, leaf.spki) == ("gw-1", spki(key))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"signer": new_key()}, "not signed by its own key"),
        ({"issuer": "somebody"}, "issued by somebody else"),
        ({"days": 300}, "fewer than 545 days"),
    ],
)
def test_what_a_device_made_badly_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(CertificateUntrusted, match=said):
        judge_self_signed([self_signed("gw-1", new_key(), **changed)], 545, NOW)
    with pytest.raises(CertificateUntrusted, match="2 certificates"):
        judge_self_signed([self_signed("gw-1", new_key())] * 2, 545, NOW)


def test_a_certificate_from_the_future_is_refused() -> None:
    with pytest.raises(CertificateUntrusted, match="check the station's clock"):
        judge_self_signed([self_signed("gw-1", new_key())], 545, NOW - dt.timedelta(days=30))


@given(st.binary(max_size=300), st.integers(min_value=0, max_value=900))
def test_no_octets_bring_it_down(junk: bytes, at: int) -> None:
    whole = self_signed("gw-1", _KEY)
    damaged = whole[:at] + junk + whole[at + len(junk) :]
    for octets in (junk, damaged):
        for look in (
            lambda given: judge([given], PKI.terms, NOW),
            lambda given: judge_self_signed([given], 545, NOW),
        ):
            try:
                look(octets)
            except CertificateUntrusted:
                continue


_KEY = new_key()
