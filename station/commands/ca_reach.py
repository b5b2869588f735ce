"""How `hallmark ca` reaches the CA: through the signer while it runs, else alone with token and ledger."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Final, TypeVar

from hal.call import Call
from hal.errors import PeerUnavailable, ProtocolViolation
from station import messages
from station.config import Configuration
from station.messages.ca import CaAsked
from station.signer import ceremony, ledger, pin, process
from station.signer_client import SignerClient

BY_COMMAND: Final = "the command, with the signer stopped"
"""Who did it, on record. Only those who may read token PIN and ledger can."""
R = TypeVar(
    "R",
    messages.CaRequest,
    messages.CaGeneration,
    messages.ClockAccepted,
    messages.Revoked,
    messages.RevocationList,
)


@contextlib.contextmanager
def alone(args: argparse.Namespace) -> Iterator[tuple[Configuration, process.OpenCa]]:
    """The CA for this command alone: StationError while a signer runs."""
    configuration = process.signer_configuration(args.paths)
    source = None if args.pin_fd is None else pin.PinDescriptor(args.pin_fd)
    with ledger.sole_user(args.paths.signer_state), process.open_ca(configuration, source) as opened:
        yield configuration, opened


def administer(args: argparse.Namespace, asked: CaAsked, reply: type[R]) -> R:
    """Done by the signer, or here in its place when none runs."""
    try:
        answer = SignerClient(args.paths.signer_socket).administer(asked)
    except PeerUnavailable:
        with alone(args) as (_configuration, opened):
            call = Call.lasting(ceremony.CALL_SECONDS)
            answer = opened.administration.answer(call, asked, BY_COMMAND)
    if not isinstance(answer, reply):
        message = f"the signer answered {type(asked).__name__} with {type(answer).__name__}"
        raise ProtocolViolation(message)
    return answer
