"""The one error tree. Whatever a driver or a step raises on purpose is one of these.

Each class says which `Outcome` it leads to, whether the runner may try again, and gives the technician one
sentence: what to do. The message says what happened; device text in it is bounded and escaped by `quote`.

    HallmarkError
    ├── DeviceError              the device under test misbehaved
    │   ├── DeviceGone           it was unplugged or vanished outside a declared absence
    │   ├── DeviceBusy           retryable: the port is held or not yet accessible
    │   ├── DeadlineExceeded     retryable: it did not answer in time
    │   ├── ProtocolViolation    retryable: what it said can't be read
    │   ├── DeviceRefused        it understood and said no
    │   └── SelfTestFailed
    ├── Aborted                  a person or a shutdown stopped the visit
    ├── FirmwareError
    │   ├── ImageUntrusted       not in the signed manifest, or other bytes than it says
    │   ├── FlashRejected        the bootloader refused the image
    │   └── VerifyMismatch       the device's digest differs from the image's
    ├── TpmError                 the TPM answered with an unexpected code (`rc`)
    │   ├── TpmReset             retryable: it lost power or was reset under an operation
    │   ├── AlreadyOwned         somebody else's auth value is set
    │   │   └── OfficerNeeded    one of ours is set and needed, and only the escrow officers have it
    │   ├── LockedOut            dictionary-attack lockout is active
    │   ├── PlatformOpen         firmware leaves the platform hierarchy to anybody
    │   ├── EkUntrusted          no certificate, or a chain that ends elsewhere
    │   │   └── EkRevoked        its maker has withdrawn a certificate of its chain
    │   ├── EkMismatch           EK, its certificate and the unit's record disagree
    │   ├── ResidencyUnproven    a key that ought to be in this TPM is not shown to be
    │   └── SoftwareTpmRefused   a software TPM outside bench mode
    ├── CredentialError
    │   ├── KeyConflict          another key than the recorded one is in the place
    │   ├── CertificateUntrusted one made elsewhere leads to no anchor, or is not in its lot or manifest
    │   └── PossessionUnproven   the device can't sign with the key of its certificate
    ├── IdentityConflict         this board's identifiers belong to different units
    │   ├── Quarantined          the unit waits for a person's decision
    │   └── PassMissing          this unit has not passed the pass that the recipe comes after
    ├── TokenError               the CA token
    │   ├── TokenAbsent          retryable
    │   ├── PinRejected          never retried, across restarts
    │   └── KeyMissing
    ├── IssuanceRefused          the signer said no
    │   ├── QuotaSpent
    │   ├── StockEmpty           the lot of certificates made in advance is used up
    │   ├── OrderRefused         no work order permits this here and now
    │   ├── ClockUntrusted
    │   ├── ProfileViolation
    │   ├── CsrRejected          wrong signature, other key or other subject than agreed
    │   └── DuplicateKey         this key or unit already has a certificate
    ├── StationError             the station's own surroundings
    │   ├── StoreUnavailable     disk full or unreadable; nothing goes on until it is durable again
    │   ├── AuditUnavailable     retryable: the audit trail is required, and its checkpoint can't be signed now
    │   ├── AuditBroken          the audit trail was changed, cut or rolled back, or a proof of it does not hold
    │   ├── EscrowIncomplete     retryable: the escrow record lacks a copy on a second medium
    │   ├── EscrowUnreadable     a sealed record doesn't open with this key, or is not what it ought to be
    │   └── PeerUnavailable      retryable: another Hallmark process is restarting
    ├── SinkError
    │   ├── Unreachable          retryable
    │   ├── Throttled            retryable, `retry_after` in seconds
    │   ├── Unauthorized         retryable: our credential or clock, never the item
    │   ├── Rejected             this item will never be taken as it is
    │   └── Conflict             something else is enrolled under that ID
    └── ConfigError              file, line, key, and what was expected
        ├── RecipeError
        └── ConfigurationUntrusted   not what the release key signed
"""

from __future__ import annotations

import enum
from typing import ClassVar, Final

MESSAGE_LIMIT: Final = 600
"""Characters of a message kept when an error is recorded: errors may quote what a device said."""


class Outcome(enum.StrEnum):
    """How a visit ends. FAIL blames the unit, ERROR the station or its surroundings, REFUSED is policy."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    ERROR = "ERROR"
    REFUSED = "REFUSED"
    ABORTED = "ABORTED"


def quote(text: object, limit: int = 80) -> str:
    """Device or network text made safe for a message: printable ASCII, bounded, in quotes."""
    escaped = ascii(text) if isinstance(text, str) else ascii(repr(text))
    return escaped if len(escaped) <= limit else escaped[: limit - 2] + "…" + escaped[0]


class HallmarkError(Exception):
    """Root of the tree. `str(error)` says what happened, `error.hint` what to do about it."""

    outcome: ClassVar[Outcome] = Outcome.ERROR
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = "Call an engineer and show them the unit's record."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message[:MESSAGE_LIMIT])
        self.hint: str = (hint or self.default_hint)[:MESSAGE_LIMIT]

    @property
    def code(self) -> str:
        """The stable name that records, sockets and the operator's page use."""
        return type(self).__name__


# --- the device under test -------------------------------------------------------------------------------------


class DeviceError(HallmarkError):
    outcome = Outcome.FAIL
    default_hint = "Re-seat the board and try again; if it repeats, set the board aside."


class DeviceGone(DeviceError):
    outcome = Outcome.ABORTED
    default_hint = "Plug the board in again: it goes on where it was."


class DeviceBusy(DeviceError):
    outcome = Outcome.ERROR
    retryable = True
    default_hint = "Close other programs that use the port; check that the station's user is in its group."


class DeadlineExceeded(DeviceError, TimeoutError):
    retryable = True
    default_hint = "Check the cable and the board's power, then plug the board in again."


class ProtocolViolation(DeviceError):
    retryable = True
    default_hint = "Check cable, baud rate and firmware; if it repeats, set the board aside."


class DeviceRefused(DeviceError):
    default_hint = "Check that the firmware is the one that this recipe was written for."


class SelfTestFailed(DeviceError):
    default_hint = "Set the board aside for repair."


class Aborted(HallmarkError):
    outcome = Outcome.ABORTED
    default_hint = "Plug the board in again when the station is ready: it goes on where it was."


# --- firmware --------------------------------------------------------------------------------------------------


class FirmwareError(HallmarkError):
    outcome = Outcome.FAIL


class ImageUntrusted(FirmwareError):
    outcome = Outcome.REFUSED
    default_hint = "Install the image again together with its signed manifest."


class FlashRejected(FirmwareError):
    default_hint = "Check that the image is meant for this board; if so, set the board aside."


class VerifyMismatch(FirmwareError):
    default_hint = "Plug the board in again; if it repeats, its flash is bad: set it aside."


# --- TPM -------------------------------------------------------------------------------------------------------


class TpmError(HallmarkError):
    outcome = Outcome.FAIL
    default_hint = "Plug the board in again; if it repeats, set the board aside: its TPM may be bad."

    def __init__(self, message: str, *, hint: str | None = None, rc: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.rc = rc
        """TPM_RC or TSS2_RC, where there is one."""


class TpmReset(TpmError):
    retryable = True
    default_hint = (
        "Check the board's power supply and plug the board in again; if it repeats, set the board aside."
    )


class AlreadyOwned(TpmError):
    outcome = Outcome.REFUSED
    default_hint = (
        "Set the board aside: somebody else has set its TPM's auth. Clearing it is an engineer's decision"
        " (`hallmark decisions`)."
    )


class OfficerNeeded(AlreadyOwned):
    default_hint = (
        "Set the board aside: an escrow officer opens the unit's record (`hallmark escrow open`) and brings its auths"
        " for one visit (`hallmark escrow offer`); then plug the board in again."
    )


class LockedOut(TpmError):
    outcome = Outcome.FAIL
    default_hint = "Leave the board powered for the lockout's recovery time, or hand it to an engineer."


class PlatformOpen(TpmError):
    outcome = Outcome.REFUSED
    default_hint = (
        "Set the board aside: its firmware leaves the TPM's platform hierarchy open, by which anybody on the board can"
        " undo ownership. An engineer brings firmware that closes it."
    )


class EkUntrusted(TpmError):
    outcome = Outcome.REFUSED
    default_hint = (
        "Set the board aside; if the lot's TPM vendor is new, an engineer adds its root to the trust store."
    )


class EkRevoked(EkUntrusted):
    default_hint = "Set the board aside: the TPM's maker has withdrawn its certificate. Tell an engineer."


class EkMismatch(TpmError):
    outcome = Outcome.REFUSED
    default_hint = (
        "Set the board aside: its TPM is not the one on record, or not the one its certificate names."
    )


class ResidencyUnproven(TpmError):
    outcome = Outcome.REFUSED
    default_hint = "Set the board aside: it could not show that its keys live in its TPM."


class SoftwareTpmRefused(TpmError):
    outcome = Outcome.REFUSED
    default_hint = "Software TPMs are for bench mode only; production boards need a hardware or firmware TPM."


# --- credentials and identity ----------------------------------------------------------------------------------


class CredentialError(HallmarkError):
    outcome = Outcome.FAIL


class KeyConflict(CredentialError):
    outcome = Outcome.REFUSED
    default_hint = "Set the board aside: another key than the recorded one is in its place."


class CertificateUntrusted(CredentialError):
    outcome = Outcome.REFUSED
    default_hint = (
        "Set the board aside; if a whole lot is so, an engineer compares it with pool and vendor's manifest."
    )


class PossessionUnproven(CredentialError):
    default_hint = "Set the board aside: it can't sign with the key of its certificate."


class IdentityConflict(HallmarkError):
    outcome = Outcome.REFUSED
    default_hint = "Set the board aside: its identifiers are already on record for another unit."


class Quarantined(IdentityConflict):
    default_hint = "Hand the board to an engineer: this unit waits for a decision."


class PassMissing(IdentityConflict):
    default_hint = "Take the board through the earlier pass first, at the nest that has its recipe."


# --- CA token and issuing --------------------------------------------------------------------------------------


class TokenError(HallmarkError):
    default_hint = "Call an engineer: the CA token needs attention. Boards in their nests may stay there."


class TokenAbsent(TokenError):
    retryable = True
    default_hint = "Plug the CA token in; the station goes on by itself."


class PinRejected(TokenError):
    default_hint = (
        "Do not restart: the PIN is never tried twice."
        " An engineer corrects the PIN and runs `hallmark ca unblock`."
    )


class KeyMissing(TokenError):
    default_hint = "The right token is not plugged in, or its key was never made: see `hallmark ca status`."


class IssuanceRefused(HallmarkError):
    outcome = Outcome.REFUSED


class QuotaSpent(IssuanceRefused):
    default_hint = "The work order is used up: load the next one."


class StockEmpty(IssuanceRefused):
    default_hint = (
        "Import the next lot of certificates: `hallmark pool import`; then plug the board in again."
    )


class OrderRefused(IssuanceRefused):
    default_hint = "Set the board aside; ask for a work order that permits it, and see `hallmark orders`."


class ClockUntrusted(IssuanceRefused):
    outcome = Outcome.ERROR
    default_hint = "Set the station's clock, then plug the board in again."


class ProfileViolation(IssuanceRefused):
    default_hint = "An engineer compares the recipe with the certificate profile."


class CsrRejected(IssuanceRefused):
    default_hint = "Set the board aside: its certificate request does not hold."


class DuplicateKey(IssuanceRefused):
    default_hint = "Set the board aside: its key or unit already has a certificate."


# --- station, sinks, configuration -----------------------------------------------------------------------------


class StationError(HallmarkError):
    pass


class StoreUnavailable(StationError):
    default_hint = (
        "Free disk space or replace the disk; nothing was lost, and boards go on when plugged in again."
    )


class AuditUnavailable(StationError):
    retryable = True
    default_hint = "The board may stay in its nest: it goes on when the audit trail can be signed again."


class AuditBroken(StationError):
    default_hint = (
        "Stop the line and call an engineer: the record of what happened was changed or replaced."
        " Keep the disk as it is."
    )


class EscrowIncomplete(StationError):
    retryable = True
    default_hint = "Plug the escrow medium in; the board goes on by itself. Nothing was set on it so far."


class EscrowUnreadable(StationError):
    default_hint = (
        "Take the record from another copy (second medium, archive), and the key of an officer who was named."
    )


class PeerUnavailable(StationError):
    retryable = True
    default_hint = "A part of the station is restarting; it goes on by itself."


class SinkError(HallmarkError):
    default_hint = "Nothing is lost: enrollments stay queued."


class Unreachable(SinkError):
    retryable = True


class Throttled(SinkError):
    retryable = True

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after
        """Seconds that the service asked to wait, where it said so."""


class Unauthorized(SinkError):
    retryable = True
    default_hint = (
        "Check the sink's policy and key, and the station's clock; enrollments stay queued until it works."
    )


class Rejected(SinkError):
    default_hint = (
        "An engineer looks at `hallmark outbox`: the service will not take this enrollment as it is."
    )


class Conflict(SinkError):
    default_hint = (
        "An engineer looks at `hallmark outbox`: another device is enrolled under this registration ID."
    )


class ConfigError(HallmarkError):
    """Bad configuration. `file`, `line` (1-based) and `key` (dotted) say where; the message says what was expected."""

    default_hint = "Correct the file and run `hallmark check`."

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        file: str | None = None,
        line: int | None = None,
        key: str | None = None,
    ) -> None:
        where = ":".join(str(part) for part in (file, line) if part is not None)
        named = f"{key}: {message}" if key else message
        super().__init__(f"{where}: {named}" if where else named, hint=hint)
        self.file, self.line, self.key, self.problem = file, line, key, message
        self.others: list[ConfigError] = []
        """Further problems that were found in the same go."""


class RecipeError(ConfigError):
    default_hint = "Correct the recipe and run `hallmark recipe check`."


class ConfigurationUntrusted(ConfigError):
    default_hint = "Install the whole signed set again; `hallmark config verify` says whether it holds."


def by_code() -> dict[str, type[HallmarkError]]:
    """Every class of the tree by its code: what a record or a message says is turned into a class only by this."""
    found: dict[str, type[HallmarkError]] = {}
    todo: list[type[HallmarkError]] = [HallmarkError]
    while todo:
        cls = todo.pop()
        found[cls.__name__] = cls
        todo.extend(cls.__subclasses__())
    return found
