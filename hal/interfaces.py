"""What a driver can offer: small Protocols, each of one to five methods, each call with its `Call`.

Every method raises only errors of `hal.errors`, honours the call's deadline and cancel, and leaves the
device so that the same call may be made again. Only the station's runner retries. A driver that can't tell
what the device did after an error says so by raising; the step then probes the device, which is the truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from hal.call import Call
from hal.secret import Secret
from hal.types import (
    AkKind,
    BoardIdentity,
    Certified,
    Credential,
    Departure,
    DeviceKey,
    DiscoveryFault,
    EndorsementKey,
    EndorsementReport,
    Enrollment,
    FirmwareImage,
    Hierarchy,
    InstalledImage,
    KeyProtection,
    KeyType,
    LockoutPolicy,
    OwnershipState,
    PinTries,
    PinVerdict,
    SealedKey,
    Sighting,
    SrkTemplate,
    TestResult,
    TokenState,
    TpmDescription,
    TransportKey,
    UploadResult,
)


@runtime_checkable
class Discovery(Protocol):
    """Sees devices come and go without opening any."""

    def watch(self, call: Call) -> Iterator[Sighting | Departure | DiscoveryFault]:
        """Yields what is there now, then each change, in order, until the call's cancel is set (then it returns).

        A device that was swapped unseen gives a Departure before the new Sighting.
        """


@runtime_checkable
class Channel(Protocol):
    """A byte pipe to the device: a serial port, 8N1."""

    def read(self, call: Call, limit: int) -> bytes:
        """At least one and at most `limit` octets. DeviceGone when the device is unplugged."""

    def write(self, call: Call, data: bytes) -> None:
        """All of `data` handed to the kernel. DeviceGone when the device is unplugged."""

    def drop_input(self) -> None:
        """Forgets what has arrived and was not read: after power-up garbage or a time-out."""


@runtime_checkable
class FirmwareTarget(Protocol):
    """Somewhere an image can be written to and started from."""

    def accepts(self, call: Call, image: FirmwareImage) -> bytes:
        """The digest (in the target's terms) by which the device will name this image.

        ImageUntrusted or FlashRejected when the bytes are no image for this target. Doesn't touch the device's flash.
        """

    def installed(self, call: Call) -> Sequence[InstalledImage]:
        """What is on the device, digests computed by the device or over what was read back from it."""

    def write(self, call: Call, image: FirmwareImage) -> None:
        """Writes the whole image; progress in octets. Goes on from what the device acknowledged after a lost answer."""

    def boot(self, call: Call, digest: bytes) -> None:
        """Makes the device start the written image. It may vanish from its port until it is back (an absence)."""

    def confirm(self, call: Call, digest: bytes) -> None:
        """Makes the image permanent, so that the next reset starts it too, or for good if it doesn't run just now."""


@runtime_checkable
class DeviceIdentity(Protocol):
    def identify(self, call: Call) -> BoardIdentity:
        """What the board claims: bounded, printable text; never proof."""


@runtime_checkable
class TpmTransport(Protocol):
    """Carries TPM commands."""

    def transmit(self, call: Call, command: bytes) -> bytes:
        """One TPM command (TPM 2.0 Part 3: tag, size, code, ...) to its whole response, at most 4096 octets each.

        A late answer is never taken for this command's.
        """


@runtime_checkable
class EndorsementIdentity(Protocol):
    """The TPM's endorsement keys, and proofs against them."""

    def describe(self, call: Call) -> TpmDescription: ...

    def persisted(self, call: Call) -> EndorsementKey | None:
        """What is at 0x81010001 now, where readers look first; None when nothing is. Quick: no certificate is read."""

    def endorsements(self, call: Call) -> EndorsementReport:
        """The persisted EKs, those derived in this visit, and the certificates in NV. Derives nothing."""

    def derive(self, call: Call, template: str) -> EndorsementReport:
        """The report with the EK of that template in it: a name of the TCG's ("L-1" ...), or `EkOrigin.EMPTY_UNIQUE`.

        On real chips deriving an RSA key can take 10 s and more: it is done once a visit, and kept.
        """

    def persist(self, call: Call, ek: EndorsementKey, evict: EndorsementKey | None = None) -> EndorsementKey:
        """`ek` at 0x81010001, ready for field clients. Needs an empty owner auth.

        EkMismatch when another key is there, unless it is exactly `evict`: that one is removed first.
        """


@runtime_checkable
class KeyAttestation(Protocol):
    """What a TPM can show of its keys. The station makes the challenges and judges the answers; a driver only asks.

    Objects are named by their TPM2B_PUBLIC: an AK of `attestation_key`, or the device key of `KeyPlace`.
    """

    def attestation_key(self, call: Call, kind: AkKind) -> bytes:
        """TPM2B_PUBLIC of the AK: a primary key of the endorsement hierarchy, the same one each time.

        TpmError for an IAK where none was made.
        """

    def activate(self, call: Call, ek: EndorsementKey, public: bytes, credential: Credential) -> bytes:
        """TPM2_ActivateCredential: the secret. ResidencyUnproven when the TPM can't open it for this EK and object."""

    def certify(self, call: Call, ak: bytes, public: bytes, qualifying: bytes) -> Certified:
        """TPM2_Certify of the object by the AK `ak`, with `qualifying` (at most 32 octets) in it."""


@runtime_checkable
class IdentityKeys(Protocol):
    """Keys from the templates of the TCG's "TPM 2.0 Keys for Device Identity and Attestation", which anybody with the
    TPM finds again: P-256 (its H-2).
    """

    def make_idevid(self, call: Call, owner: Secret) -> DeviceKey:
        """The IDevID key where `KeyPlace.key` finds it. KeyConflict when one is there."""

    def iak(self, call: Call) -> bytes | None:
        """TPM2B_PUBLIC of what is at the IAK's handle, None when nothing is."""

    def make_iak(self, call: Call, owner: Secret) -> bytes:
        """The IAK at its handle; its TPM2B_PUBLIC. KeyConflict when another key is there."""


@runtime_checkable
class Ownership(Protocol):
    """TPM ownership. Every command that carries or uses an auth value goes in a session salted to `ek` and
    encrypted.
    """

    def state(self, call: Call) -> OwnershipState: ...

    def set_auth(
        self, call: Call, ek: EndorsementKey, hierarchy: Hierarchy, new: Secret, current: Secret
    ) -> None:
        """Changes one hierarchy's auth from `current` to `new`. Never tries `current` on lockout when it may
        be wrong.
        """

    def make_srk(self, call: Call, ek: EndorsementKey, template: SrkTemplate, owner: Secret) -> bytes:
        """SRK without auth at 0x81000001; its TPM2B_PUBLIC. AlreadyOwned when another object is there."""

    def set_lockout_policy(
        self, call: Call, ek: EndorsementKey, policy: LockoutPolicy, lockout: Secret
    ) -> None:
        """Dictionary-attack parameters, authorised by the lockout auth."""

    def proves(self, call: Call, ek: EndorsementKey, hierarchy: Hierarchy, auth: Secret) -> bool:
        """Whether `auth` is the hierarchy's auth now, by a harmless command. Not for LOCKOUT: a wrong try locks it."""


@runtime_checkable
class Custody(Protocol):
    """Who else could take a TPM from its owner, and the ways back that are open to a person with a right to them."""

    def platform_open(self, call: Call) -> bool:
        """Whether the platform hierarchy is enabled with an empty auth, so that whoever runs code there may clear all.

        Changes nothing and counts no try: the platform hierarchy is not under dictionary-attack protection.
        """

    def holds_ek(self, call: Call, ek: EndorsementKey) -> None:
        """Returns when the TPM has shown that it has `ek`'s private key, by a session salted to it. Needs no auth.

        Weaker than EndorsementIdentity's proofs in one point: it binds no other key to that EK. TpmError if not.
        """

    def proves_lockout(self, call: Call, ek: EndorsementKey, auth: Secret) -> bool:
        """Whether `auth` is the lockout auth, by one harmless command: a wrong one locks it for its recovery time.

        For a value from escrow only. Refused without a try unless lockout auth is set, the TPM is not in lockout, its
        counter is 0 and no try has failed in this visit.
        """

    def clear(self, call: Call, ek: EndorsementKey, lockout: Secret | None) -> None:
        """TPM2_Clear: auths empty, every object under owner and endorsement gone, the EK at 0x81010001 too.

        By the lockout auth, which is proven first under the rules of `proves_lockout`, or with None by the empty
        platform auth. Afterwards the EK has to be derived and compared anew.
        """


@runtime_checkable
class KeyPlace(Protocol):
    """Where the device's private key lives. It never leaves."""

    @property
    def protection(self) -> KeyProtection:
        """What kind of place it is: never weaker than what its Driver declares. Asks no device."""

    def key(self, call: Call) -> DeviceKey | None:
        """The key that is there, or None. For a TPM: the object at 0x81020000."""

    def make_key(self, call: Call, key_type: KeyType, owner: Secret) -> DeviceKey:
        """Makes the key in its place, persistently. KeyConflict when one is there. `owner`: EMPTY but for TPMs."""

    def csr(self, call: Call, common_name: str) -> bytes:
        """PKCS#10 (DER, RFC 2986) for subject CN=`common_name`, signed by the key."""

    def prove(self, call: Call, nonce: bytes) -> bytes:
        """A signature by the key over `nonce` with SHA-256: ECDSA as DER, RSA as PKCS#1 v1.5."""


@runtime_checkable
class KeyDelivery(Protocol):
    """A board that takes a key which was made elsewhere. The key crosses the link sealed, never in clear."""

    def transport_key(self, call: Call, challenge: bytes) -> TransportKey:
        """A fresh ephemeral key of the board, for the next `install_key` only; the one before it opens nothing more.

        Signed with `challenge`, 32 octets, where the board has a key of its own.
        """

    def install_key(self, call: Call, sealed: SealedKey) -> bytes:
        """Opens and keeps it, durably. DER SubjectPublicKeyInfo of a private key, empty for a symmetric one.

        The key that is there already may come again; KeyConflict for another one: nothing is ever replaced.
        ProtocolViolation (retryable) when the board's transport key is gone or is not the one it was sealed to.
        """

    def prove_secret(self, call: Call, nonce: bytes) -> bytes | None:
        """HMAC-SHA256 over `nonce`, 16 to 64 octets, by V = HMAC-SHA256(symmetric key, "hallmark key proof 1"); None
        when the board has no symmetric key. Not by the key itself: else the port would sign whatever it is given.
        """


@runtime_checkable
class CertificateStore(Protocol):
    """Where the device finds its certificate."""

    def install(self, call: Call, chain: Sequence[bytes]) -> None:
        """Leaf first, each DER. Replaces what is there, at once or not at all where the place can."""

    def installed(self, call: Call) -> Sequence[bytes]:
        """What is there, leaf first, each DER; empty when nothing is."""


@runtime_checkable
class DeviceSettings(Protocol):
    """Named values the device keeps. Keys: `[a-z0-9/_-]{1,64}`; values: text of at most 256 characters."""

    def write_settings(self, call: Call, values: Mapping[str, str]) -> None:
        """Writes them so that they outlive a reset."""

    def read_settings(self, call: Call, keys: Sequence[str]) -> Mapping[str, str]:
        """Those of `keys` that are set."""


@runtime_checkable
class SelfTest(Protocol):
    def self_test(self, call: Call) -> Sequence[TestResult]:
        """Runs the board's own tests; empty when it has none."""


@runtime_checkable
class CaToken(Protocol):
    """A token with the CA's keys, looked up by label. Its implementation owns the module in one thread."""

    def state(self, call: Call) -> TokenState: ...

    def canary(self, call: Call) -> TokenState:
        """Signs with the canary key and checks the signature; initialises the module anew after a loss.

        Raises TokenAbsent, PinRejected or KeyMissing when it isn't ready.
        """

    def public_key(self, call: Call, label: str) -> bytes:
        """DER SubjectPublicKeyInfo of the key pair `label`. KeyMissing when it isn't there."""

    def make_key(self, call: Call, label: str, key_type: KeyType) -> bytes:
        """Makes a key pair that can't be extracted; its DER SubjectPublicKeyInfo. DuplicateKey when the
        label exists.
        """

    def sign(self, call: Call, label: str, data: bytes) -> bytes:
        """SHA-256 (SHA-384 for P-384) signature over `data`: ECDSA as DER, RSA as PKCS#1 v1.5."""


@runtime_checkable
class TokenPin(Protocol):
    """The CA token's PIN, given out for one login at a time, so that a wrong one is never tried twice."""

    def begin(self, serial: str, tries: PinTries) -> Secret:
        """Marks an attempt on the token `serial` durably, then gives the PIN. To be called just before C_Login.

        PinRejected, and no PIN, when an earlier attempt is not known to have succeeded, or the token's flags bar it.
        """

    def end(self, verdict: PinVerdict) -> None:
        """What the token said. ACCEPTED takes the mark away; after REJECTED only a person does."""


@runtime_checkable
class SecretWrap(Protocol):
    """Wraps small secrets under a token key that can't leave the token (AES-256)."""

    def wrap(self, call: Call, label: str, context: bytes, plain: Secret) -> bytes:
        """Authenticated encryption bound to `context`; makes the key on first use. At most 4096 octets."""

    def unwrap(self, call: Call, label: str, context: bytes, wrapped: bytes) -> Secret:
        """The secret again. TokenError when `wrapped` or `context` is not what it was."""

    def destroy(self, call: Call, label: str) -> None:
        """Destroys that key, and with it all that it has wrapped. Nothing happens when it isn't there."""


@runtime_checkable
class DeviceSecrets(Protocol):
    """Keys for devices, out of the CA token. What is given out is for the signer to seal, and stays nowhere else."""

    def random(self, call: Call, octets: int) -> Secret:
        """From the token's random number generator."""

    def derive(self, call: Call, label: str, data: bytes) -> Secret:
        """HMAC-SHA256 over `data` by the token's group key `label`, 32 octets. KeyMissing when it isn't there."""

    def make_private_key(self, call: Call, key_type: KeyType) -> Secret:
        """A key pair made in the token, as PrivateKeyInfo (PKCS#8, DER). The token keeps nothing of it."""

    def import_group_key(self, call: Call, label: str, key: Secret) -> None:
        """Puts a group key of 32 to 64 octets into the token, from where it can't be read again. DuplicateKey when the
        label exists.
        """


@runtime_checkable
class Credentials(Protocol):
    """What a sink's settings only name: its process provides them, settings never hold them."""

    def secret(self, name: str) -> Secret:
        """The credential's octets as they are now (asked anew for each try). ConfigError when there is none."""


@runtime_checkable
class EnrollmentSink(Protocol):
    """An outside service that learns of units."""

    @property
    def batch_limit(self) -> int:
        """The most enrollments that one upload may carry."""

    def upload(self, call: Call, batch: Sequence[Enrollment]) -> UploadResult:
        """Makes the service know each of them exactly once in effect; may be called again with the same ones.

        Raises Unreachable or Throttled when nothing can be said of the batch: all of it is offered again.
        """
