"""An EK certificate is believed when its chain ends in the trust store and for no other reason; both ways to verify."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.errors import EkUntrusted
from station.trust import chain
from station.trust.policy import CrlPolicy
from station.trust.reading import read_certificate
from station.trust.trust_set import Origin, assemble, read_leaf

EK_USAGE: Final = x509.ObjectIdentifier(chain.EK_USAGE)
NOW: Final = dt.datetime.now(dt.UTC)
DAY: Final = dt.timedelta(days=1)
EK: Final = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
POLICY: Final = x509.CertificatePolicies(
    [x509.PolicyInformation(x509.ObjectIdentifier("2.23.133.8.1"), None)]
)
TPM_SAN: Final = x509.SubjectAlternativeName(
    [
        x509.DirectoryName(
            x509.Name([x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.1"), "id:00001014")])
        )
    ]
)
CA_USE: Final = x509.KeyUsage(*(index in (5, 6) for index in range(9)))  # keyCertSign, cRLSign


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


class Maker:
    """A key with a name; makes certificates for others."""

    def __init__(self, text: str) -> None:
        self.key, self.name = ec.generate_private_key(ec.SECP256R1()), name(text)

    def certify(self, subject: x509.Name, public: Any, **changed: Any) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(changed.get("start", NOW - 30 * DAY))
            .not_valid_after(changed.get("end", NOW + 30 * DAY))
        )
        for extension, critical in changed.get("extensions", []):
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())

    def ca(self, other: Maker, path_length: int | None = None, **changed: Any) -> x509.Certificate:
        extensions = [
            (x509.BasicConstraints(ca=changed.pop("is_ca", True), path_length=path_length), True),
            (changed.pop("usage", CA_USE), True),
            (x509.SubjectKeyIdentifier.from_public_key(other.key.public_key()), False),
            *changed.pop("more", []),
        ]
        return self.certify(other.name, other.key.public_key(), extensions=extensions, **changed)

    def ek(self, **changed: Any) -> x509.Certificate:
        """As TPM makers make them: empty subject, critical SAN, key encipherment, the EK purpose."""
        extensions = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (TPM_SAN, True),
            (x509.KeyUsage(*(index == 2 for index in range(9))), True),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False),
            *changed.pop("more", [(x509.ExtendedKeyUsage([EK_USAGE]), False)]),
        ]
        return self.certify(name(""), changed.pop("public", EK), extensions=extensions, **changed)


ROOT, MIDDLE, OTHER = Maker("maker root"), Maker("maker intermediate"), Maker("another maker")
ROOT_CERTIFICATE = ROOT.ca(ROOT)
MIDDLE_CERTIFICATE = ROOT.ca(MIDDLE, 0)
HARD: Final = [(x509.ExtendedKeyUsage([EK_USAGE]), False), (POLICY, True)]
"""Critical certificate policies, which `cryptography`'s verifier does not know: the fallback decides."""


def der(*certificates: x509.Certificate) -> tuple[bytes, ...]:
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in certificates)


def verify_ek_certificate(leaf: bytes, offered: tuple[bytes, ...], trust: tuple[bytes, ...]) -> str:
    """The anchor's subject."""
    known = assemble(Origin("test"), [read_certificate(item) for item in trust], [])
    now = dt.datetime.now(dt.UTC)
    return known.verify(read_leaf(leaf), offered, CrlPolicy.OFF, now)[0].anchor.subject


def verify(
    leaf: x509.Certificate, chain: tuple[x509.Certificate, ...], trust: tuple[x509.Certificate, ...]
) -> str:
    return verify_ek_certificate(der(leaf)[0], der(*chain), der(*trust))


@pytest.fixture(params=["strict", "fallback"])
def more(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Extensions of the leaf that send it one way or the other."""
    return {} if request.param == "strict" else {"more": HARD}


# --- what is believed -------------------------------------------------------------------------------------------


def test_a_chain_to_a_root_of_the_trust_store_holds(more: dict[str, Any]) -> None:
    leaf = MIDDLE.ek(**more)
    anchor = verify(leaf, (), (ROOT_CERTIFICATE, MIDDLE_CERTIFICATE))
    assert anchor == "CN=maker root"
    assert verify(leaf, (MIDDLE_CERTIFICATE,), (ROOT_CERTIFICATE,)) == anchor
    assert verify(ROOT.ek(**more), (), (ROOT_CERTIFICATE,)) == anchor


def test_the_strict_verifier_decides_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the fallback was asked")

    monkeypatch.setattr(chain, "_verify_by_hand", never)
    assert verify(MIDDLE.ek(), (MIDDLE_CERTIFICATE,), (ROOT_CERTIFICATE,))


def test_a_certificate_without_expiry_holds(more: dict[str, Any]) -> None:
    """9999-12-31 means that there is none (RFC 5280, 4.1.2.5): what real TPMs have."""
    forever = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
    assert verify(ROOT.ek(end=forever, **more), (), (ROOT_CERTIFICATE,))


def test_an_old_chip_without_the_purpose_is_known_by_its_san() -> None:
    assert verify(ROOT.ek(more=[]), (), (ROOT_CERTIFICATE,))


def test_a_key_that_is_marked_for_oaep_only_is_left_to_the_fallback() -> None:
    """RSAES-OAEP as the SPKI's algorithm (RFC 4055, 4.1): its key can't even be loaded, its signature holds."""
    rsa_encryption = bytes.fromhex("06092a864886f70d010101")
    rsaes_oaep = bytes.fromhex("06092a864886f70d010107")
    spki = EK.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    certificate = ROOT.ek()
    body = certificate.tbs_certificate_bytes.replace(spki, spki.replace(rsa_encryption, rsaes_oaep))
    assert body != certificate.tbs_certificate_bytes
    signature = ROOT.key.sign(body, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    bits = b"\x03" + bytes([len(signature) + 1]) + b"\0" + signature
    inner = body + algorithm + bits
    made = b"\x30\x82" + len(inner).to_bytes(2, "big") + inner
    assert verify_ek_certificate(made, (), der(ROOT_CERTIFICATE)) == "CN=maker root"
    forged = made[:-4] + bytes([made[-4] ^ 1]) + made[-3:]
    with pytest.raises(EkUntrusted):
        verify_ek_certificate(forged, (), der(ROOT_CERTIFICATE))


# --- what is not ------------------------------------------------------------------------------------------------


def refused(leaf: x509.Certificate, *known: x509.Certificate) -> None:
    """As refused when the TPM offers what lies between, as when the trust store has it."""
    with pytest.raises(EkUntrusted):
        verify(leaf, known, (ROOT_CERTIFICATE,))
    with pytest.raises(EkUntrusted):
        verify(leaf, (), (ROOT_CERTIFICATE, *known))


def test_a_foreign_chain_is_refused(more: dict[str, Any]) -> None:
    foreign = OTHER.ca(OTHER)
    with pytest.raises(EkUntrusted, match="no chain from there"):
        verify(OTHER.ek(**more), (foreign,), (ROOT_CERTIFICATE,))


def test_a_ca_with_a_trusted_name_and_another_key_is_refused(more: dict[str, Any]) -> None:
    double = Maker("maker root")
    with pytest.raises(EkUntrusted):
        verify(double.ek(**more), (double.ca(double),), (ROOT_CERTIFICATE,))


def test_an_issuer_that_is_no_ca_is_refused(more: dict[str, Any]) -> None:
    refused(MIDDLE.ek(**more), ROOT.ca(MIDDLE, is_ca=False))
    bare = ROOT.certify(MIDDLE.name, MIDDLE.key.public_key())
    refused(MIDDLE.ek(**more), bare)


def test_an_issuer_that_may_not_sign_certificates_is_refused(more: dict[str, Any]) -> None:
    usage = x509.KeyUsage(*(index == 0 for index in range(9)))  # digitalSignature
    refused(MIDDLE.ek(**more), ROOT.ca(MIDDLE, usage=usage))


def test_a_chain_that_is_longer_than_a_ca_allows_is_refused(more: dict[str, Any]) -> None:
    low = Maker("low")
    refused(low.ek(**more), MIDDLE_CERTIFICATE, MIDDLE.ca(low))


@pytest.mark.parametrize("which", ["leaf", "intermediate", "root"])
@pytest.mark.parametrize(
    "dates", [{"end": NOW - DAY}, {"start": NOW + DAY, "end": NOW + 2 * DAY}], ids=["expired", "future"]
)
def test_a_certificate_out_of_its_dates_is_refused(
    more: dict[str, Any], which: str, dates: dict[str, Any]
) -> None:
    root = ROOT.ca(ROOT, **(dates if which == "root" else {}))
    middle = ROOT.ca(MIDDLE, 0, **(dates if which == "intermediate" else {}))
    leaf = MIDDLE.ek(**more, **(dates if which == "leaf" else {}))
    with pytest.raises(EkUntrusted):
        verify(leaf, (middle,), (root,))


@pytest.mark.parametrize("where", ["leaf", "intermediate"])
def test_a_critical_mark_that_nobody_knows_is_refused(more: dict[str, Any], where: str) -> None:
    unknown = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"), True)
    extensions = [*more.get("more", [(x509.ExtendedKeyUsage([EK_USAGE]), False)])]
    leaf = MIDDLE.ek(more=[*extensions, unknown] if where == "leaf" else extensions)
    middle = ROOT.ca(MIDDLE, 0, more=[unknown] if where == "intermediate" else [])
    refused(leaf, middle)


def test_a_ca_that_is_limited_to_other_names_is_refused(more: dict[str, Any]) -> None:
    """Name constraints are not what the fallback can judge: it does not guess."""
    limits = x509.NameConstraints([x509.DNSName("example.org")], None)
    leaf = MIDDLE.ek(**more)
    middle = ROOT.ca(MIDDLE, 0, more=[(limits, True)])
    if more:
        refused(leaf, middle)


def test_a_certificate_for_another_purpose_is_refused() -> None:
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    with pytest.raises(EkUntrusted, match="not marked"):
        verify(ROOT.ek(more=[(purpose, False)]), (), (ROOT_CERTIFICATE,))


def test_an_intermediate_alone_is_no_anchor_and_an_empty_store_trusts_nobody() -> None:
    with pytest.raises(EkUntrusted, match="holds no EK root"):
        verify(MIDDLE.ek(), (), (MIDDLE_CERTIFICATE,))
    with pytest.raises(EkUntrusted, match="holds no EK root"):
        verify(MIDDLE.ek(), (MIDDLE_CERTIFICATE, ROOT_CERTIFICATE), ())


def test_a_self_signed_certificate_that_the_tpm_offers_is_no_anchor(more: dict[str, Any]) -> None:
    with pytest.raises(EkUntrusted):
        verify(OTHER.ek(**more), (OTHER.ca(OTHER),), (ROOT_CERTIFICATE,))


def test_a_circle_of_issuers_ends() -> None:
    one, two = Maker("one"), Maker("two")
    with pytest.raises(EkUntrusted):
        verify(one.ek(more=HARD), (two.ca(one), one.ca(two)), (ROOT_CERTIFICATE,))


GOOD: Final = der(ROOT.ek())[0]


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_damaged_certificate_is_refused_or_still_says_what_was_signed(at: int, flip: int) -> None:
    damaged = GOOD[:at] + bytes([GOOD[at] ^ flip]) + GOOD[at + 1 :]
    try:
        verify_ek_certificate(damaged, (), der(ROOT_CERTIFICATE))
    except EkUntrusted:
        return
    # The count of unused bits before a signature is signed by nobody.
    signed = x509.load_der_x509_certificate(GOOD).tbs_certificate_bytes
    assert x509.load_der_x509_certificate(damaged).tbs_certificate_bytes == signed


@given(st.binary(max_size=400))
def test_garbage_is_no_certificate(raw: bytes) -> None:
    with pytest.raises(EkUntrusted):
        verify_ek_certificate(raw, (), der(ROOT_CERTIFICATE))
    with pytest.raises(EkUntrusted):
        verify_ek_certificate(GOOD, (raw,), der(OTHER.ca(OTHER)))
