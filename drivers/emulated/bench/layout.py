"""Lays out a bench station's files below one root: configuration, recipes, trust, images, credentials, officer.

The recipes and profiles are the ones that ship in config/; only what a bench must have of its own is made here.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from drivers.emulated import image
from drivers.emulated.bench import softhsm
from drivers.emulated.bench.process import run

HALLMARK: Final = (sys.executable, "-m", "station.cli")
TOKEN: Final = "hallmark-ca"  # noqa: S105 - a label
POLICY: Final = "station"
VERSION: Final = "1.4.2"
DPS_KEY: Final = "dps-key"
SOFTHSM: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
)


@dataclass(frozen=True, slots=True)
class NestPlan:
    """A nest of the bench: its name, the port that its boards appear at, and its recipe."""

    name: str
    port: Path
    recipe: str

    @property
    def sku(self) -> str:
        return self.recipe.removesuffix(".toml")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the bench keeps what is no part of the station itself."""

    root: Path
    nests: tuple[NestPlan, ...]
    image_size: int = 256 * 1024
    quantity: int = 1000
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def etc(self) -> Path:
        return self.root / "etc/hallmark"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def officer(self) -> Path:
        return self.root / "officer"

    @property
    def ek_ca(self) -> Path:
        return self.root / "bench/ek-ca"

    @property
    def dps_key_file(self) -> Path:
        return self.etc / "credentials" / DPS_KEY

    def hallmark(self, *words: str) -> list[str]:
        return [*HALLMARK, "--root", str(self.root), *words]


def data_folder() -> Path:
    """config/ of this checkout, or where an installation has it."""
    here = Path(__file__).resolve().parents[3] / "config"
    return here if here.is_dir() else Path(sys.prefix) / "share/hallmark/config"


def softhsm_module() -> Path:
    return next(Path(path) for path in SOFTHSM if Path(path).exists())


def make(layout: Layout) -> None:
    """Everything but station.toml and the CA, which need the cloud's address and the token."""
    for folder in ("recipes", "trust/ek", "images", "credentials"):
        (layout.etc / folder).mkdir(parents=True)
    for needed in (layout.logs, layout.officer, layout.root / "bench", layout.root / "run/hallmark"):
        needed.mkdir(parents=True, exist_ok=True)
    (layout.etc / "credentials").chmod(0o700)
    data = data_folder()
    shutil.copytree(data / "profiles", layout.etc / "profiles")
    for recipe in sorted({nest.recipe for nest in layout.nests}):
        shutil.copy(data / "recipes" / recipe, layout.etc / "recipes" / recipe)
    _officer(layout)
    _credential(layout.dps_key_file, base64.b64encode(secrets.token_bytes(32)).decode())
    pin = secrets.token_hex(8)
    _credential(layout.etc / "credentials/ca-pin", pin)
    _token(layout, pin)
    _images(layout)


def _token(layout: Layout, pin: str) -> None:
    """A SoftHSM token of its own below the root."""
    tokens = layout.root / "var/lib/softhsm/tokens"
    tokens.mkdir(parents=True)
    configuration = layout.etc / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    layout.environment["SOFTHSM2_CONF"] = str(configuration)
    softhsm.make_token(TOKEN, pin, layout.environment)


def write_station(layout: Layout, endpoint: str) -> None:
    """station.toml, in bench mode."""
    module = softhsm_module()
    ports = json.dumps([str(nest.port) for nest in layout.nests])
    text = f"""
[station]
name = "bench"
mode = "bench"
drivers = ["port-polling", "serial", "smp-serial", "tcti-tunnel", "pkcs11", "azure-dps"]
minimum_free_mib = 16

[[discovery]]
driver = "port-polling"
settings = {{ paths = {ports}, serial_ports = false, interval = 0.1 }}

[signer]
driver = "pkcs11"
settings = {{ module = "{module}", token = "{TOKEN}" }}

[escrow]
officers = ["trust/officer.pem"]

[[sink]]
name = "dps"
driver = "azure-dps"
settings = {{ endpoint = "{endpoint}", policy = "{POLICY}", key = "{DPS_KEY}" }}
"""
    for nest in layout.nests:
        text += f'\n[[nest]]\nname = "{nest.name}"\nplace = "{nest.port}"\nrecipe = "{nest.recipe}"\n'
    for number, sku in enumerate(sorted({nest.sku for nest in layout.nests}), 1):
        text += f'\n[[work_order]]\nid = "WO-{number}"\nsku = "{sku}"\nquantity = {layout.quantity}\n'
    (layout.etc / "station.toml").write_text(text.lstrip())


def trust_ek_ca(layout: Layout) -> None:
    """The bench's TPM maker into the trust bundle: made, signed and imported as an engineer does with a vendor's."""
    folder, bundle = layout.root / "bench/vendors", layout.root / "bench/bundle.json"
    if bundle.exists():
        return
    vendor, signers = folder / "swtpm", layout.etc / "trust/bundle-signers"
    vendor.mkdir(parents=True, exist_ok=True)
    signers.mkdir(parents=True, exist_ok=True)
    for name in ("swtpm-localca-rootca-cert.pem", "issuercert.pem"):
        shutil.copy(layout.ek_ca / name, vendor / name)
    private = layout.root / "bench/trust-officer.key"
    _signing_key(private, signers / "trust-officer.pem")
    words = ("make", str(folder), "--key", str(private), "--serial", "1", "--out", str(bundle))
    run(layout.hallmark("trust", *words), layout.environment)
    run(layout.hallmark("trust", "import", str(bundle)), layout.environment)


def _signing_key(private: Path, public: Path) -> None:
    """An Ed25519 key of the bench: the private half where an engineer has it, the public half for the station."""
    key = ed25519.Ed25519PrivateKey.generate()
    private.touch(mode=0o600)
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def make_ca(layout: Layout) -> None:
    """Root and issuing CA, in the token; and their certificates where the station and the report look."""
    run(layout.hallmark("ca", "init", "--bench"), layout.environment)


def _credential(path: Path, value: str) -> None:
    path.touch(mode=0o600)
    path.write_text(value)


def _officer(layout: Layout) -> None:
    """The escrow officer's key and certificate; only the certificate goes to the station."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Bench escrow officer")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=3650))
        .add_extension(x509.KeyUsage(*(index == 4 for index in range(9))), critical=True)  # 4: keyAgreement
        .sign(key, hashes.SHA256())
    )
    private = layout.officer / "officer.key"
    private.touch(mode=0o600)
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (layout.officer / "officer.pem").write_bytes(pem)
    (layout.etc / "trust/officer.pem").write_bytes(pem)


def _images(layout: Layout, versions: Mapping[str, str] | None = None) -> None:
    """One image a SKU, and the manifest signed by a firmware key of the bench."""
    skus: Sequence[str] = sorted({nest.sku for nest in layout.nests})
    folder = layout.etc / "images"
    private = layout.root / "bench/firmware.key"
    _signing_key(private, layout.etc / "trust/firmware.pem")
    entries = []
    for sku in skus:
        version = (versions or {}).get(sku, VERSION)
        name = f"{sku}-{version}.bin"
        (folder / name).write_bytes(image.build(version, secrets.token_bytes(layout.image_size)))
        entries.append(f"{name}={version}")
    run(
        layout.hallmark("recipe", "sign-images", str(folder), *entries, "--key", str(private)),
        layout.environment,
    )
