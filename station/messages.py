"""Every message that Hallmark's processes exchange, by pair of processes. Data only.

Each request has exactly one reply: the one named in its docstring, or a `Problem`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Struct

from station.wire import Problem

Name = Annotated[str, Meta(min_length=1, max_length=128)]
Text = Annotated[str, Meta(max_length=2000)]
Blob = Annotated[bytes, Meta(max_length=64 * 1024)]
if TYPE_CHECKING:
    Fact = str | int | bool | bytes | list[str] | list[bytes] | None
else:
    # msgspec can't decode into a union of str and bytes, nor of two lists: the store checks facts as they come in.
    Fact = Any
Facts = dict[Name, Fact]


class Ok(Struct, frozen=True, tag="ok"):
    """Done, and durable where the request says so."""


# --- station and worker (a socket pair; the worker asks) -------------------------------------------------------


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
    trust: list[Blob]
    """EK trust anchors and intermediates, DER."""
    issuers: list[Blob]
    """Our issuing chain, DER, issuing CA first: what a device certificate is verified against."""


class Cancel(Struct, frozen=True, tag="cancel"):
    """station to worker: stop now, for this reason."""

    problem: Problem


class Arrived(Struct, frozen=True, tag="arrived"):
    """station to worker: within a declared absence the board is back."""

    sighting: Seen


class Ready(Struct, frozen=True, tag="ready"):
    """worker to station: imports done, waiting for a visit."""

    pid: int


class Join(Struct, frozen=True, tag="join"):
    """The visit's board is the unit with this strong identifier. Durable before the reply, `Unit`.

    `claims` are weak identifiers (kind, value): recorded, and a conflict when they belong to another unit.
    """

    kind: Name
    value: Name
    registration_id: Name
    claims: list[tuple[Name, Name]]


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
    what is waited for.
    """

    step: Name
    action: Name
    phase: Name
    seconds: float
    done: int = 0
    total: int | None = None
    note: Text = ""


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


class Recover(Struct, frozen=True, tag="recover"):
    """The auths on record for the joined unit; refused unless `ek_name` is the record's. Reply `Auths`."""

    ek_name: Blob


class Auths(Struct, frozen=True, tag="auths"):
    auths: dict[Name, Blob]

    def __repr__(self) -> str:
        return f"Auths({sorted(self.auths)})"


class Issue(Struct, frozen=True, tag="issue"):
    """A certificate for the joined unit's key: reply `Issued`, the same one each time. Durable before the reply."""

    profile: Name
    csr: Blob
    key_proof: dict[Name, Blob]
    """The residency transcript, by field of `hal.types.ResidencyProof`; empty where the place has none."""


class Issued(Struct, frozen=True, tag="issued"):
    """DER, leaf first, up to but without the root."""

    chain: list[Blob]


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
    | Issue
    | Finish
    | Failed
)
StationSays = Visit | Cancel | Arrived | Unit | Ok | Image | Auths | Issued | Problem


# --- station (or a command) and signer -------------------------------------------------------------------------


class SignerStatus(Struct, frozen=True, tag="signer-status"):
    """Reply `SignerState`."""


class SignerState(Struct, frozen=True, tag="signer-state"):
    """The token and the CA as the signer sees them now. `condition` is a `hal.types.TokenCondition`."""

    condition: str
    label: str
    problem: str
    hint: str
    subject: str
    not_after: str
    issued: int
    pending: int
    """Intents in the ledger without a signature yet."""
    chain: list[Blob]
    """Issuing CA first, DER; empty when no CA certificate is installed."""


class CheckToken(Struct, frozen=True, tag="check-token"):
    """A canary signature now; reply `SignerState` or the token's Problem. Asked before each unit."""


class SignRequest(Struct, frozen=True, tag="sign-request"):
    """A certificate for one unit's key. Reply `Issued`. Asking again for the same unit and key gives the same bytes."""

    unit: Name
    registration_id: Name
    profile: Name
    csr: Blob


class WrapSecret(Struct, frozen=True, tag="wrap-secret"):
    """Reply `Wrapped`."""

    context: Blob
    plain: Blob

    def __repr__(self) -> str:
        return "WrapSecret(…)"


class UnwrapSecret(Struct, frozen=True, tag="unwrap-secret"):
    """Reply `Unwrapped`."""

    context: Blob
    wrapped: Blob


class Wrapped(Struct, frozen=True, tag="wrapped"):
    wrapped: Blob


class Unwrapped(Struct, frozen=True, tag="unwrapped"):
    plain: Blob

    def __repr__(self) -> str:
        return "Unwrapped(…)"


ToSigner = SignerStatus | CheckToken | SignRequest | WrapSecret | UnwrapSecret
FromSigner = SignerState | Issued | Wrapped | Unwrapped | Problem


# --- uploader and station (the outbox socket; the uploader asks) -----------------------------------------------


class Lease(Struct, frozen=True, tag="lease"):
    """At most `most` enrollments that are due, leased to this connection; they come back when it closes.

    Waits up to `wait` seconds for one. Reply `Batch`, maybe empty.
    """

    sink: Name
    most: int
    wait: float


class Item(Struct, frozen=True):
    """`seq` names the row; `enrollment` is the JSON of `hal.types.Enrollment`; `tries` so far."""

    seq: int
    registration_id: Name
    enrollment: Blob
    tries: int


class Batch(Struct, frozen=True, tag="batch"):
    items: list[Item]


class Outcome(Struct, frozen=True):
    """What became of one item: a receipt (`problem` None), or its error."""

    seq: int
    etag: str | None = None
    existed: bool = False
    problem: Problem | None = None
    sent: Blob = b""
    """The item as the service received it (JSON)."""


class Report(Struct, frozen=True, tag="report"):
    """Outcomes of leased items, durable before `Ok`. Retryable problems make the item due again, others park it."""

    outcomes: list[Outcome]


class SinkHealth(Struct, frozen=True, tag="sink-health"):
    """How the service is seen from here, for status. Reply `Ok`."""

    sink: Name
    reachable: bool
    detail: Text
    clock_skew: float | None = None
    next_try: float | None = None
    """Seconds until the next try, where one is scheduled."""


UploaderSays = Lease | Report | SinkHealth
OutboxSays = Batch | Ok | Problem


def encode_json(value: object) -> bytes:
    """Canonical enough to compare: sorted keys, no spaces; octets as base64."""
    return msgspec.json.encode(value, order="sorted")
