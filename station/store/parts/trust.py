"""What the station goes by: trust bundle, signed configuration set; and what it found of units' TPMs by them."""

from __future__ import annotations

from station.configuration_set import Release
from station.store import attestations, releases, trust
from station.store.part import Part
from station.trust.verdict import Verdict


class Trust(Part):
    """Signed sets that took effect, verdicts, attestations."""

    def record_verdict(self, visit: str, ek_name: bytes, verdict: Verdict) -> None:
        """Keeps the verdict on the EK that a visit found."""
        self._write(trust.record_verdict, visit, ek_name, verdict)

    def record_attestation(self, visit: str, transcript: bytes) -> None:
        """Keeps what was proven of the unit's TPM keys (JSON of `station.attestation.Transcript`)."""
        self._write(attestations.record, visit, transcript)

    def take_bundle(self, serial: int, sha256: bytes, signer: str) -> bool:
        """A trust bundle takes effect; False when it had before. ConfigError for one older than one before it."""
        return self._write(trust.take_bundle, serial, sha256, signer)

    def newest_bundle(self) -> tuple[int, bytes] | None:
        """Serial number and digest of the newest trust bundle that took effect here."""
        return self._readers.read(trust.newest_bundle)

    def accept_release(self, serial: int, digest: bytes) -> None:
        """Remembers the set that the station runs with; ConfigurationUntrusted when a newer one was here before."""
        self._write(releases.accept, serial, digest)

    def newest_release(self) -> Release | None:
        """The newest set that was ever taken."""
        return self._readers.read(releases.newest)
