"""The verdict on an EK as it is recorded, told to the worker and exported. Data only."""

from __future__ import annotations

from msgspec import Struct

from station.messages.basics import Facts, Name, Text


class Verdict(Struct, frozen=True):
    """What vouches for an EK. Digests are lower-case hex, empty where there is none.

    `trust`: certificate, list or none. `anchor`: the root's subject; `chain`: digests from EK certificate to root;
    `method`: strict, or fallback where `cryptography` does not take the certificate's encoding. `source`: bundle or
    folder, with the bundle's serial number and digest. `lot`, `list_sha256`: of the list that names the EK, also where
    a certificate vouches. `crl`: good, stale, missing or off. `notes`: what an engineer should know.
    """

    trust: Name
    ek_name: Text
    anchor: Text = ""
    anchor_sha256: Text = ""
    chain: list[Text] = []
    method: Text = ""
    source: Text = ""
    bundle_serial: int = 0
    bundle_sha256: Text = ""
    lot: Text = ""
    list_sha256: Text = ""
    crl: Text = ""
    notes: list[Text] = []

    def facts(self) -> Facts:
        """As facts of the action that asked for it."""
        return {
            "ek_trust": self.trust,
            "ek_anchor": self.anchor or None,
            "ek_anchor_sha256": self.anchor_sha256 or None,
            "ek_trust_source": self.source or None,
            "ek_lot": self.lot or None,
            "ek_crl": self.crl or None,
        }
