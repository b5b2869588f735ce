"""`final-check`: everything that earlier steps did is still so, asked of the device anew, and its own tests pass."""

from __future__ import annotations

from hal.errors import (
    EkMismatch,
    PlatformOpen,
    PossessionUnproven,
    SelfTestFailed,
    VerifyMismatch,
    quote,
)
from hal.interfaces import (
    CertificateStore,
    Custody,
    EndorsementIdentity,
    FirmwareTarget,
    Ownership,
    SelfTest,
)
from hal.types import Hierarchy
from station.action import Action, Look, NoOptions, Step, Trip
from station.ek_choice import EK_HANDLE
from station.messages import Facts


class BoardTests(Look):
    """The board's own tests."""

    name = "self-test"
    seconds = 300.0

    def probe(self, trip: Trip) -> Facts:
        if not trip.board.has(SelfTest):
            return {"self_tests": []}
        results = trip.need(SelfTest).self_test(trip.call)
        failed = [result for result in results if not result.passed]
        if failed:
            named = ", ".join(f"{quote(result.name)} {quote(result.detail)}" for result in failed[:5])
            raise SelfTestFailed(f"{len(failed)} of {len(results)} board tests failed: {named}")
        return {"self_tests": [result.name for result in results]}


class Firmware(Look):
    """The image that was flashed is the one that runs, and the one that the next reset starts."""

    name = "firmware"

    def probe(self, trip: Trip) -> Facts:
        if "firmware_digest" not in trip.facts:
            return {}
        wanted = trip.octets("firmware_digest")
        running = [image for image in trip.need(FirmwareTarget).installed(trip.call) if image.active]
        if [image.digest for image in running] != [wanted] or not running[0].confirmed:
            raise VerifyMismatch(
                "the device does not run the image that was flashed, or would not after a reset"
            )
        return {}


class Tpm(Look):
    """EK, SRK and auths are as they were left."""

    name = "tpm"
    seconds = 120.0

    def probe(self, trip: Trip) -> Facts:
        if "ek_name" in trip.facts and trip.board.has(EndorsementIdentity):
            there = trip.need(EndorsementIdentity).persisted(trip.call)
            if there is None or there.name != trip.octets("ek_name"):
                raise EkMismatch(f"the endorsement key at {EK_HANDLE:#x} is not the one that was verified")
        if "srk_public" not in trip.facts:
            return {}
        state = trip.need(Ownership).state(trip.call)
        wanted = frozenset(Hierarchy(str(name)) for name in trip.words("auths"))
        if state.srk != trip.octets("srk_public") or state.auths_set != wanted:
            raise VerifyMismatch("the TPM's SRK or auths are not as this visit left them")
        if trip.facts.get("platform") == "closed" and trip.need(Custody).platform_open(trip.call):
            raise PlatformOpen("the TPM's platform hierarchy was closed, and is open now")
        return {"platform_enabled": state.platform_enabled, "lockout_counter": state.lockout_counter}


class Certificate(Look):
    """The device still has its certificate."""

    name = "certificate"

    def probe(self, trip: Trip) -> Facts:
        if "certificate_chain" not in trip.facts:
            return {}
        for role in trip.words("certificate_roles"):
            if list(trip.need(CertificateStore, role).installed(trip.call)) != trip.octets_list(
                "certificate_chain"
            ):
                raise PossessionUnproven(
                    f"the device does not have the certificate that was installed ({role!r})"
                )
        return {}


def _actions(_options: NoOptions) -> tuple[Action, ...]:
    return (BoardTests(), Firmware(), Tpm(), Certificate())


STEP = Step(
    use="final-check",
    summary="ask the device for everything again, and run its own tests",
    options=NoOptions,
    actions=_actions,
    needs=lambda _options: (),
    requires=lambda _options: frozenset({"unit"}),
)
