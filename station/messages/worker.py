"""Between the station and a worker, over a socket pair: the worker asks."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from station.messages.basics import Blob, Facts, Issued, Name, Ok, Text
from station.wire import Problem


class DriverPlan(Struct, frozen=True):
    """One driver to open: the role that the recipe gives it, its entry point's name, its settings as TOML values."""

    role: Name
    driver: Name
    settings: dict[str, object]


class StepPlan(Struct, frozen=True):
    """One step of the recipe, its options already checked."""

    use: Name
    options: dict[str, object]


class Seen(Struct, frozen=True):
    """`hal.types.Sighting` as a message."""

    place: Text
    port: Text
    vendor_id: int | None = None
    product_id: int | None = None
    serial_number: Text | None = None
    description: Text | None = None


class Visit(Struct, frozen=True, tag="visit"):
    """station to worker: this board, these steps. The worker serves one visit and ends."""

    visit: Name
    nest: Name
    station: Name
    bench: bool
    sku: Name
    recipe_pass: Name
    sighting: Seen
    drivers: list[DriverPlan]
    steps: list[StepPlan]
    issuers: list[Blob]
    """Every certificate that our issuing CA has had, DER: one of them issued what a unit has on record."""
    long_lived_days: int = 0
    """[policy] of station.toml: a leaf valid for longer needs a safe key place, or the recipe's reason."""
    inherits: list[Name] = []
    """Steps of earlier passes: what they gave for the joined unit holds in this visit too."""
    credentials: dict[Name, Blob] = {}
    """What the recipe's drivers name in their settings, and nothing else."""

    def __repr__(self) -> str:
        return f"Visit({self.visit!r}, credentials={sorted(self.credentials)})"


class Cancel(Struct, frozen=True, tag="cancel"):
    """station to worker: stop now, for this reason."""

    problem: Problem


class Arrived(Struct, frozen=True, tag="arrived"):
    """station to worker: within a declared absence the board is back."""

    sighting: Seen


class Ready(Struct, frozen=True, tag="ready"):
    """worker to station: imports done, waiting for a visit."""

    pid: int


class JudgeEk(Struct, frozen=True, tag="judge-ek"):
    """Whether the recipe's policy lets this EK be believed. Reply `EkVerdict`, durable; else why not.

    `ek_public`: TPM2B_PUBLIC; `certificate` and `chain`: DER, as the TPM has them.
    """

    ek_public: Blob
    certificate: Blob | None
    chain: Annotated[list[Blob], Meta(max_length=16)]


class EkVerdict(Struct, frozen=True, tag="ek-verdict"):
    """The EK is believed, or the recipe does without; `facts` say what vouches for it."""

    facts: Facts


class Join(Struct, frozen=True, tag="join"):
    """The visit's board is the unit with this strong identifier. Durable before the reply, `Unit`.

    An EK Name needs a verdict of this visit.

    `claims` are weak identifiers (kind, value): recorded, and a conflict when they belong to another unit.
    """

    kind: Name
    value: Name
    registration_id: Name
    claims: list[tuple[Name, Name]]
    unproven: bool = False
    """The TPM's endorsement auth is set: it can't show its EK before that auth is known, which is on record for it."""


class Unit(Struct, frozen=True, tag="unit"):
    """What is on record: facts by `step.action`, and for secrets only whether there are any."""

    unit: Name
    registration_id: Name
    returning: bool
    facts: dict[Name, Facts]
    escrowed: list[Name]
    """Hierarchies whose auth an escrow record names, for this EK Name."""
    resumable: bool
    """Whether the secrets of that record can still be unwrapped."""
    intents: list[Name]
    """`step.action` whose intent is durable and whose result isn't: the device may or may not have done it."""
    may_clear: bool = False
    """A permitted person has decided that auths which somebody else set in its TPM may be cleared."""


class Begin(Struct, frozen=True, tag="begin"):
    """The intent to apply an action, durable before `Ok`."""

    step: Name
    action: Name


class Done(Struct, frozen=True, tag="done"):
    """An action's result, seen on the device; `found` when probing found it done. Durable before `Ok`."""

    step: Name
    action: Name
    facts: Facts
    found: bool


class Progress(Struct, frozen=True, tag="progress"):
    """Where the visit is; no reply. `phase`: probe, apply, verify, wait, absent.

    `seconds` is how long this phase may take: what overruns it by a grace loses its process. `note` says
    what is waited for, `hint` what to do about it.
    """

    step: Name
    action: Name
    phase: Name
    seconds: float
    done: int = 0
    total: int | None = None
    note: Text = ""
    hint: Text = ""


class Log(Struct, frozen=True, tag="log"):
    """One log event of the worker; no reply."""

    level: Name
    event: Text
    fields: dict[Name, str | int | float | bool | None]


class Absence(Struct, frozen=True, tag="absence"):
    """The board may vanish and come back at its place within so many seconds. `Ok`, at once."""

    within: float


class Present(Struct, frozen=True, tag="present"):
    """The absence is over. Reply `Arrived` with the board's sighting now, as soon as it is there; else DeviceGone."""


class FetchImage(Struct, frozen=True, tag="fetch-image"):
    """Reply `Image` with a descriptor of a sealed memory file: the bytes that the signed manifest names."""

    name: Name


class Image(Struct, frozen=True, tag="image"):
    name: Name
    version: Text
    sha256: bytes
    size: int


class Protect(Struct, frozen=True, tag="protect"):
    """Escrow these auths and keep a wrapped copy for resume, both durable before `Ok`. Only after `Join`."""

    ek_name: Blob
    auths: dict[Name, Blob]

    def __repr__(self) -> str:
        return f"Protect({sorted(self.auths)})"


class Recover(Struct, frozen=True, tag="recover"):
    """The auths on record for the joined unit; refused unless `ek_name` is the record's. Reply `Auths`."""

    ek_name: Blob


class CopyEscrow(Struct, frozen=True, tag="copy-escrow"):
    """The newest escrow record of the joined unit on as many media as its recipe asks for: reply `Copied`.

    EscrowIncomplete while one of them isn't there.
    """

    ek_name: Blob


class Copied(Struct, frozen=True, tag="copied"):
    """Durable copies, the station's own counted."""

    copies: int


class Auths(Struct, frozen=True, tag="auths"):
    auths: dict[Name, Blob]

    def __repr__(self) -> str:
        return f"Auths({sorted(self.auths)})"


ATTESTATION_KEY: Final = "attestation-key"
DEVICE_KEY: Final = "device-key"
"""What a credential is asked for."""


class AskCredential(Struct, frozen=True, tag="ask-credential"):
    """A credential for this EK and this key (TPM2B_PUBLIC each). Reply `Credential`.

    `purpose`: ATTESTATION_KEY or DEVICE_KEY. `ek_certificate`: DER, for the transcript, or empty.
    """

    purpose: Name
    ek_public: Blob
    public: Blob
    ek_certificate: Blob = b""


class Credential(Struct, frozen=True, tag="credential"):
    """What the TPM is to open (TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET), and the nonce that it is to certify."""

    id_object: Blob
    encrypted_secret: Blob
    nonce: Blob


class Proven(Struct, frozen=True, tag="proven"):
    """The answer to the last `AskCredential`; `Ok` when it proves what it was for, durable once the visit has joined.

    `attest` (TPMS_ATTEST) and `signature` (TPMT_SIGNATURE) are the AK's over a device key; else empty.
    """

    secret: Blob
    attest: Blob = b""
    signature: Blob = b""

    def __repr__(self) -> str:
        return "Proven(…)"


class Issue(Struct, frozen=True, tag="issue"):
    """A certificate for the joined unit's key: reply `Issued`, the same one each time. Durable before the reply.

    Where the recipe has the key in a TPM, it has to be the one that was `Proven` in this visit.
    """

    profile: Name
    csr: Blob


class Challenge(Struct, frozen=True, tag="challenge"):
    """A fresh nonce of the station, good for one `DeliverKey` or one `ProveKey`. Reply `Challenged`."""


class Challenged(Struct, frozen=True, tag="challenged"):
    """32 octets."""

    nonce: Blob


class DeliverKey(Struct, frozen=True, tag="deliver-key"):
    """The joined unit's key, sealed to its board's transport key. Reply `Delivered`, the same key each time.

    Where the unit is known by its board's own key, `identity` is that key's SubjectPublicKeyInfo (DER), and `signature`
    is by it over the last challenge and `transport`: nobody between station and board can put another key in its place.
    """

    purpose: Name
    transport: Blob
    identity: Blob
    signature: Blob


class Delivered(Struct, frozen=True, tag="delivered"):
    """Ciphertext only; see `KeyForBoard` of the signer. Sealed for `registration_id`, the unit's."""

    registration_id: Name
    encapsulated: Blob
    ciphertext: Blob
    upload: Blob
    spki: Blob


class ProveKey(Struct, frozen=True, tag="prove-key"):
    """The board's proof over the last challenge that it has the unit's symmetric key; checked by the signer. `Ok`."""

    mac: Blob


class Draw(Struct, frozen=True, tag="draw"):
    """A certificate of the recipe's lot for the joined unit: reply `Drawn`, the same one each time, durable before it.

    `key`: SPKI (DER) of the key that the device shows; empty where the key comes with the certificate.
    """

    key: Blob


class Drawn(Struct, frozen=True, tag="drawn"):
    """DER, leaf first. Its private key, where it comes with it, is asked for with `DeliverPooled`."""

    chain: list[Blob]


class Adopt(Struct, frozen=True, tag="adopt"):
    """The certificate that the device came with (DER, leaf first) is the joined unit's, if it may be.

    What it has to be, says the recipe's source: preloaded or device. Durable before the reply, `Ok`.
    """

    chain: list[Blob]


class StockName(Struct, frozen=True, tag="stock-name"):
    """The common name that a lot's certificate has for this key (SPKI, DER). Reply `Named`."""

    key: Blob


class Named(Struct, frozen=True, tag="named"):
    name: Name


class Finish(Struct, frozen=True, tag="finish"):
    """The last step. One transaction: step done, counted, enrollment and archive record queued, resume copy gone.

    `enrollment` is the JSON of `hal.types.Enrollment` (see station.enrollment). Only after `Ok` is it a PASS.
    """

    step: Name
    action: Name
    facts: Facts
    enrollment: Blob


class Failed(Struct, frozen=True, tag="failed"):
    """The visit ends without PASS. Durable before `Ok`."""

    step: Name
    action: Name
    problem: Problem


WorkerSays = (
    Ready
    | JudgeEk
    | Join
    | Begin
    | Done
    | Progress
    | Log
    | Absence
    | Present
    | FetchImage
    | Protect
    | Recover
    | CopyEscrow
    | AskCredential
    | Proven
    | Issue
    | Challenge
    | DeliverKey
    | ProveKey
    | Draw
    | Adopt
    | StockName
    | Finish
    | Failed
)
StationSays = (
    Visit
    | Cancel
    | Arrived
    | EkVerdict
    | Unit
    | Ok
    | Image
    | Auths
    | Copied
    | Credential
    | Issued
    | Challenged
    | Delivered
    | Drawn
    | Named
    | Problem
)
