"""Trails for tests: a store with records and checkpoints signed by a key in memory, and its export taken apart."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any, Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from station import trail
from station.audit import note
from station.audit.verify import Trust, Verdict, verify_export
from station.store import Store
from station.store.checkpoints import Signed

PRIVATE: Final = ec.derive_private_key(0xA0D17, ec.SECP256R1())
SPKI: Final = PRIVATE.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)
KEY: Final = note.checkpoint_key(SPKI)
OTHER: Final = ec.derive_private_key(0xBAD, ec.SECP256R1())
TRUST: Final = Trust(keys=(KEY,))


def sign(store: Store, private: ec.EllipticCurvePrivateKey = PRIVATE) -> Signed:
    """A checkpoint over all that there is, as the signer would make it."""
    size = store.audit_size()
    head = note.Head(store.audit_origin("test/line-1"), size, store.audit_root(size))
    key = note.checkpoint_key(
        private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    made = note.note(head, key, private.sign(head.text, ec.ECDSA(hashes.SHA256())))
    return store.keep_checkpoint(size, head.root, made, key.spki)


def export(store: Store, since: int = 0, *, everything: bool = False) -> list[bytes]:
    return list(trail.lines(store, "line-1", since, everything=everything))


def judge(lines: Sequence[bytes], trust: Trust = TRUST) -> Verdict:
    return verify_export(io.BytesIO(b"".join(lines)), trust)


def kind_of(line: bytes) -> str:
    return str(next(iter(json.loads(line))))


def places(lines: Sequence[bytes], kind: str) -> list[int]:
    """Where in the export the lines of one kind are."""
    return [place for place, line in enumerate(lines) if kind_of(line) == kind]


def loaded(line: bytes) -> Any:
    return json.loads(line)
