"""A CA's chain is installed only when every certificate of it could carry device certificates."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import ConfigError
from station.signer.authority import chain_from, pem, read_certificates, spki_of
from tests.ca_parts import NOW, Ca

ROOT, MIDDLE, ISSUING = Ca("root"), Ca("middle"), Ca("issuing")
ROOT_CERTIFICATE = ROOT.signs(ROOT)
MIDDLE_CERTIFICATE = ROOT.signs(MIDDLE)
ISSUING_CERTIFICATE = MIDDLE.signs(ISSUING)
SPKI = spki_of(ISSUING_CERTIFICATE)


def test_a_chain_is_put_in_order_and_ends_below_its_root() -> None:
    for given_ones, root in (
        ([ROOT_CERTIFICATE, ISSUING_CERTIFICATE, MIDDLE_CERTIFICATE], None),
        ([MIDDLE_CERTIFICATE, ISSUING_CERTIFICATE], ROOT_CERTIFICATE),
        ([MIDDLE_CERTIFICATE, ROOT_CERTIFICATE, ISSUING_CERTIFICATE], ROOT_CERTIFICATE),
    ):
        authority = chain_from(given_ones, root, SPKI, NOW)
        assert authority.chain == (ISSUING_CERTIFICATE, MIDDLE_CERTIFICATE)
        assert authority.root == ROOT_CERTIFICATE
        assert not authority.bench


def test_what_is_missing_is_named() -> None:
    for given_ones, root, message in (
        ([ISSUING_CERTIFICATE, MIDDLE_CERTIFICATE], None, "expected the root"),
        ([ISSUING_CERTIFICATE], ROOT_CERTIFICATE, "no certificate for the issuer 'CN=middle'"),
        (
            [MIDDLE_CERTIFICATE, ROOT_CERTIFICATE],
            None,
            "none of the certificates is for the key in the token",
        ),
        ([], ROOT_CERTIFICATE, "none of the certificates"),
    ):
        with pytest.raises(ConfigError, match=message):
            chain_from(given_ones, root, SPKI, NOW)
    with pytest.raises(ConfigError, match="its own root"):
        chain_from([ROOT_CERTIFICATE], None, spki_of(ROOT_CERTIFICATE), NOW)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"end": NOW - dt.timedelta(days=1)}, "is valid from"),
        ({"start": NOW + dt.timedelta(days=1)}, "is valid from"),
        ({"constraints": None}, "lacks what RFC 5280"),
        ({"constraints": x509.BasicConstraints(ca=False, path_length=None)}, "no CA certificate"),
        ({"usage": None}, "lacks what RFC 5280"),
        ({"ski": False}, "lacks what RFC 5280"),
        ({"purposes": [ExtendedKeyUsageOID.SERVER_AUTH]}, "other purposes"),
    ],
)
def test_each_certificate_has_to_be_a_ca_now(changed: dict[str, Any], message: str) -> None:
    for chain in (
        [MIDDLE.signs(ISSUING, **changed), MIDDLE_CERTIFICATE, ROOT_CERTIFICATE],
        [ISSUING_CERTIFICATE, ROOT.signs(MIDDLE, **changed), ROOT_CERTIFICATE],
        [ISSUING_CERTIFICATE, MIDDLE_CERTIFICATE, ROOT.signs(ROOT, **changed)],
    ):
        with pytest.raises(ConfigError, match=message):
            chain_from(chain, None, SPKI, NOW)


def test_path_lengths_are_kept_to() -> None:
    def limited(path_length: int) -> dict[str, Any]:
        return {"constraints": x509.BasicConstraints(ca=True, path_length=path_length)}

    tight = [
        MIDDLE.signs(ISSUING, **limited(0)),
        ROOT.signs(MIDDLE, **limited(1)),
        ROOT.signs(ROOT, **limited(2)),
    ]
    assert len(chain_from(tight, None, SPKI, NOW).chain) == 2
    for chain in (
        [tight[0], ROOT.signs(MIDDLE, **limited(0)), tight[2]],
        [tight[0], tight[1], ROOT.signs(ROOT, **limited(1))],
    ):
        with pytest.raises(ConfigError, match="pathLenConstraint"):
            chain_from(chain, None, SPKI, NOW)


def test_a_chain_signed_by_somebody_of_the_same_name_is_refused() -> None:
    stranger = Ca("root")
    with pytest.raises(ConfigError, match="is not signed by"):
        chain_from([ISSUING_CERTIFICATE, MIDDLE_CERTIFICATE], stranger.signs(stranger), SPKI, NOW)


def test_certificates_in_a_circle_end_nowhere() -> None:
    circle = [MIDDLE.signs(ISSUING), ISSUING.signs(MIDDLE)]
    with pytest.raises(ConfigError, match="no certificate for the issuer"):
        chain_from(circle, ROOT_CERTIFICATE, SPKI, NOW)


def test_pem_files_hold_few_certificates_and_nothing_else() -> None:
    with pytest.raises(ConfigError, match="at most 8"):
        read_certificates(pem([ROOT_CERTIFICATE] * 9), "chain.pem")


@given(st.binary(max_size=300))
def test_garbage_is_no_certificate_file(raw: bytes) -> None:
    for text in (raw, b"-----BEGIN CERTIFICATE-----\n" + raw):
        with pytest.raises(ConfigError):
            read_certificates(text, "chain.pem")
