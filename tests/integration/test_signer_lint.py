"""Every certificate that we make passes a strict linter (pkilint, RFC 5280), and OpenSSL builds its chain."""

from __future__ import annotations

import datetime as dt
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from pkilint import loader
from pkilint.bin import lint_pkix_signer_signee_cert_chain as pairs
from pkilint.pkix import certificate, extension, name

from station.signer.authority import ROOT_FILE, Authority
from tests.fixtures_signer import bench_ca, sign_request

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
LEAVES: dict[str, Callable[[], Key]] = {
    "idevid-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "client-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "client-rsa2048": lambda: rsa.generate_private_key(65537, 2048),
}


SKI_AS_RFC_5280 = "INFO pkix.subject_key_identifier_method_1_identified "
"""The one remark that there always is: the subject key identifier is that of RFC 5280, 4.2.1.2, (1)."""


def findings(results: Iterable[Any]) -> list[str]:
    """All of them: a notice or a remark fails as well as an error."""
    return [
        f"{found.finding.severity.name} {found.finding.code} {found.message or ''}"
        for result in results
        for found in result.finding_descriptions
    ]


def lint(path: Path) -> list[str]:
    """As `lint_pkix_cert lint`."""
    decoders = certificate.create_decoding_validators(
        name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS
    )
    validator = certificate.create_pkix_certificate_validator_container(
        decoders,
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )
    return findings(validator.validate(loader.load_pem_certificate(path.read_text(), path.name).root))


def lint_pair(issuer: Path, subject: Path) -> list[str]:
    """As `lint_pkix_signer_signee_cert_chain lint`: names, key identifiers, signature."""
    both: dict[str, Any] = {}
    load = loader.RFC5280CertificateDocumentLoader().load_pem_document
    for role, path in (("issuer", issuer), ("subject", subject)):
        both[role] = load(path.read_text(), path.name, role, both)
    decode = pairs.create_decoder_validation_container()
    return findings(
        [
            *decode.validate(both["issuer"].root),
            *decode.validate(both["subject"].root),
            *pairs.create_issuer_validation_container().validate(both["issuer"].root),
            *pairs.create_subject_validation_container().validate(both["subject"].root),
        ]
    )


@pytest.fixture(scope="module", params=["p256", "rsa3072"])
def issued(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """A leaf of each profile, `issuing` and `root`, as PEM files, of a CA with this type of key."""
    folder = tmp_path_factory.mktemp("pem")
    files: dict[str, Path] = {}

    def keep(which: str, der: bytes) -> None:
        files[which] = folder / f"{which}.pem"
        made = x509.load_der_x509_certificate(der)
        files[which].write_bytes(made.public_bytes(serialization.Encoding.PEM))

    with bench_ca(tmp_path_factory.mktemp("ca"), request.param) as ca:
        for number, (profile, new_key) in enumerate(LEAVES.items()):
            leaf, issuing = ca.client.issue(sign_request(f"u{number}", new_key(), profile))
            keep(profile, leaf)
            keep("issuing", issuing)
        files["root"] = folder / "root.pem"
        files["root"].write_bytes((ca.paths.signer_state / ROOT_FILE).read_bytes())
        yield files


@pytest.mark.parametrize("which", [*LEAVES, "issuing", "root"])
def test_the_linter_finds_nothing(issued: dict[str, Path], which: str) -> None:
    assert lint(issued[which]) == [SKI_AS_RFC_5280]


@pytest.mark.parametrize("which", [*LEAVES, "issuing"])
def test_the_linter_finds_nothing_between_a_certificate_and_its_issuer(
    issued: dict[str, Path], which: str
) -> None:
    assert lint_pair(issued["root" if which == "issuing" else "issuing"], issued[which]) == []


def test_the_linter_is_strict(tmp_path: Path, issued: dict[str, Path]) -> None:
    """It does find something in a certificate that lacks what ours have, and in a pair that is none."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x" * 64)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    )
    window = builder.not_valid_before(now).not_valid_after(now + dt.timedelta(days=1)).serial_number(5)
    poor = tmp_path / "poor.pem"
    poor.write_bytes(window.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    assert any("authority_key_identifier" in found for found in lint(poor))
    assert lint_pair(issued["issuing"], poor)


@pytest.mark.parametrize("which", LEAVES)
def test_openssl_builds_the_chain_for_a_tls_client(issued: dict[str, Path], which: str) -> None:
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", str(issued["root"])]
    done = subprocess.run(
        [*command, "-untrusted", str(issued["issuing"]), str(issued[which])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_bench_ca_says_so(issued: dict[str, Path]) -> None:
    issuing = x509.load_pem_x509_certificate(issued["issuing"].read_bytes())
    assert Authority((issuing,)).bench
