"""The frozen values that cross the HAL. Encodings are in the docstrings; nothing here acts."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from hal.errors import HallmarkError
from hal.secret import Secret

# --- where a device is -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sighting:
    """Something is plugged in at a place. Made without opening it.

    `place` is what a nest claims: the stable USB path (`usb:1-1.4`), or the port (`tty:/dev/ttyS0`, or the
    absolute path of an emulated board's port) where there is none. `port` is the device node to open now; it
    may change between two sightings at one place. The rest is what USB descriptors claim: untrusted text,
    None where unknown.
    """

    place: str
    port: str
    vendor_id: int | None = None
    product_id: int | None = None
    serial_number: str | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Departure:
    """What was at `place` is gone."""

    place: str


@dataclass(frozen=True, slots=True)
class DiscoveryFault:
    """Discovery could not look (a message for status); it goes on looking by itself."""

    error: HallmarkError


# --- board -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BoardIdentity:
    """What the board claims to be. Untrusted: bounded text, never proof of anything."""

    board: str
    serial: str | None = None
    macs: tuple[str, ...] = ()
    firmware: str | None = None

    def claims(self) -> list[tuple[str, str]]:
        """(kind, value) of each weak identifier: kinds `mac` and `serial`."""
        serial = [("serial", self.serial)] if self.serial else []
        return [*(("mac", mac) for mac in self.macs), *serial]


@dataclass(frozen=True, slots=True)
class FirmwareImage:
    """A trusted image: the bytes whose digest the signed manifest names.

    `sha256` is over `data`, 32 octets.
    """

    name: str
    data: bytes = field(repr=False)
    sha256: bytes
    version: str


@dataclass(frozen=True, slots=True)
class InstalledImage:
    """One image on the device, as the device says. `digest` identifies the content in the target's own terms."""

    location: str
    version: str
    digest: bytes
    active: bool
    confirmed: bool
    pending: bool = False


@dataclass(frozen=True, slots=True)
class TestResult:
    name: str
    passed: bool
    detail: str = ""


# --- TPM -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TpmDescription:
    """TPM_PT_FIXED properties as text (TPM 2.0 Part 2, 6.13). `software` is true when it names itself a
    software TPM.
    """

    manufacturer: str
    vendor: str
    firmware: str
    revision: str
    software: bool


class EkOrigin(enum.StrEnum):
    """How an endorsement key was found."""

    PERSISTENT = "persistent"
    """Read at its handle by convention, 0x81010001 or 0x81010016."""
    TEMPLATE = "template"
    """Derived from a TCG template (EK Credential Profile, L-1, L-2, H-1 ...)."""
    EMPTY_UNIQUE = "empty-unique"
    """Derived as some cloud SDKs do: the L-1 template with an empty `unique`. Never matches a certificate. Its value
    is also the name of that template."""


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """One EK. `public`: TPM2B_PUBLIC, big-endian, with its size; `name`: TPM2B_NAME's content (algorithm + digest).

    `certificate` is the DER found in NV whose key is this EK's, stripped of vendors' wrapping, or None.
    `handle` is the persistent handle it is at, or None.
    """

    public: bytes
    name: bytes
    origin: EkOrigin
    template: str
    handle: int | None = None
    certificate: bytes | None = None


@dataclass(frozen=True, slots=True)
class EkCertificate:
    """An EK certificate in NV `index`, DER, stripped of vendors' wrapping. Unchecked.

    `template` is the TCG template whose key belongs to that index ("L-1" at 0x01c00002): what to derive to match it.
    """

    index: int
    template: str
    certificate: bytes


@dataclass(frozen=True, slots=True)
class EndorsementReport:
    """What a TPM says about its EKs: the persisted ones, those derived in this visit, the certificates in NV.

    A key that is persisted and was derived too stands in `keys` twice, once with each origin.
    """

    keys: tuple[EndorsementKey, ...]
    certificates: tuple[EkCertificate, ...] = ()
    chain: tuple[bytes, ...] = ()
    """Intermediate CA certificates found in NV 0x01c00100-1ff (DER)."""
    derived: tuple[str, ...] = ()
    """Templates that were derived. One without a key in `keys` has algorithms that this TPM doesn't know."""

    @property
    def stray_certificates(self) -> tuple[bytes, ...]:
        """Those (DER) whose key is none of `keys`: its template may not have been derived yet."""
        matched = {key.certificate for key in self.keys}
        return tuple(item.certificate for item in self.certificates if item.certificate not in matched)


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret that only the TPM with one EK, and with one object loaded, can give back (TPM 2.0 Part 1, 24).

    `id_object`: TPM2B_ID_OBJECT, `encrypted_secret`: TPM2B_ENCRYPTED_SECRET, each with its size. Made by the station.
    """

    id_object: bytes
    encrypted_secret: bytes


@dataclass(frozen=True, slots=True)
class Certified:
    """What TPM2_Certify answers (Part 3, 18.2). `attest`: TPMS_ATTEST without a size, `signature`: TPMT_SIGNATURE."""

    attest: bytes
    signature: bytes


class AkKind(enum.StrEnum):
    """Which attestation key (AK): restricted, so that it signs only what its TPM has made."""

    VISIT = "visit"
    """A primary key of the endorsement hierarchy from Hallmark's own template. Left nowhere."""
    IAK = "iak"
    """TCG "TPM 2.0 Keys for Device Identity and Attestation": the initial attestation key, at its handle."""


class Hierarchy(enum.StrEnum):
    OWNER = "owner"
    ENDORSEMENT = "endorsement"
    LOCKOUT = "lockout"


@dataclass(frozen=True, slots=True)
class LockoutPolicy:
    """Dictionary-attack parameters (TPM2_DictionaryAttackParameters): tries, and seconds."""

    max_tries: int = 31
    recovery_seconds: int = 600
    lockout_recovery_seconds: int = 86400


@dataclass(frozen=True, slots=True)
class OwnershipState:
    """TPM_PT_PERMANENT and neighbours. Reading it needs no auth and burns no lockout try."""

    auths_set: frozenset[Hierarchy]
    in_lockout: bool
    lockout_counter: int
    lockout_policy: LockoutPolicy
    platform_enabled: bool
    """phEnable: while it is set and platform auth is empty, platform firmware can undo everything."""
    disable_clear: bool
    srk: bytes | None
    """TPM2B_PUBLIC of the object at 0x81000001, or None."""


class SrkTemplate(enum.StrEnum):
    """TCG TPM v2.0 Provisioning Guidance, 7.5.1: storage primary without auth."""

    RSA2048 = "rsa2048"
    P256 = "p256"


# --- device key and certificate --------------------------------------------------------------------------------


class KeyType(enum.StrEnum):
    P256 = "p256"
    P384 = "p384"
    RSA2048 = "rsa2048"
    RSA3072 = "rsa3072"


class KeyProtection(enum.StrEnum):
    """How well a place keeps a private key, best first: the order of the members is the ranking."""

    TPM = "tpm"
    """Made in a TPM, and can't leave it."""
    ELEMENT = "secure-element"
    """Made in a chip for keys (PKCS#11: CKA_SENSITIVE, never CKA_EXTRACTABLE), and can't leave it."""
    TEE = "tee"
    """Kept by a trusted execution environment: the device's ordinary software can use it, not read it."""
    FILE = "file"
    """A file or flash area of the device that its owner alone reads (mode 0600): whoever has that account has it."""
    PLAIN = "plain"
    """Settings or flash that any software on the device reads."""

    @property
    def rank(self) -> int:
        """0 for the best."""
        return list(KeyProtection).index(self)

    @property
    def keeps_from_software(self) -> bool:
        """Whether the device's ordinary software can't copy the key."""
        return self.rank <= KeyProtection.TEE.rank


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """The device's key as its place shows it. `spki`: DER SubjectPublicKeyInfo.

    For a TPM, `name` is the object's Name, `public` its TPM2B_PUBLIC, and `resident` says whether fixedTPM, fixedParent
    and sensitiveDataOrigin are set; None, None and False elsewhere.
    """

    spki: bytes
    key_type: KeyType
    name: bytes | None = None
    public: bytes | None = None
    resident: bool = False


# --- keys delivered to the device ------------------------------------------------------------------------------

SEALED_LIMIT: Final = 3584
"""Octets of a sealed key: with the rest of what installs it, it has to fit a transaction of 4096."""


class KeyPurpose(enum.StrEnum):
    """What a delivered key is. The text is part of what it is sealed for (docs/vendor-group.md)."""

    SYMMETRIC = "symmetric"
    """32 octets: the device's key for HMAC-SHA256, as a cloud's symmetric-key attestation wants it."""
    PRIVATE = "private-key"
    """PrivateKeyInfo (RFC 5208, PKCS#8), DER: for a board that can't make its own key pair."""


@dataclass(frozen=True, slots=True)
class TransportKey:
    """The board's ephemeral P-256 key for one delivery. `point`: uncompressed (SEC 1, 2.3.3), 65 octets.

    `signature`: by the board's own key (`KeyPlace`) over the challenge and the point, as `transport_message` puts them
    together; ECDSA as DER, RSA as PKCS#1 v1.5, with SHA-256; empty where the board has no key yet.
    """

    point: bytes
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A key that only the holder of one transport key can open: HPKE (RFC 9180), base mode, DHKEM(P-256, HKDF-SHA256),
    HKDF-SHA256, AES-256-GCM, one message, empty aad.

    `encapsulated`: the sender's ephemeral point (`enc`), 65 octets; `ciphertext` with its 16-octet tag. What it was
    sealed for (HPKE's `info`) says `delivery_info(purpose, registration_id)`.
    """

    purpose: KeyPurpose
    registration_id: str
    encapsulated: bytes
    ciphertext: bytes


def transport_message(challenge: bytes, point: bytes) -> bytes:
    """What the board's own key signs to show that a transport key is its own.

    Longer than any nonce that `KeyPlace.prove` takes, so that neither signature can stand for the other.
    """
    return b"hallmark transport key 1\x00" + challenge + point


def delivery_info(purpose: KeyPurpose, registration_id: str) -> bytes:
    """HPKE's `info` of a delivered key: it opens for this purpose and this registration ID only."""
    return b"hallmark key delivery 1\x00" + purpose.value.encode() + b"\x00" + registration_id.encode()


# --- CA token --------------------------------------------------------------------------------------------------


class TokenCondition(enum.StrEnum):
    READY = "ready"
    ABSENT = "absent"
    PIN_WRONG = "pin-wrong"
    PIN_BLOCKED = "pin-blocked"
    """An earlier attempt was not seen to succeed: a person has to unblock before the PIN is tried again."""
    KEY_MISSING = "key-missing"


@dataclass(frozen=True, slots=True)
class TokenState:
    condition: TokenCondition
    label: str
    model: str = ""
    serial: str = ""
    problem: str = ""


class PinTries(enum.StrEnum):
    """What a token says of its PIN before a login (CK_TOKEN_INFO flags, PKCS#11 v2.40 section 3.2)."""

    CLEAN = "clean"
    """No wrong PIN since the last right one, said by a token that is known to tell."""
    UNTOLD = "untold"
    """No such flag is set, but the standard lets a token keep silent."""
    LOW = "low"
    """CKF_USER_PIN_COUNT_LOW: a wrong PIN was given since the last right one."""
    FINAL = "final"
    """CKF_USER_PIN_FINAL_TRY: one more wrong PIN locks the token."""
    LOCKED = "locked"
    """CKF_USER_PIN_LOCKED."""


class PinVerdict(enum.StrEnum):
    """How a login ended. One that ended in neither way is left open: nobody knows whether the token counted it."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"


# --- enrollment ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TpmAttestation:
    """`ek` and `srk`: TPM2B_PUBLIC, big-endian with size, at 0x81010001 and 0x81000001."""

    ek: bytes
    srk: bytes | None = None


@dataclass(frozen=True, slots=True)
class X509Attestation:
    """`certificate`: the leaf, DER."""

    certificate: bytes


@dataclass(frozen=True, slots=True)
class X509GroupAttestation:
    """The device proves itself by its chain; the group exists once. Kept per unit as inventory. Leaf, DER."""

    group: str
    certificate: bytes


@dataclass(frozen=True, slots=True)
class SymmetricKeyAttestation:
    """The device's own keys, 32 octets each. Only a sink gets to see this, at the moment of the upload."""

    primary: Secret
    secondary: Secret


@dataclass(frozen=True, slots=True)
class SealedSymmetricAttestation:
    """The same, sealed to the uploader: all that queues, records and archives ever hold. See station.sealing."""

    sealed: bytes


@dataclass(frozen=True, slots=True)
class SymmetricGroupAttestation:
    """The device's key is derived from the key of the enrollment group, which exists once. Inventory per unit."""

    group: str


Attestation = (
    TpmAttestation
    | X509Attestation
    | X509GroupAttestation
    | SymmetricKeyAttestation
    | SealedSymmetricAttestation
    | SymmetricGroupAttestation
)


@dataclass(frozen=True, slots=True)
class Enrollment:
    """What the cloud has to know of one unit, in no cloud's terms. `tags` are for the initial twin.

    `audit_head`: the station's newest signed audit checkpoint (a C2SP signed note) when this was sent, for services
    that can keep it; empty when there is none. It travels along and is no part of the enrollment: two that differ only
    in it are the same one.
    """

    registration_id: str
    device_id: str
    attestation: Attestation
    tags: Mapping[str, str] = field(default_factory=dict)
    audit_head: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The service has the enrollment. `etag` as it gave it; `existed` when it had the same content before.

    `sent` is the item as the service received it, in its own form (JSON for DPS); empty when nothing had to be sent.
    """

    registration_id: str
    etag: str | None = None
    existed: bool = False
    sent: bytes = b""


@dataclass(frozen=True, slots=True)
class UploadResult:
    """The answers to one batch, one for each enrollment and in their order, each a receipt or that item's error.

    `clock_skew`: seconds that the service's clock is ahead of ours, from its Date header, None where not seen.
    """

    items: tuple[Receipt | HallmarkError, ...]
    clock_skew: float | None = None
