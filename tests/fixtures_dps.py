"""An emulated DPS, certificates to reach and to enroll, and the official description to judge requests by."""

from __future__ import annotations

import base64
import contextlib
import copy
import datetime as dt
import ipaddress
import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from drivers.azure_dps.driver import DRIVER, DpsSettings
from drivers.emulated.dps.control import Control
from drivers.emulated.dps.device_api import DeviceApi
from drivers.emulated.dps.server import Cloud, Tls
from drivers.emulated.dps.service_api import ServiceApi
from drivers.emulated.dps.store import Store
from drivers.emulated.dps.weather import Weather
from hal.driver import opened
from hal.errors import ConfigError
from hal.interfaces import Credentials, EnrollmentSink
from hal.secret import Secret
from hal.types import Enrollment, TpmAttestation

DATA = Path(__file__).parent / "data" / "dps"
ROOT = Path(__file__).parent.parent
POLICY = "station"
KEY = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
ID_SCOPE = "0ne00TEST00"
VECTORS: dict[str, Any] = json.loads((DATA / "vectors.json").read_text())
EKS = [base64.b64decode(entry["endorsementKey"]) for entry in VECTORS["ek"]]


def unit(name: str, ek: int = 0, /, **tags: str) -> Enrollment:
    return Enrollment(name, f"{name}-device", TpmAttestation(EKS[ek]), tags)


# --- the official description ---


class Description:
    """Request and response bodies by the official JSON, stricter than it is: no unknown, no read-only members."""

    def __init__(self, name: str) -> None:
        document = json.loads((DATA / name).read_text())
        self.paths = document["paths"]
        self._requests = {"definitions": _tightened(document["definitions"], drop_read_only=True)}
        self._answers = {"definitions": _tightened(document["definitions"], drop_read_only=False)}

    def operation(self, method: str, path: str) -> dict[str, Any]:
        parts = path.strip("/").split("/")
        fitting = [
            (template.count("{"), operations)
            for template, operations in self.paths.items()
            if method.lower() in operations
            and len(names := template.strip("/").split("/")) == len(parts)
            and all(name in (part, "{id}") for name, part in zip(names, parts, strict=True))
        ]
        assert fitting, f"the official description has no {method} {path}"
        found: dict[str, Any] = min(fitting, key=lambda pair: pair[0])[1][method.lower()]
        return found

    def check_request(self, method: str, path: str, body: object) -> None:
        wanted = [part for part in self.operation(method, path)["parameters"] if part.get("in") == "body"]
        assert bool(wanted) == (body is not None), f"{method} {path}: body"
        if wanted:
            jsonschema.Draft4Validator({**self._requests, **wanted[0]["schema"]}).validate(body)

    def check_answer(self, method: str, path: str, status: int, body: object) -> None:
        responses = self.operation(method, path)["responses"]
        schema = responses.get(str(status), responses["default"]).get("schema")
        if schema is None:
            assert body is None
        else:
            # A $ref hides its siblings in draft 4, unless the definitions stand beside an allOf.
            jsonschema.Draft4Validator({**self._answers, "allOf": [schema]}).validate(body)


def _tightened(definitions: dict[str, Any], *, drop_read_only: bool) -> dict[str, Any]:
    made = copy.deepcopy(definitions)
    for definition in made.values():
        properties = definition.get("properties")
        if drop_read_only and properties:
            for name in [name for name, about in properties.items() if about.get("readOnly")]:
                del properties[name]
        extra = definition.get("additionalProperties")
        if extra == {"type": "object"}:  # AutoRest's way to write "anything"
            definition["additionalProperties"] = {}
        elif properties and extra is None:
            definition["additionalProperties"] = False
    return made


@pytest.fixture(scope="session")
def description() -> Description:
    return Description("service-2021-10-01.json")


# --- the emulator, in this process or in one of its own ---


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with running_cloud() as found:
        yield found


@contextlib.contextmanager
def running_cloud(tls: Tls | None = None) -> Iterator[Cloud]:
    store, weather = Store(), Weather()
    found = Cloud(
        store,
        weather,
        ServiceApi(store, weather, POLICY, base64.b64decode(KEY)),
        DeviceApi(store, weather, ID_SCOPE, "hub.azure-devices.net"),
        tls=tls,
    )
    found.open()
    try:
        yield found
    finally:
        found.close()
        store.close()


@dataclass
class Keys:
    """Credentials as the uploader would give them; may be changed in flight."""

    values: dict[str, str] = field(default_factory=lambda: {"dps-key": KEY})

    def secret(self, name: str) -> Secret:
        if name not in self.values:
            raise ConfigError("no such credential")
        return Secret(self.values[name].encode())


@contextlib.contextmanager
def sink_for(endpoint: str, keys: Keys | None = None, **settings: Any) -> Iterator[EnrollmentSink]:
    plan = DpsSettings(endpoint, POLICY, "dps-key", **settings)
    with opened([("dps", DRIVER, plan)], {Credentials: keys or Keys()}) as bindings:
        yield bindings.get(EnrollmentSink)


@pytest.fixture
def sink(cloud: Cloud) -> Iterator[EnrollmentSink]:
    with sink_for(cloud.endpoint) as found:
        yield found


class Emulator:
    """`python -m drivers.emulated.dps` in `folder`, with its records there."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.control = Control(folder / "control.sock")
        (folder / "key").write_text(KEY)
        self.port = 0
        self.endpoint = ""
        self.child: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.child = subprocess.Popen(
            [
                *(sys.executable, "-m", "drivers.emulated.dps", "--port", str(self.port), "--policy", POLICY),
                *("--key-file", "key", "--control", "control.sock", "--state", "state.db"),
                *("--id-scope", ID_SCOPE, *self.options),
            ],
            cwd=self.folder,
            env={"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.child.stdout is not None
        assert select.select([self.child.stdout], [], [], 20)[0], "the emulator says nothing"
        self.endpoint = json.loads(self.child.stdout.readline())["endpoint"]
        self.port = int(self.endpoint.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.child is not None
        self.child.send_signal(number)
        code = self.child.wait(20)
        assert self.child.stdout is not None
        self.child.stdout.close()
        self.child = None
        return code


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulator]:
    folder = tmp_path / "dps"
    folder.mkdir()
    found = Emulator(folder)
    found.start()
    try:
        yield found
    finally:
        if found.child is not None:
            found.stop()


# --- certificates ---


@dataclass(frozen=True)
class Issued:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def write(self, folder: Path, name: str, *more: Issued) -> tuple[str, str]:
        """Chain and key files."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.pem").write_text(self.pem + "".join(other.pem for other in more))
        (folder / f"{name}.key").write_bytes(key)
        return str(folder / f"{name}.pem"), str(folder / f"{name}.key")


def issue(name: str, issuer: Issued | None = None, *, ca: bool = False, server: bool = False) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    signer = issuer.key if issuer else key
    usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if ca:
        flags = dict.fromkeys(
            (
                *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
                *("key_agreement", "encipher_only", "decipher_only"),
            ),
            False,
        )
        builder = builder.add_extension(
            x509.KeyUsage(**flags, key_cert_sign=True, crl_sign=True), critical=True
        )
    else:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if server:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Issued(builder.sign(signer, hashes.SHA256()), key)


@dataclass(frozen=True)
class TlsFiles:
    tls: Tls
    trust: str


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    folder = tmp_path_factory.mktemp("dps-tls")
    root = issue("Test DPS root", ca=True)
    chain, key = issue("localhost", root, server=True).write(folder, "server")
    trust, _ = root.write(folder, "root")
    return TlsFiles(Tls(chain, key), trust)
