"""The unit's certificate and its key, whoever made them; lots of certificates that were made elsewhere: `stock`."""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from station.store import certificates, keys, signatures, visits
from station.store.part import Part


class Certificates(Part):
    """One key and one chain per unit, for good."""

    def claim_key(self, visit: str, key: bytes) -> None:
        """`key` (SHA-256 of its SPKI) is the joined unit's certificate key for good. DuplicateKey when it isn't."""

        def claim(db: apsw.Connection, now: int) -> None:
            unit = visits.get_open(db, visit).joined()
            keys.claim(db, now, unit, key, keys.CERTIFICATE, visit)

        self._write(claim)

    def record_certificate(
        self, visit: str, profile: str, chain: Sequence[bytes], signed_for: str | None = None
    ) -> None:
        """Keeps the unit's chain, DER, leaf first. DuplicateKey when it has another, or another unit has this key.

        `signed_for`: the work order that the signer counted it against.
        """

        def work(db: apsw.Connection, now: int) -> None:
            certificates.record(db, now, visit, profile, chain)
            signatures.answered(db, now, visits.get_open(db, visit).joined(), signed_for)

        self._write(work)

    def certificate(self, unit: str) -> list[bytes] | None:
        """The unit's chain, DER, leaf first."""
        return self._readers.read(lambda db: certificates.of_unit(db, unit))
