"""What EK reconciliation and key attestation cost a unit, against the time inside its TPM for the same commands.

One process, one software TPM, no wire: what is over the TPM's own time is ESAPI, parsing, and the station's own
making and judging of credentials.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from drivers.swtpm.process import SwtpmProcess, manufacture
from drivers.tpm import templates
from drivers.tpm.context import Tpm
from drivers.tpm.driver import TUNNEL, TunnelSettings
from drivers.tpm.tss import ESYS_TR
from hal.call import Call
from hal.driver import Bindings, opened
from hal.interfaces import EndorsementIdentity, KeyAttestation, KeyPlace, Ownership, TpmTransport
from hal.secret import EMPTY
from hal.types import AkKind, Credential, EndorsementKey, KeyType, SrkTemplate
from station import messages
from station.ek_choice import Choice, Derive, Rules, choose
from station.messages.worker import ATTESTATION_KEY, DEVICE_KEY
from station.nest.attesting import Attesting
from tests.bench.table import Row

SECONDS = 60.0


class Timed:
    """A TpmTransport that adds up what the TPM takes."""

    def __init__(self, inner: TpmTransport) -> None:
        self.inner, self.seconds, self.commands = inner, 0.0, 0

    def transmit(self, call: Call, command: bytes) -> bytes:
        began = time.perf_counter()
        try:
            return self.inner.transmit(call, command)
        finally:
            self.seconds += time.perf_counter() - began
            self.commands += 1


def reconcile(board: Bindings) -> Choice:
    identity = board.get(EndorsementIdentity)
    report = identity.endorsements(Call.lasting(SECONDS))
    while isinstance(found := choose(report, Rules()), Derive):
        report = identity.derive(Call.lasting(SECONDS), found.template)
    return found


def attest(board: Bindings, ek: EndorsementKey) -> None:
    """EK and AK, then the device key: as in a visit, but for the messages between two processes."""
    attesting, attestation = Attesting(), board.get(KeyAttestation)
    key = board.get(KeyPlace).key(Call.lasting(SECONDS))
    ak = attestation.attestation_key(Call.lasting(SECONDS), AkKind.VISIT)
    for purpose, public in ((ATTESTATION_KEY, ak), (DEVICE_KEY, key.public if key else None)):
        assert public is not None
        made = attesting.credential(messages.AskCredential(purpose, ek.public, public))
        sent = Credential(made.id_object, made.encrypted_secret)
        secret = attestation.activate(Call.lasting(SECONDS), ek, public, sent)
        answer = messages.Proven(secret)
        if purpose == DEVICE_KEY:
            certified = attestation.certify(Call.lasting(SECONDS), ak, public, made.nonce)
            answer = messages.Proven(secret, certified.attest, certified.signature)
        attesting.proven(answer)
    attesting.proven_transcript()


def run(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="hm-attest-") as folder:
        made = Path(folder) / "made"
        manufacture(made, Path(folder) / "ca")
        state = Path(folder) / "state"
        shutil.copytree(made, state)
        with SwtpmProcess(state) as process:
            with opened([("tpm", TUNNEL, TunnelSettings())], {TpmTransport: process}) as board:
                ek = reconcile(board).ek
                board.get(Ownership).make_srk(Call.lasting(SECONDS), ek, SrkTemplate.P256, EMPTY)
                board.get(KeyPlace).make_key(Call.lasting(SECONDS), KeyType.P256, EMPTY)
            rows = [
                _row("EK reconciliation, as the maker left it", process, rounds, lambda: None, reconcile),
                _row("attestation of EK, AK and device key", process, rounds, lambda: None, _attested(ek)),
                _row(
                    "EK reconciliation, nothing persisted (RSA derived)",
                    process,
                    rounds,
                    lambda: _evict(process),
                    reconcile,
                ),
            ]
    return rows


def _attested(ek: EndorsementKey) -> Callable[[Bindings], None]:
    return lambda board: attest(board, ek)


def _evict(process: SwtpmProcess) -> None:
    tpm = Tpm(process)
    with tpm.use(Call.lasting(SECONDS), "bench") as esapi:
        handle = templates.EK_HANDLE
        if tpm.is_persistent(handle):
            with tpm.persistent(handle) as item:
                esapi.evict_control(ESYS_TR.OWNER, item, handle)
    tpm.close()


def _row(
    what: str,
    process: SwtpmProcess,
    rounds: int,
    before: Callable[[], None],
    deed: Callable[[Bindings], object],
) -> Row:
    walls, raws, commands = [], [], 0
    for _ in range(rounds):
        before()
        timed = Timed(process)
        with opened([("tpm", TUNNEL, TunnelSettings())], {TpmTransport: timed}) as board:
            board.get(EndorsementIdentity).persisted(Call.lasting(SECONDS))  # connected, as in mid-visit
            timed.seconds, timed.commands = 0.0, 0
            began = time.perf_counter()
            deed(board)
            walls.append(time.perf_counter() - began)
            raws.append(timed.seconds)
            commands = timed.commands
    return Row(
        f"{what}, median of {rounds}",
        statistics.median(walls) * 1000,
        "ms",
        statistics.median(raws) * 1000,
        f"in the TPM, {commands} commands",
    )
