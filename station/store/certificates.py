"""The device certificate of a unit: one, for life, with a key and a serial number that no other unit's has.

Chains come in already verified; here they are only kept. CA keys and signing are the signer's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import apsw
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hal.errors import DuplicateKey, ProtocolViolation
from station.store import audit, keys, visits

_chain: Final[msgspec.msgpack.Decoder[list[bytes]]] = msgspec.msgpack.Decoder(list[bytes])


def record(db: apsw.Connection, now: int, visit: str, profile: str, chain: Sequence[bytes]) -> None:
    """Keeps a chain (DER, leaf first) for the visit's unit. The same again is fine; another leaf is DuplicateKey."""
    here = visits.get_open(db, visit)
    unit = here.joined()
    try:
        leaf = x509.load_der_x509_certificate(chain[0])
        spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (IndexError, ValueError) as error:
        raise ProtocolViolation(f"a certificate that can't be read: {error}") from error
    key = hashlib.sha256(spki).digest()
    issuer, serial = leaf.issuer.public_bytes(), f"{leaf.serial_number:x}"
    keys.claim(db, now, unit, key, keys.CERTIFICATE, visit)
    for owner, kept in list(
        db.execute(
            "SELECT unit, chain FROM certificates WHERE unit = ? OR key = ? OR (issuer, serial) = (?, ?)",
            (unit, key, issuer, serial),
        )
    ):
        if owner != unit:
            raise DuplicateKey("the certificate's key or serial number is already another unit's")
        if _chain.decode(kept)[0] != chain[0]:
            raise DuplicateKey("the unit already has another certificate")
        return
    not_after = int(leaf.not_valid_after_utc.timestamp() * 1000)
    db.execute(
        "INSERT INTO certificates (unit, visit, profile, key, issuer, serial, not_after, chain, recorded)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (unit, visit, profile, key, issuer, serial, not_after, msgspec.msgpack.encode(list(chain)), now),
    )
    audit.append(
        db,
        now,
        "certificate",
        unit=unit,
        visit=visit,
        nest=here.nest,
        fields={"profile": profile, "serial": serial, "sha256": hashlib.sha256(chain[0]).hexdigest()},
    )


def of_unit(db: apsw.Connection, unit: str) -> list[bytes] | None:
    """The unit's chain, DER, leaf first; None when it has no certificate yet."""
    chain = db.execute("SELECT chain FROM certificates WHERE unit = ?", (unit,)).get
    return _chain.decode(chain) if chain is not None else None
