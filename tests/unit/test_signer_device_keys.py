"""The signer gives each unit one key, to its board only, and keeps none in clear: ledger on disk, token in memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hal.call import Call
from hal.errors import (
    ConfigError,
    CsrRejected,
    DuplicateKey,
    HallmarkError,
    KeyConflict,
    KeyMissing,
    PossessionUnproven,
    ProtocolViolation,
    TokenError,
)
from hal.secret import Secret
from hal.types import KeyPurpose, KeyType, delivery_info, transport_message
from station.messages import CheckGroupKey, CheckKey, ImportGroupKey, KeyForBoard, SealKey, SealWrapped
from station.sealing import SUITE, open_upload
from station.signer import ledger
from station.signer.device_keys import DeviceKeys, verifier
from station.signer.key_ledger import KeyLedger
from station.signer.overrun import Overrun
from station.signer.service import Asker, Service
from station.unit_id import unit_id
from station.wire import Problem

VECTORS: Final = json.loads((Path(__file__).parents[1] / "data/dps/vectors.json").read_text())["derived_keys"]
MASTER: Final = base64.b64decode(VECTORS[0]["masterKey"])
CALL: Final = Call()
SPKI: Final = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


class MemoryToken:
    """DeviceSecrets and SecretWrap without a token. `given` is every secret that ever left it."""

    def __init__(self) -> None:
        self.groups: dict[str, bytes] = {}
        self.given: list[bytes] = []
        self.stuck: bytes | None = None
        self._aes = AESGCM(secrets.token_bytes(32))

    def random(self, call: Call, octets: int) -> Secret:
        return self._out(self.stuck or secrets.token_bytes(octets))

    def derive(self, call: Call, label: str, data: bytes) -> Secret:
        if label not in self.groups:
            raise KeyMissing(f"no key {label}")
        return self._out(hmac.digest(self.groups[label], data, "sha256"))

    def make_private_key(self, call: Call, key_type: KeyType) -> Secret:
        return self._out(pkcs8(ec.generate_private_key(ec.SECP256R1())))

    def import_group_key(self, call: Call, label: str, key: Secret) -> None:
        if label in self.groups:
            raise DuplicateKey("the label is taken")
        self.groups[label] = key.reveal()

    def wrap(self, call: Call, label: str, context: bytes, plain: Secret) -> bytes:
        nonce = secrets.token_bytes(12)
        return nonce + self._aes.encrypt(nonce, plain.reveal(), label.encode() + context)

    def unwrap(self, call: Call, label: str, context: bytes, wrapped: bytes) -> Secret:
        try:
            return Secret(self._aes.decrypt(wrapped[:12], wrapped[12:], label.encode() + context))
        except InvalidTag:
            raise TokenError("it does not unwrap") from None

    def destroy(self, call: Call, label: str) -> None:
        raise AssertionError("the key that wraps devices' keys is never destroyed")

    def _out(self, octets: bytes) -> Secret:
        self.given.append(octets)
        return Secret(octets)


def pkcs8(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Signer:
    """DeviceKeys over a ledger in a folder, as often opened as one likes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, MemoryToken()
        self.uploader: ec.EllipticCurvePrivateKey | None = ec.generate_private_key(ec.SECP256R1())
        self._stack = contextlib.ExitStack()
        self.restart()

    def restart(self) -> None:
        self._stack.close()
        self.book = self._stack.enter_context(ledger.opened(self.folder))
        public = self.uploader.public_key() if self.uploader else None
        self.keys = DeviceKeys(KeyLedger(self.book), self.token, self.token, public)

    def close(self) -> None:
        self._stack.close()

    def octets(self) -> bytes:
        return b"".join(file.read_bytes() for file in self.folder.iterdir() if file.is_file())


@pytest.fixture
def signer(tmp_path: Path) -> Iterator[Signer]:
    made = Signer(tmp_path / "signer")
    yield made
    made.close()


class Board:
    """A board's transport key, and its own key where it has one."""

    def __init__(self) -> None:
        self.own = ec.generate_private_key(ec.SECP256R1())
        self.spki = self.own.public_key().public_bytes(*SPKI)
        self.transport = ec.generate_private_key(ec.SECP256R1())

    @property
    def point(self) -> bytes:
        return self.transport.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )

    def asks(self, unit: str, **more: Any) -> SealKey:
        return SealKey(unit, f"dev-{unit}", "symmetric", self.point, **more)

    def vouched(self, **more: Any) -> SealKey:
        """For its own unit, signed by its own key."""
        unit, challenge = unit_id("key", hashlib.sha256(self.spki).hexdigest()), secrets.token_bytes(32)
        signature = self.own.sign(transport_message(challenge, self.point), ec.ECDSA(hashes.SHA256()))
        asked = self.asks(unit, identity=self.spki, challenge=challenge, signature=signature)
        return SealKey(**{name: getattr(asked, name) for name in asked.__struct_fields__} | more)

    def opens(self, asked: SealKey, found: KeyForBoard) -> bytes:
        info = delivery_info(KeyPurpose(asked.purpose), asked.registration_id)
        return SUITE.decrypt(found.encapsulated + found.ciphertext, self.transport, info=info)


def give(signer: Signer, unit: str, **more: Any) -> bytes:
    """The key that a fresh board of this unit gets."""
    board = Board()
    asked = board.asks(unit, **more)
    return board.opens(asked, signer.keys.seal(CALL, asked))


def proof(key: bytes, nonce: bytes) -> bytes:
    return hmac.digest(hmac.digest(key, b"hallmark key proof 1", "sha256"), nonce, "sha256")


# --- one unit, one key ---


def test_the_same_unit_gets_the_same_key_again_also_after_a_restart(signer: Signer) -> None:
    first = give(signer, "u1")
    assert len(first) == 32
    assert give(signer, "u1") == first
    signer.restart()
    assert give(signer, "u1") == first
    assert give(signer, "u2") != first


def test_what_is_uploaded_is_the_boards_key_and_the_same_octets_each_time(signer: Signer) -> None:
    board, again = Board(), Board()
    asked = board.asks("u1")
    found = signer.keys.seal(CALL, asked)
    assert signer.uploader is not None
    opened = open_upload(signer.uploader, "dev-u1", found.upload)
    assert opened is not None
    assert opened.primary == Secret(board.opens(asked, found))
    assert opened.secondary not in (opened.primary, Secret(bytes(32)))
    assert signer.keys.seal(CALL, again.asks("u1")).upload == found.upload


def test_parallel_requests_for_one_unit_get_one_key(signer: Signer) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(give(signer, "u1"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_token_that_gives_a_key_twice_is_found_before_the_second_unit_gets_it(signer: Signer) -> None:
    signer.token.stuck = bytes(range(32))
    give(signer, "u1")
    board = Board()
    with pytest.raises(DuplicateKey, match="u1") as caught:
        signer.keys.seal(CALL, board.asks("u2"))
    assert "Stop the line" in caught.value.hint
    assert give(signer, "u1") == signer.token.stuck, "the first one's is left as it was"
    signer.restart()
    with pytest.raises(DuplicateKey):
        signer.keys.seal(CALL, board.asks("u2"))


def test_a_registration_id_is_one_units(signer: Signer) -> None:
    give(signer, "u1")
    with pytest.raises(DuplicateKey, match="dev-u1"):
        signer.keys.seal(CALL, SealKey("u2", "dev-u1", "symmetric", Board().point))


def test_a_unit_does_not_change_where_its_key_comes_from(signer: Signer) -> None:
    signer.token.groups["line"] = MASTER
    give(signer, "u1")
    with pytest.raises(DuplicateKey, match="random"):
        signer.keys.seal(CALL, Board().asks("u1", group="line"))
    give(signer, "u2", group="line")
    for other in ({}, {"group": "other"}):
        with pytest.raises(DuplicateKey, match="group line"):
            signer.keys.seal(CALL, Board().asks("u2", **other))


# --- derived keys ---


def test_the_documented_vector_is_reproduced_whatever_the_case_of_the_id(signer: Signer) -> None:
    """docs and SDKs agree on the value for the ID in lower case; the upper-case value is a documented erratum."""
    lower, upper = VECTORS
    assert upper["registrationId"] == lower["registrationId"].upper()
    signer.token.groups["line"] = MASTER
    board = Board()
    asked = SealKey("u1", lower["registrationId"], "symmetric", board.point, group="line")
    key = board.opens(asked, signer.keys.seal(CALL, asked))
    assert base64.b64encode(key).decode() == lower["derivedKey"]
    with pytest.raises(CsrRejected, match="lower case"):
        signer.keys.seal(CALL, SealKey("u2", upper["registrationId"], "symmetric", board.point, group="line"))


def test_a_derived_key_is_kept_nowhere_and_uploaded_nowhere(signer: Signer) -> None:
    signer.token.groups["line"] = MASTER
    board = Board()
    asked = board.asks("u1", group="line")
    found = signer.keys.seal(CALL, asked)
    assert found.upload == b""
    assert signer.keys.kept() == []
    signer.keys.forget(["u1"])
    assert give(signer, "u1", group="line") == board.opens(asked, found), "derived again"


def test_another_group_key_under_the_same_label_is_noticed(signer: Signer) -> None:
    signer.token.groups["line"] = MASTER
    give(signer, "u1", group="line")
    signer.token.groups["line"] = secrets.token_bytes(64)
    with pytest.raises(KeyMissing, match="not the one"):
        signer.keys.seal(CALL, Board().asks("u1", group="line"))
    del signer.token.groups["line"]
    with pytest.raises(KeyMissing):
        signer.keys.seal(CALL, Board().asks("u1", group="line"))


def test_stations_with_the_same_group_key_show_the_same_check_value(signer: Signer) -> None:
    made = signer.keys.group_key(CALL, ImportGroupKey("line", MASTER))
    assert signer.keys.group_key(CALL, CheckGroupKey("line")) == made
    assert signer.keys.group_key(CALL, ImportGroupKey("again", MASTER)).check == made.check
    assert signer.keys.group_key(CALL, ImportGroupKey("other", secrets.token_bytes(64))).check != made.check
    assert len(made.check) == 8
    assert repr(MASTER)[2:20] not in repr(ImportGroupKey("line", MASTER))


# --- to whom ---


def test_a_key_goes_only_where_the_units_own_key_says_once_it_has_said(signer: Signer) -> None:
    board, thief = Board(), Board()
    asked = board.vouched()
    key = board.opens(asked, signer.keys.seal(CALL, asked))
    for wrong in (
        thief.asks(asked.unit),
        board.vouched(transport=thief.point),
        board.vouched(challenge=bytes(32)),
        board.vouched(identity=thief.spki),
        thief.vouched(unit=asked.unit, registration_id=asked.registration_id),
    ):
        with pytest.raises(PossessionUnproven):
            signer.keys.seal(CALL, wrong)
    board.transport = ec.generate_private_key(ec.SECP256R1())
    again = board.vouched()
    assert board.opens(again, signer.keys.seal(CALL, again)) == key


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"transport": b"\x04" + bytes(64)}, ProtocolViolation),
        ({"transport": b"short"}, ProtocolViolation),
        ({"purpose": "both"}, ProtocolViolation),
        ({"purpose": "private-key"}, ProtocolViolation),
        ({"purpose": "private-key", "key_type": "dsa"}, ProtocolViolation),
        ({"identity": b"x"}, PossessionUnproven),
    ],
)
def test_requests_that_make_no_sense_get_no_key(
    signer: Signer, change: dict[str, Any], kind: type[HallmarkError]
) -> None:
    asked = Board().asks("u1")
    fields = {name: getattr(asked, name) for name in asked.__struct_fields__}
    with pytest.raises(kind):
        signer.keys.seal(CALL, SealKey(**fields | change))


def test_without_an_upload_key_no_key_is_made_that_nobody_could_upload(signer: Signer) -> None:
    signer.uploader = None
    signer.restart()
    with pytest.raises(ConfigError, match="upload key"):
        signer.keys.seal(CALL, Board().asks("u1"))
    assert signer.keys.kept() == []
    signer.token.groups["line"] = MASTER
    give(signer, "u2", group="line")


# --- proof and forgetting ---


def test_a_proof_holds_for_the_units_own_key_and_nonce_only(signer: Signer) -> None:
    key, other, nonce = give(signer, "u1"), give(signer, "u2"), secrets.token_bytes(32)
    signer.keys.check(CALL, CheckKey("u1", nonce, proof(key, nonce)))
    for wrong in (
        proof(other, nonce),
        proof(key, bytes(32)),
        hmac.digest(key, nonce, "sha256"),
        b"",
        bytes(32),
    ):
        with pytest.raises(PossessionUnproven):
            signer.keys.check(CALL, CheckKey("u1", nonce, wrong))
    with pytest.raises(KeyMissing):
        signer.keys.check(CALL, CheckKey("u3", nonce, proof(key, nonce)))
    with pytest.raises(ProtocolViolation):
        signer.keys.check(CALL, CheckKey("u1", b"short", proof(key, b"short")))


def test_a_forgotten_key_is_gone_from_the_disk_and_can_still_be_checked(signer: Signer) -> None:
    key, nonce = give(signer, "u1"), secrets.token_bytes(32)
    give(signer, "u2")
    with signer.book.using() as db:
        kept: bytes = db.execute("SELECT kept FROM device_keys WHERE unit = 'u1'").get
    assert kept in signer.octets()
    assert signer.keys.kept() == ["u1", "u2"]
    signer.keys.forget(["u1", "never heard of"])
    assert kept not in signer.octets(), "neither in the database nor in its log"
    assert signer.keys.kept() == ["u2"]
    signer.restart()
    signer.keys.check(CALL, CheckKey("u1", nonce, proof(key, nonce)))
    with pytest.raises(KeyConflict, match="forgotten"):
        signer.keys.seal(CALL, Board().asks("u1"))


def test_no_secret_is_on_the_signers_disk_in_clear(signer: Signer) -> None:
    signer.token.groups["line"] = MASTER
    give(signer, "u1")
    give(signer, "u2", group="line")
    board = Board()
    signer.keys.seal(CALL, SealKey("u3", "dev-u3", "private-key", board.point, key_type="p256"))
    assert len(signer.token.given) >= 4
    found = signer.octets()
    for secret in [
        MASTER,
        *signer.token.given,
        *(verifier(Secret(key)).reveal() for key in signer.token.given),
    ]:
        for form in (secret, base64.b64encode(secret), secret.hex().encode(), secret.hex().upper().encode()):
            assert form not in found


# --- private keys ---


def test_a_private_key_made_for_a_board_is_whole_the_same_again_and_no_other_units(signer: Signer) -> None:
    board = Board()
    asked = SealKey("u1", "dev-u1", "private-key", board.point, key_type="p256")
    found = signer.keys.seal(CALL, asked)
    key = serialization.load_der_private_key(board.opens(asked, found), password=None)
    assert key.public_key().public_bytes(*SPKI) == found.spki
    again = signer.keys.seal(CALL, asked)
    assert board.opens(asked, again) == board.opens(asked, found)
    assert again.spki == found.spki
    other = SealKey("u2", "dev-u2", "private-key", board.point, key_type="p256")
    assert signer.keys.seal(CALL, other).spki != found.spki
    symmetric = give(signer, "u1")
    assert len(symmetric) == 32, "a unit may have both kinds"
    signer.keys.forget(["u1"])
    with pytest.raises(KeyConflict):
        signer.keys.seal(CALL, asked)


def test_a_pools_wrapped_key_is_sealed_again_for_its_board(signer: Signer) -> None:
    board, made = Board(), ec.generate_private_key(ec.SECP256R1())
    wrapped = signer.token.wrap(CALL, "resume", b"pool 7", Secret(pkcs8(made)))
    found = signer.keys.seal_wrapped(CALL, SealWrapped("dev-u1", board.point, b"pool 7", wrapped), "resume")
    asked = SealKey("u1", "dev-u1", "private-key", board.point)
    assert board.opens(asked, found) == pkcs8(made)
    assert found.spki == made.public_key().public_bytes(*SPKI)
    with pytest.raises(TokenError):
        signer.keys.seal_wrapped(CALL, SealWrapped("dev-u1", board.point, b"pool 8", wrapped), "resume")
    junk = signer.token.wrap(CALL, "resume", b"pool 9", Secret(b"no key at all"))
    with pytest.raises(TokenError, match="no private key") as caught:
        signer.keys.seal_wrapped(CALL, SealWrapped("dev-u1", board.point, b"pool 9", junk), "resume")
    assert caught.value.__cause__ is None


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.sampled_from(["ask", "forget", "restart"]))))
def test_whatever_the_order_of_events_no_two_units_share_a_key(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, bool, str]]
) -> None:
    signer = Signer(tmp_path_factory.mktemp("signer"))
    signer.token.groups["line"] = MASTER
    keys: dict[str, bytes] = {}
    forgotten: set[str] = set()
    try:
        for number, grouped, what in events:
            unit = f"u{number}{'g' if grouped else ''}"
            if what == "restart":
                signer.restart()
            elif what == "forget":
                signer.keys.forget([unit])
                forgotten |= {unit} & keys.keys() if not grouped else set()
            elif unit in forgotten:
                with pytest.raises(KeyConflict):
                    give(signer, unit)
            else:
                key = give(signer, unit, group="line" if grouped else "")
                assert keys.setdefault(unit, key) == key
    finally:
        signer.close()
    assert len(set(keys.values())) == len(keys)


def test_a_row_of_another_unit_can_not_be_put_in_its_place(signer: Signer) -> None:
    """What is kept is wrapped for its unit: exchanged rows do not unwrap."""
    give(signer, "u1")
    give(signer, "u2")
    book = KeyLedger(signer.book)
    one, two = book.find("u1", KeyPurpose.SYMMETRIC), book.find("u2", KeyPurpose.SYMMETRIC)
    assert one is not None
    assert two is not None
    with signer.book.using() as db, db:
        db.execute("UPDATE device_keys SET kept = ? WHERE unit = 'u1'", (two.kept,))
    with pytest.raises(TokenError):
        signer.keys.seal(CALL, Board().asks("u1"))
    assert replace(one, kept=two.kept) == book.find("u1", KeyPurpose.SYMMETRIC)


def test_only_root_and_the_signers_own_user_put_group_keys_in(signer: Signer) -> None:
    """The station, a member of the clients' group, may ask for units' keys and for nothing of groups."""
    nothing: Any = None
    service = Service(
        *(nothing,) * 5,
        signer.book,
        signer.token,
        "resume",
        "token",
        Overrun(),
        signer.keys,
        nothing,
        nothing,
    )
    for request in (ImportGroupKey("line", MASTER), CheckGroupKey("line")):
        answer = service.answer(request, Asker("hallmark", may_change=False))
        assert isinstance(answer, Problem)
        assert "sudo" in answer.hint
    assert signer.token.groups == {}
    assert service.answer(
        ImportGroupKey("line", MASTER), Asker("root", may_change=True)
    ) == signer.keys.group_key(CALL, CheckGroupKey("line"))
