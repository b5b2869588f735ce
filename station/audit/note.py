"""Checkpoints: C2SP signed notes (c2sp.org/signed-note) whose text is a tree's head (c2sp.org/tlog-checkpoint).

Signatures are of type 0x02, ECDSA over SHA-256 as DER, because each CA token makes those with P-256; the key ID is then
the start of SHA-256 over the key's DER SubjectPublicKeyInfo. Nothing here signs, keeps or asks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hal.errors import AuditBroken, quote
from station.audit.tree import HASH_SIZE

NOTE_LIMIT: Final = 16 * 1024
SIGNATURES_LIMIT: Final = 16
"""What the specification asks each verifier to accept."""
KEY_ID_SIZE: Final = 4
MARK: Final = "— "
"""Em dash (U+2014) and a space."""
ORIGIN: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")
"""A URL without its scheme; no spaces, no plus: it is the key's name too."""
SIZE: Final = re.compile(r"^(0|[1-9][0-9]{0,15})$")


@dataclass(frozen=True, slots=True)
class Head:
    """A tree's head. `root`: 32 octets."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> bytes:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A note that was read: its head, and (name, key ID, signature) of each signature. Not verified yet."""

    head: Head
    text: bytes
    signatures: tuple[tuple[str, bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class CheckpointKey:
    """A public key that checkpoints are checked with: EC, P-256. `spki` is its DER form."""

    spki: bytes
    key: ec.EllipticCurvePublicKey

    @property
    def id(self) -> bytes:
        return hashlib.sha256(self.spki).digest()[:KEY_ID_SIZE]

    @property
    def pem(self) -> bytes:
        return self.key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def checkpoint_key(spki: bytes) -> CheckpointKey:
    """From a DER SubjectPublicKeyInfo. AuditBroken for another kind of key."""
    try:
        key = serialization.load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AuditBroken(f"{len(spki)} octets are no public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AuditBroken("a checkpoint's key is another kind of key; expected EC, P-256")
    return CheckpointKey(spki, key)


def note(head: Head, key: CheckpointKey, signature: bytes) -> bytes:
    """The signed note; `signature` is over `head.text`. The key's name is the origin."""
    signed = base64.b64encode(key.id + signature).decode()
    return head.text + f"\n{MARK}{head.origin} {signed}\n".encode()


def read_note(octets: bytes) -> Checkpoint:
    """Parses it strictly. AuditBroken says what is no checkpoint about it."""
    if len(octets) > NOTE_LIMIT:
        raise AuditBroken(f"{len(octets)} octets are no checkpoint")
    try:
        whole = octets.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AuditBroken("the checkpoint is no UTF-8 text") from error
    text, separator, rest = whole.rpartition("\n\n")
    lines = text.split("\n")
    if not separator or any(ord(character) < 0x20 and character != "\n" for character in whole):
        raise AuditBroken("the checkpoint is no signed note")
    if len(lines) != 3 or not ORIGIN.fullmatch(lines[0]) or not SIZE.fullmatch(lines[1]):
        raise AuditBroken(f"the checkpoint's text is not origin, size and root: {quote(text)}")
    root = _base64(lines[2])
    if len(root) != HASH_SIZE:
        raise AuditBroken(f"the checkpoint's root has {len(root)} octets; expected {HASH_SIZE}")
    if not rest.endswith("\n"):
        raise AuditBroken("the checkpoint's last line is incomplete")
    signatures = tuple(_signature(line) for line in rest[:-1].split("\n"))
    if len(signatures) > SIGNATURES_LIMIT:
        raise AuditBroken(f"the checkpoint has {len(signatures)} signatures; at most {SIGNATURES_LIMIT}")
    return Checkpoint(Head(lines[0], int(lines[1]), root), (text + "\n").encode(), signatures)


def verify(checkpoint: Checkpoint, keys: Sequence[CheckpointKey]) -> CheckpointKey:
    """The one of `keys` that signed it under its origin's name. AuditBroken when none did, or one's doesn't hold."""
    found = None
    for name, key_id, signature in checkpoint.signatures:
        known = next((key for key in keys if key.id == key_id and name == checkpoint.head.origin), None)
        if known is None:
            continue  # a witness's, or a key of before: the specification says to ignore these
        try:
            known.key.verify(signature, checkpoint.text, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise AuditBroken(
                f"the signature of the checkpoint over {checkpoint.head.size} records does not hold"
            ) from error
        found = known
    if found is None:
        raise AuditBroken(
            f"the checkpoint over {checkpoint.head.size} records is not signed by the key it is checked with"
        )
    return found


def _signature(line: str) -> tuple[str, bytes, bytes]:
    name, _, encoded = line.removeprefix(MARK).partition(" ")
    if not line.startswith(MARK) or not name:
        raise AuditBroken(f"this is no signature line of a checkpoint: {quote(line)}")
    octets = _base64(encoded)
    if len(octets) <= KEY_ID_SIZE:
        raise AuditBroken(f"a signature of {len(octets)} octets is none")
    return name, octets[:KEY_ID_SIZE], octets[KEY_ID_SIZE:]


def _base64(text: str) -> bytes:
    """Standard alphabet, padded, and in the one form that encodes these octets."""
    try:
        octets = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise AuditBroken(f"{quote(text)} is no base64") from error
    if base64.b64encode(octets).decode() != text:
        raise AuditBroken(f"{quote(text)} is no canonical base64")
    return octets
