"""A real line whose nests take certificates from everywhere: issued, from a pool, preloaded, made by the device.

Elements are SoftHSM2 tokens, one folder a nest: `Elements.insert` puts another one into a nest's reader.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from drivers.emulated.bench import softhsm
from station.signed import write_signed
from tests.fixtures_line import Bench, bench_line
from tests.fixtures_signer import softhsm_module
from tests.stock_parts import Key, Pki, digest, self_signed, spki

LABEL, PIN = "element", "86421357"
REASON: Final = 'override = "a test of long lives in files"\n'
LINK: Final = """
[settings.channel]
baud = 921600
[settings.link]
sync_timeout = 1.5
timeout = 1.0
tries = 3
[[step]]
use = "flash"
image = "gw-200-1.4.2.bin"
within = 3
"""
END: Final = """
[[step]]
use = "configure"
id_scope = "0ne00000000"
[[step]]
use = "final-check"
[[step]]
use = "enroll"
attestation = "{attestation}"
"""
IN_PROCESS: Final = """
import json, sys, pkcs11
from pkcs11 import Attribute, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters
module, label, pin, what, path = sys.argv[1:]
session = pkcs11.lib(module).get_token(token_label=label).open(rw=True, user_pin=pin)
if what == "make":
    curve = session.create_domain_parameters(
        pkcs11.KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True)
    curve.generate_keypair(label="device", id=b"1", store=True,
        private_template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False})
    (public,) = session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY})
    print(bytes(public[Attribute.EC_POINT]).hex())
else:
    from asn1crypto import x509
    from pkcs11 import CertificateType
    value = open(path, "rb").read()
    found = x509.Certificate.load(value)
    session.create_object({
        Attribute.CLASS: ObjectClass.CERTIFICATE, Attribute.CERTIFICATE_TYPE: CertificateType.X_509,
        Attribute.TOKEN: True, Attribute.PRIVATE: False, Attribute.LABEL: "device", Attribute.ID: b"1",
        Attribute.SUBJECT: found.subject.dump(), Attribute.ISSUER: found.issuer.dump(),
        Attribute.SERIAL_NUMBER: found["tbs_certificate"]["serial_number"].dump(), Attribute.VALUE: value})
"""


def element_recipe(reader: Path, identity: str, certificate: str) -> str:
    settings = f'module = "{softhsm_module()}"\ntoken = "{LABEL}"\npin = "element-pin"\n'
    return (
        'sku = "gw-e"\ndrivers = { link = "smp-serial", element = "pkcs11-element" }\n'
        f'[settings.element]\n{settings}environment = ["SOFTHSM2_CONF={reader}/softhsm2.conf"]\n'
        f'{LINK}[[step]]\nuse = "key-identity"\nplace = "element"\n{identity}'
        f'[[step]]\nuse = "certificate"\nplace = "element"\ninstall = "element"\n{certificate}'
        f"{END.format(attestation='x509')}"
    )


def board_recipe(certificate: str) -> str:
    """A board that is known by its TPM, and gets a second key in its own storage for the services behind it."""
    return (
        'sku = "gw-200"\ndrivers = { link = "smp-serial", tpm = "tcti-tunnel" }\n'
        f'{LINK}[[step]]\nuse = "tpm-identity"\n[[step]]\nuse = "tpm-ownership"\n'
        f'[[step]]\nuse = "certificate"\nplace = "link"\n{certificate}{END.format(attestation="tpm")}'
    )


class Holder:
    """Stands where a private key would: a certificate is made for its public half, the rest is in an element."""

    def __init__(self, public: ec.EllipticCurvePublicKey) -> None:
        self._public = public

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public


DEVICE_RECIPE: Final = (
    f'sku = "gw-d"\ndrivers = {{ link = "smp-serial" }}\n{LINK}'
    '[[step]]\nuse = "key-identity"\nregistration_id = "certificate"\n'
    '[[step]]\nuse = "certificate"\nsource = "device"\nplace = "link"\n'
    f"{END.format(attestation='x509')}"
)


@dataclass
class Sources:
    """The line, what its nests' readers hold, and PKIs that are not the station's."""

    bench: Bench
    pki: Pki
    vendor: Pki
    signer: ec.EllipticCurvePrivateKey

    def reader(self, nest: str) -> Path:
        return self.bench.layout.root / f"bench/reader-{nest}"

    def insert(self, nest: str) -> None:
        """A blank element."""
        reader = self.reader(nest)
        shutil.rmtree(reader / "tokens", ignore_errors=True)
        (reader / "tokens").mkdir(parents=True)
        (reader / "softhsm2.conf").write_text(
            f"directories.tokendir = {reader}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        softhsm.make_token(LABEL, PIN, {"SOFTHSM2_CONF": f"{reader}/softhsm2.conf"})

    def make_key(self, nest: str) -> ec.EllipticCurvePublicKey:
        """What its maker did: a key in the element; its public half."""
        point = bytes.fromhex(self._element(nest, "make", ""))
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point[-65:])

    def load(self, nest: str, certificate: bytes) -> None:
        path = self.reader(nest) / "leaf.der"
        path.write_bytes(certificate)
        self._element(nest, "load", str(path))

    def _element(self, nest: str, what: str, path: str) -> str:
        environment = os.environ | {"SOFTHSM2_CONF": f"{self.reader(nest)}/softhsm2.conf"}
        words = [sys.executable, "-c", IN_PROCESS, str(softhsm_module()), LABEL, PIN, what, path]
        done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True, timeout=30)
        return done.stdout.strip()

    # --- lots

    def pool(self, lot: str, chains: list[list[bytes]], keys: list[Key] | None = None) -> Path:
        """A folder as a PKI hands it over, with a signed manifest."""
        folder = self.bench.layout.root / f"bench/{lot}"
        folder.mkdir()
        leaves = [x509.load_der_x509_certificate(chain[0]) for chain in chains]
        for number, leaf in enumerate(leaves):
            (folder / f"{number}.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
        for number, key in enumerate(keys or []):
            (folder / f"{number}.key").write_bytes(pem_of(key))
        (folder / "issuing.pem").write_bytes(
            b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in chains[0][1:])
        )
        listed = {"lot": lot, "certificates": [leaf_digest(chain[0]) for chain in chains]}
        write_signed(folder / "pool.json", json.dumps(listed).encode(), self.signer)
        return folder

    def manifest(self, lot: str, elements: list[dict[str, str]]) -> Path:
        path = self.bench.layout.root / f"bench/{lot}.json"
        content = json.dumps({"lot": lot, "vendor": "Elements Inc.", "elements": elements}).encode()
        write_signed(path, content, self.signer)
        return path

    def certificate_of(self, unit: str) -> x509.Certificate:
        found = self.bench.line.unit(unit)["certificate"]
        return x509.load_der_x509_certificate(base64.b64decode(found["chain"][0]))


def leaf_digest(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def pem_of(key: Key) -> bytes:
    return key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def own_key(state: Path, key: Key, common_name: str) -> bytes:
    """A device that made its key and a self-signed certificate for itself, before it came to the line."""
    state.mkdir(mode=0o700)
    (state / "files").mkdir(mode=0o700)
    (state / "key.pem").touch(mode=0o600)
    (state / "key.pem").write_bytes(pem_of(key))
    der = self_signed(common_name, key)
    pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
    (state / "files" / b"/identity/device.pem".hex()).write_bytes(pem)
    return der


@pytest.fixture(scope="module")
def sources() -> Iterator[Sources]:
    made: list[Sources] = []
    recipes = {
        "I": ("", 'profile = "idevid-p256"\n'),
        "P": ('registration_id = "pool"\n', 'source = "pool"\nlot = "L1"\n'),
        "V": (
            'registration_id = "certificate"\ncertificate = "element"\n',
            'source = "preloaded"\nlot = "V1"\n',
        ),
    }
    boards = {
        "K": 'source = "pool"\nlot = "L2"\nkey_from = "pool"\nsubject = "any"\n' + REASON,
        "T": 'profile = "client-p256"\nkey_from = "token"\n',
    }

    def prepare(bench: Bench) -> None:
        found = Sources(bench, Pki(), Pki("Vendor"), ec.generate_private_key(ec.SECP256R1()))
        made.append(found)
        etc = bench.layout.etc
        texts = {nest: element_recipe(found.reader(nest), *parts) for nest, parts in recipes.items()} | {
            nest: board_recipe(text) for nest, text in boards.items()
        }
        texts["D"] = DEVICE_RECIPE
        for nest, text in texts.items():
            (etc / f"recipes/{nest}.toml").write_text(text)
            place = f'name = "{nest}"\nplace = "{bench._plans[nest].port}"\nrecipe = '
            bench.edit(f'{place}"gw-200.toml"', f'{place}"{nest}.toml"')
        bench.edit('"pkcs11", ', '"pkcs11", "pkcs11-element", ')
        bench.edit("quantity = 1000", "quantity = 100000")
        pin = etc / "credentials/element-pin"
        pin.touch(mode=0o600)
        pin.write_text(PIN + "\n")
        for folder, pki in (("pool", found.pki), ("preloaded", found.vendor)):
            (etc / f"trust/{folder}").mkdir()
            (etc / f"trust/{folder}/root.pem").write_bytes(pki.root.public_bytes(Encoding.PEM))
            public = found.signer.public_key().public_bytes(
                Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            (etc / f"trust/{folder}-signers").write_bytes(public)
        for nest in recipes:
            found.insert(nest)

    for bench in bench_line(dict.fromkeys([*recipes, *boards, "D"], "gw-200.toml"), prepare):
        assert bench is made[0].bench
        yield made[0]


__all__ = ["Sources", "digest", "sources", "spki"]
