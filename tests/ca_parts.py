"""Certification authorities in memory, for tests of chains and generations: each a key, and what it signs."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from station.signer.ceremony import CA_USAGE
from station.signer.clock import Limits, Machine
from tests.fixtures_signer import REPOSITORY

NOW: Final = dt.datetime(2027, 3, 1, 12, tzinfo=dt.UTC)
YEAR: Final = dt.timedelta(days=365)
PROFILES: Final = REPOSITORY / "config/profiles"

LIMITS: Final = Limits(dt.timedelta(hours=4), dt.timedelta(days=60))


@dataclass
class Clocks:
    """A machine's clocks to turn: `now` is what the wall clock shows; time really passes with `passes`."""

    now: dt.datetime = NOW
    boot: str = "boot-1"
    uptime: float = 1000.0

    def passes(self, duration: dt.timedelta) -> None:
        self.now += duration
        self.uptime += duration.total_seconds()

    def reboots(self, after: dt.timedelta = dt.timedelta(0)) -> None:
        """Another boot, `after` so long without power."""
        self.now += after
        self.boot, self.uptime = self.boot + "+", 30.0

    @property
    def machine(self) -> Machine:
        return Machine(lambda: self.now, lambda: self.boot, lambda: self.uptime)


Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Public = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class Ca:
    """A key, and certificates made with it."""

    def __init__(self, common_name: str, key: Key | None = None) -> None:
        self.key: Key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])

    def signs(self, subject: Ca, **changed: Any) -> x509.Certificate:
        """A CA certificate for another, but for what is `changed`."""
        return self.certifies(subject.key.public_key(), subject.name, **changed)

    def certifies(self, public: Public, name: x509.Name, **changed: Any) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(changed.get("start", NOW - YEAR))
            .not_valid_after(changed.get("end", NOW + YEAR))
        )
        if "constraints" not in changed or changed["constraints"] is not None:
            constraints = changed.get("constraints", x509.BasicConstraints(ca=True, path_length=None))
            builder = builder.add_extension(constraints, critical=True)
        if changed.get("usage", CA_USAGE) is not None:
            builder = builder.add_extension(changed.get("usage", CA_USAGE), critical=True)
        if changed.get("ski", True):
            builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        if "purposes" in changed:
            builder = builder.add_extension(x509.ExtendedKeyUsage(changed["purposes"]), critical=False)
        for extension in changed.get("extensions", ()):
            builder = builder.add_extension(extension, critical=True)
        return builder.sign(self.key, hashes.SHA256())
