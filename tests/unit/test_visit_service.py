"""What a worker is told, and what it is refused, whatever it asks: a hostile board may have taken it over."""

from __future__ import annotations

import datetime as dt
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hal.errors import DeviceGone, EkUntrusted, HallmarkError, ProtocolViolation, TokenAbsent
from hal.secret import Secret
from hal.types import Enrollment, TpmAttestation, X509Attestation
from station import messages
from station.attestation import check_offline, from_json, to_json
from station.enrollment import to_json as to_enrollment
from station.images import ImageStore
from station.nest.service import Services, VisitService
from station.recipe import PlannedStep, Recipe
from station.signer_client import SignerClient
from station.steps import STEPS
from station.store import Store
from station.tpm_structures import public_area
from station.trust.judge import Judge
from station.trust.policy import EkPolicy, EkTrust
from station.trust.verdict import Verdict
from station.wire import LENGTH, Link, Problem
from tests.store_parts import SKU, plug
from tests.tpm_parts import EK, SoftTpm, name


def enrollment(board: int, ek: bytes | None = None, registration_id: str = "") -> bytes:
    """What the worker of that board queues for the cloud."""
    name = registration_id or f"board-{board}"
    return to_enrollment(Enrollment(name, name, TpmAttestation(ek or SoftTpm(board).ek)))


def ek_name(board: int) -> bytes:
    return name(SoftTpm(board).ek)


AUTHS = {"lockout": b"L" * 32}


class FakeSigner:
    """Wraps by remembering the context. Says the order of what it was asked."""

    def __init__(self) -> None:
        self.kept: dict[bytes, tuple[bytes, bytes]] = {}
        self.error: HallmarkError | None = None
        self.requests: list[messages.SignRequest] = []

    def issued(self, request: messages.SignRequest) -> messages.Issued:
        self.requests.append(request)
        raise TokenAbsent("pulled")

    def wrap(self, context: bytes, plain: Secret, key: str = "") -> bytes:
        if self.error:
            raise self.error
        wrapped = b"wrapped %d" % len(self.kept)
        self.kept[wrapped] = (context + key.encode(), plain.reveal())
        return wrapped

    def unwrap(self, context: bytes, wrapped: bytes, key: str = "") -> Secret:
        kept, plain = self.kept[wrapped]
        assert kept == context + key.encode(), "unwrapped for another unit, EK, generation or by another key"
        return Secret(plain)


class FakeJudge:
    """Believes in the EKs of boards by their number, as the policy of the recipe says."""

    def judge(
        self, policy: EkPolicy, ek_public: bytes, certificate: bytes | None, chain: list[bytes]
    ) -> Verdict:
        assert policy.trust is EkTrust.LIST
        if certificate is not None:
            raise EkUntrusted("not that one")
        return Verdict(trust="list", ek_name=ek_name(int(ek_public)).hex(), lot="L1")


class Watcher:
    def __init__(self) -> None:
        self.verdicts: list[Problem | None] = []
        self.software = False

    def joined(self, unit: messages.Unit) -> None:
        del unit

    def software_tpm(self) -> None:
        self.software = True

    def progress(self, message: messages.Progress) -> None:
        del message

    def absent(self, within: float | None) -> None:
        del within

    def await_board(self) -> messages.Seen:
        raise DeviceGone("away")

    def ended(self, problem: Problem | None) -> None:
        self.verdicts.append(problem)

    def log(self, message: messages.Log) -> None:
        del message


def officer() -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "officer")])
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.KeyUsage(*(index == 4 for index in range(9))), critical=True)
        .sign(key, hashes.SHA256())
    )


OFFICER = officer()


class Talk:
    """A visit that the station serves, and the worker's end of its link."""

    def __init__(
        self, store: Store, tmp_path: Path, officers: tuple[x509.Certificate, ...] = (OFFICER,)
    ) -> None:
        self.store, self.signer, self.watcher = store, FakeSigner(), Watcher()
        self.officers = officers
        self._images = ImageStore(tmp_path, tmp_path / "none.pem")
        self.begin()

    def begin(self) -> None:
        plan: tuple[tuple[str, dict[str, str]], ...] = (
            ("flash", {"image": "gw.bin"}),
            ("tpm-identity", {"ek_trust": "list"}),
            ("certificate", {"profile": "p"}),
        )
        steps = tuple(
            PlannedStep(STEPS[use], msgspec.convert(options, STEPS[use].options)) for use, options in plan
        )
        recipe = Recipe("r.toml", SKU, "final", "00" * 32, (), steps)
        services = Services(
            "s",
            self.store,
            cast("SignerClient", self.signer),
            self._images,
            self.officers,
            ("dps",),
            judge=cast("Judge", FakeJudge()),
        )
        self.visit = plug(self.store)
        ours, self.socket = socket.socketpair()
        self.socket.settimeout(10)
        self.service = VisitService(services, self.visit, recipe, self.watcher)
        self.error: HallmarkError | None = None
        self._station: Link[messages.WorkerSays] = Link(ours, messages.WorkerSays)
        self.link: Link[messages.StationSays] = Link(self.socket, messages.StationSays)
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        try:
            self.service.serve(self._station)
        except HallmarkError as error:
            self.error = error
        finally:
            self._station.close()

    def ask(self, message: object) -> Any:
        self.link.send(message)
        return self.link.receive()

    def judge(self, board: int) -> Any:
        return self.ask(messages.JudgeEk(b"%d" % board, None, []))

    def refused(self, message: object) -> str:
        answer = self.ask(message)
        assert isinstance(answer, Problem), answer
        assert answer.hint
        return answer.code

    def answered(self, tpm: SoftTpm) -> messages.Proven:
        """What that TPM says to a challenge for its EK."""
        made = self.ask(messages.AskCredential("attestation-key", tpm.ek, tpm.ak))
        assert isinstance(made, messages.Credential), made
        return messages.Proven(tpm.activate(tpm.ak, made.id_object, made.encrypted_secret))

    def show_ek(self, board: int = 1) -> None:
        """The TPM of that board shows that it has its EK."""
        assert isinstance(self.ask(self.answered(SoftTpm(board))), messages.Ok)

    def join(self, board: int = 1) -> messages.Unit:
        self.show_ek(board)
        assert isinstance(self.judge(board), messages.EkVerdict)
        unit = self.ask(messages.Join("ek-name", ek_name(board).hex(), f"board-{board}", []))
        assert isinstance(unit, messages.Unit), unit
        return unit

    def end(self) -> None:
        self.link.close()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def talk(store: Store, tmp_path: Path) -> Iterator[Talk]:
    made = Talk(store, tmp_path)
    yield made
    made.end()


# --- whose EK is believed ---------------------------------------------------------------------------------------


def test_an_ek_that_this_visit_has_no_verdict_on_joins_no_unit(talk: Talk) -> None:
    assert talk.refused(messages.Join("ek-name", ek_name(1).hex(), "board-1", [])) == "EkUntrusted"
    assert isinstance(talk.judge(2), messages.EkVerdict)
    assert talk.refused(messages.Join("ek-name", ek_name(1).hex(), "board-1", [])) == "EkUntrusted"
    assert talk.refused(messages.Join("ek-name", "no name", "board-1", [])) == "EkUntrusted"
    assert talk.refused(messages.JudgeEk(b"1", b"a certificate", [])) == "EkUntrusted"
    assert talk.store.units(10) == []
    talk.end()
    talk.begin()
    assert talk.refused(messages.Join("ek-name", ek_name(2).hex(), "board-2", [])) == "EkUntrusted", (
        "a verdict is for its own visit"
    )


def test_the_verdict_is_on_the_units_record(talk: Talk) -> None:
    unit = talk.join(1)
    record = talk.store.unit(unit.unit)
    assert record is not None
    assert record.ek_verdict is not None
    assert (record.ek_verdict.trust, record.ek_verdict.lot) == ("list", "L1")
    assert "ek-judged" in {event.kind for event in talk.store.events(0, 100)}


# --- secrets ----------------------------------------------------------------------------------------------------


def test_secrets_are_escrowed_and_kept_before_the_worker_may_use_them(talk: Talk) -> None:
    talk.join()
    assert isinstance(talk.ask(messages.Protect(ek_name(1), AUTHS)), messages.Ok)
    assert talk.ask(messages.Recover(ek_name(1))) == messages.Auths(AUTHS)
    record = talk.store.unit("board-1")
    assert record is not None
    assert AUTHS["lockout"] not in msgspec.json.encode(record)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: messages.Protect(ek_name(1), AUTHS),
        lambda: messages.Recover(ek_name(1)),
        lambda: messages.Issue("p", b"csr"),
        lambda: messages.Finish("s", "a", {}, b""),
    ],
)
def test_before_it_has_joined_a_worker_gets_nothing(talk: Talk, ask: Callable[[], object]) -> None:
    assert talk.refused(ask()) == "ProtocolViolation"
    assert not talk.watcher.verdicts


def test_secrets_of_another_tpm_are_refused(talk: Talk) -> None:
    talk.join(1)
    talk.ask(messages.Protect(ek_name(1), AUTHS))
    assert talk.refused(messages.Recover(ek_name(2))) == "EkMismatch"
    assert talk.refused(messages.Protect(ek_name(2), AUTHS)) == "EkMismatch"


def test_a_worker_can_not_become_another_unit_in_mid_visit(talk: Talk) -> None:
    talk.join(1)
    talk.ask(messages.Protect(ek_name(1), AUTHS))
    talk.end()
    talk.begin()
    talk.join(2)
    talk.judge(1)
    assert talk.refused(messages.Join("ek-name", ek_name(1).hex(), "board-1", [])) == "ResidencyUnproven"
    assert talk.refused(talk.answered(SoftTpm(1))) == "EkMismatch", "not even with the other TPM at hand"
    assert talk.refused(messages.Recover(ek_name(1))) == "EkMismatch"


def test_without_an_officer_no_secret_is_taken(store: Store, tmp_path: Path) -> None:
    talk = Talk(store, tmp_path, officers=())
    talk.join()
    assert talk.refused(messages.Protect(ek_name(1), AUTHS)) == "StationError"
    talk.end()


def test_a_secret_that_could_not_be_wrapped_is_not_escrowed_either(talk: Talk) -> None:
    talk.join()
    talk.signer.error = TokenAbsent("pulled")
    assert talk.refused(messages.Protect(ek_name(1), AUTHS)) == "TokenAbsent"
    talk.signer.error = None
    assert talk.refused(messages.Recover(ek_name(1))) == "StationError"
    record = talk.store.unit("board-1")
    assert record is not None
    assert not msgspec.to_builtins(record)["escrows"]


# --- what its recipe does not name ------------------------------------------------------------------------------


def test_images_and_profiles_that_the_recipe_does_not_name_are_refused(talk: Talk) -> None:
    talk.join()
    assert talk.refused(messages.FetchImage("other.bin")) == "ProtocolViolation"
    assert talk.refused(messages.FetchImage("../../etc/shadow")) == "ProtocolViolation"
    assert talk.refused(messages.Issue("root-ca", b"csr")) == "ProtocolViolation"
    assert talk.refused(messages.FetchImage("gw.bin")) == "ConfigError", "there is no key that signs images"


# --- frames -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        LENGTH.pack(0xFFFFFFFF),
        LENGTH.pack(4) + b"\xc1\xc1\xc1\xc1",
        LENGTH.pack(1) + b"\x80",
        LENGTH.pack(20_000) + b"\x91" * 20_000,
        LENGTH.pack(10) + b"cut",
    ],
)
def test_a_malformed_frame_ends_the_worker_and_nothing_is_written(talk: Talk, raw: bytes) -> None:
    talk.socket.sendall(raw)
    talk.end()
    assert talk.error is not None
    assert not talk.watcher.verdicts


def test_a_message_out_of_its_place_ends_the_worker(talk: Talk) -> None:
    talk.link.send(messages.Ready(1))
    talk.thread.join(10)
    assert isinstance(talk.error, ProtocolViolation)


# --- verdicts ---------------------------------------------------------------------------------------------------


def test_a_verdict_is_durable_when_it_is_shown_and_there_is_only_one(talk: Talk) -> None:
    unit = talk.join()
    for step, action in (("enroll", "queue"),):
        assert isinstance(talk.ask(messages.Begin(step, action)), messages.Ok)
    assert isinstance(talk.ask(messages.Finish("enroll", "queue", {}, enrollment(1))), messages.Ok)
    talk.thread.join(10)
    assert talk.watcher.verdicts == [None]
    record: Any = msgspec.to_builtins(talk.store.unit(unit.unit))
    assert record["summary"]["outcome"] == "PASS"


def test_a_failure_keeps_its_code_message_and_hint(talk: Talk) -> None:
    talk.join()
    problem = Problem.of(DeviceGone("unplugged"))
    assert isinstance(talk.ask(messages.Failed("flash", "write", problem)), messages.Ok)
    talk.thread.join(10)
    assert talk.watcher.verdicts == [problem]
    record: Any = msgspec.to_builtins(talk.store.unit("board-1"))
    visit = record["visits"][-1]
    assert (visit["outcome"], visit["code"], visit["message"]) == ("ABORTED", "DeviceGone", "unplugged")
    assert visit["hint"] == DeviceGone.default_hint


# --- what has to be proven first --------------------------------------------------------------------------------


def csr(key: ec.EllipticCurvePrivateKey, common_name: str = "board-1") -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.DER)


def show_key(talk: Talk, tpm: SoftTpm) -> object:
    made = talk.ask(messages.AskCredential("device-key", tpm.ek, tpm.key))
    secret = tpm.activate(tpm.key, made.id_object, made.encrypted_secret)
    certified = tpm.certify(tpm.key, made.nonce)
    return talk.ask(messages.Proven(secret, certified.attest, certified.signature))


def test_a_worker_that_only_names_an_ek_joins_no_unit(talk: Talk) -> None:
    talk.judge(1)
    join = messages.Join("ek-name", ek_name(1).hex(), "board-1", [])
    assert talk.refused(join) == "ResidencyUnproven"
    talk.show_ek(2)
    assert talk.refused(join) == "ResidencyUnproven", "another TPM's proof is none for this one"
    assert talk.store.unit("board-1") is None


def test_the_transcript_is_durable_with_the_unit_as_soon_as_it_has_joined(talk: Talk) -> None:
    unit = talk.join()
    record = talk.store.unit(unit.unit)
    assert record is not None
    assert record.attestation is not None
    assert from_json(record.attestation).key is None
    assert isinstance(show_key(talk, SoftTpm(1)), messages.Ok)
    record = talk.store.unit(unit.unit)
    assert record is not None
    assert record.attestation is not None
    full = from_json(record.attestation)
    assert full.key is not None
    check_offline(full, public_area(SoftTpm(1).key).spki)
    talk.end()
    talk.begin()
    talk.join()
    record = talk.store.unit(unit.unit)
    assert record is not None
    assert record.attestation == to_json(full), "a visit that proves less takes nothing away"


def test_no_request_goes_to_the_signer_for_a_key_that_was_not_proven(talk: Talk) -> None:
    talk.join()
    tpm = SoftTpm(1)
    assert talk.refused(messages.Issue("p", csr(tpm.device_key))) == "ResidencyUnproven"
    assert isinstance(show_key(talk, tpm), messages.Ok)
    other = ec.derive_private_key(99, ec.SECP256R1())
    assert talk.refused(messages.Issue("p", csr(other))) == "ResidencyUnproven"
    assert not talk.signer.requests
    assert talk.refused(messages.Issue("p", csr(tpm.device_key))) == "TokenAbsent", (
        "it got as far as the signer"
    )
    (request,) = talk.signer.requests
    check_offline(from_json(request.attestation), public_area(tpm.key).spki)


def test_one_ek_key_under_two_names_is_not_two_units(talk: Talk) -> None:
    """The certificate vouches for the key; attributes and policy, which the Name covers too, are the board's word."""
    talk.join(1)
    talk.end()
    talk.begin()
    twin = SoftTpm(1, ek_attributes=EK | 0x40)
    assert name(twin.ek) != ek_name(1)
    talk.service._judged.add(name(twin.ek).hex())
    assert isinstance(talk.ask(talk.answered(twin)), messages.Ok)
    assert talk.refused(messages.Join("ek-name", name(twin.ek).hex(), "board-9", [])) == "IdentityConflict"


def test_a_sealed_tpm_gets_the_endorsement_auth_and_nothing_else_before_its_proof(talk: Talk) -> None:
    talk.join(1)
    auths = {"endorsement": b"E" * 32, "lockout": b"L" * 32}
    assert isinstance(talk.ask(messages.Protect(ek_name(1), auths)), messages.Ok)
    talk.end()
    talk.begin()
    talk.judge(1)
    join = messages.Join("ek-name", ek_name(1).hex(), "board-1", [], unproven=True)
    assert isinstance(talk.ask(join), messages.Unit)
    assert talk.ask(messages.Recover(ek_name(1))) == messages.Auths({"endorsement": b"E" * 32})
    for forbidden in (
        messages.Protect(ek_name(1), auths),
        messages.Begin("certificate", "key"),
        messages.Done("certificate", "key", {"key_spki": b"another's"}, False),
        messages.Finish("enroll", "queue", {}, enrollment(1)),
    ):
        assert talk.refused(forbidden) == "ResidencyUnproven", forbidden
    assert talk.refused(talk.answered(SoftTpm(2))) == "ResidencyUnproven"


def test_after_the_late_proof_a_sealed_tpm_gets_all_of_its_auths(talk: Talk) -> None:
    talk.join(1)
    auths = {"endorsement": b"E" * 32, "lockout": b"L" * 32}
    talk.ask(messages.Protect(ek_name(1), auths))
    talk.end()
    talk.begin()
    talk.judge(1)
    talk.ask(messages.Join("ek-name", ek_name(1).hex(), "board-1", [], unproven=True))
    talk.show_ek(1)
    assert talk.ask(messages.Recover(ek_name(1))) == messages.Auths(auths)


@pytest.mark.parametrize(
    "content",
    [
        lambda: enrollment(1, ek=SoftTpm(2).ek),
        lambda: enrollment(1, registration_id="board-2"),
        lambda: to_enrollment(Enrollment("board-1", "board-1", X509Attestation(b"another's"))),
    ],
    ids=["another EK", "another registration ID", "another certificate"],
)
def test_the_cloud_is_not_told_of_another_key_than_the_proven_one(
    talk: Talk, content: Callable[[], bytes]
) -> None:
    talk.join(1)
    assert talk.refused(messages.Finish("enroll", "queue", {}, content())) == "IdentityConflict"
    record = talk.store.unit("board-1")
    assert record is not None
    assert not record.outbox
    assert isinstance(talk.ask(messages.Finish("enroll", "queue", {}, enrollment(1))), messages.Ok)


def test_a_worker_that_claims_an_endorsement_key_without_proof_is_refused(talk: Talk) -> None:
    claimed = messages.Join("key", "ab" * 32, "board-1", [("ek-key", "00" * 32)])
    assert talk.refused(claimed) == "ProtocolViolation"
