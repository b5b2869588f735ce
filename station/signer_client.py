"""What the station asks of the signer. A connection for each question, so that either side may restart in between."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

from hal.errors import PeerUnavailable, ProtocolViolation
from hal.secret import Secret
from station import messages
from station.messages.ca import CaAsked, CaSays
from station.wire import Link, Problem, connect

R = TypeVar("R")
ANSWER_SECONDS: Final = 60.0
"""A slow token signs in seconds; the signer gives up on a hung one before this."""
CEREMONY_SECONDS: Final = 660.0
"""Longer than the signer gives the token for a new key."""


class SignerClient:
    """Raises the signer's own errors, and PeerUnavailable while it isn't there."""

    def __init__(self, path: Path, seconds: float = ANSWER_SECONDS) -> None:
        """`seconds`: how long an answer may take."""
        self._path, self._seconds = path, seconds

    def state(self) -> messages.SignerState:
        return self._ask(messages.SignerStatus(), messages.SignerState)

    def check_token(self) -> messages.SignerState:
        """A canary signature now."""
        return self._ask(messages.CheckToken(), messages.SignerState)

    def issue(self, request: messages.SignRequest) -> list[bytes]:
        """The certificate chain, DER, leaf first: in the signer's ledger by now, and the same one each time."""
        return self.issued(request).chain

    def issued(self, request: messages.SignRequest) -> messages.Issued:
        """The same, with the work order that it was counted against."""
        return self._ask(request, messages.Issued)

    def order_counts(self, work_order: str) -> messages.OrderState:
        """How far the signer's ledger says that an order is used up."""
        return self._ask(messages.OrderCounts(work_order), messages.OrderState)

    def give_back(self, unit: str, serial: str, reason: str, by: str) -> str:
        """A scrapped unit's certificate counts no more against its order; the proof, in words."""
        asked = messages.GiveBack(unit, serial, reason[:2000], by[:2000])
        return self._ask(asked, messages.GivenBack).proof

    def wrap(self, context: bytes, plain: Secret, key: str = "") -> bytes:
        """`key`: the one of a work order or day, made on first use."""
        return self._ask(messages.WrapSecret(context, plain.reveal(), key), messages.Wrapped).wrapped

    def unwrap(self, context: bytes, wrapped: bytes, key: str = "") -> Secret:
        return Secret(self._ask(messages.UnwrapSecret(context, wrapped, key), messages.Unwrapped).plain)

    def destroy_wrap_key(self, key: str) -> None:
        """Returns when the token has it no more; what it has wrapped opens never again."""
        self._ask(messages.DestroyWrapKey(key), messages.Ok)

    def audit_head(self) -> messages.TrailHead:
        """What was signed last of an audit trail."""
        return self._ask(messages.AuditHead(), messages.TrailHead)

    def sign_checkpoint(self, request: messages.SignCheckpoint) -> messages.SignedCheckpoint:
        """AuditBroken when the head is not a continuation of what was signed before."""
        return self._ask(request, messages.SignedCheckpoint)

    def administer(self, asked: CaAsked) -> CaSays:
        """What people do to the CA. Waits longer: an old chip makes a key in minutes."""
        reply: tuple[type[CaSays], ...] = (
            messages.CaRequest,
            messages.CaGeneration,
            messages.ClockAccepted,
            messages.Revoked,
            messages.RevocationList,
        )
        return self._ask(asked, reply, CEREMONY_SECONDS)

    def seal_key(self, request: messages.SealKey | messages.SealWrapped) -> messages.KeyForBoard:
        """Ciphertext for the board; the same key each time."""
        return self._ask(request, messages.KeyForBoard)

    def check_key(self, request: messages.CheckKey) -> None:
        """PossessionUnproven unless the board has the unit's symmetric key."""
        self._ask(request, messages.Ok)

    def group_key(self, request: messages.ImportGroupKey | messages.CheckGroupKey) -> messages.GroupKey:
        """For root and the signer's own user."""
        return self._ask(request, messages.GroupKey)

    def kept_keys(self) -> list[str]:
        """Units whose keys the signer could still deliver, oldest first."""
        return self._ask(messages.KeptKeys(), messages.Kept).units

    def forget_keys(self, units: list[str]) -> None:
        """Returns when what was kept of them is gone."""
        self._ask(messages.ForgetKeys(units), messages.Ok)

    def _ask(self, request: object, reply: type[R] | tuple[type[R], ...], seconds: float | None = None) -> R:
        link: Link[messages.FromSigner] = connect(self._path, messages.FromSigner)
        try:
            link.settimeout(seconds or self._seconds)
            link.send(request)
            answer = link.receive()
        except TimeoutError as error:
            raise PeerUnavailable("the signer did not answer in time") from error
        finally:
            link.close()
        if isinstance(answer, Problem):
            raise answer.error()
        if not isinstance(answer, reply):
            raise ProtocolViolation(
                f"the signer answered {type(request).__name__} with {type(answer).__name__}"
            )
        return answer
