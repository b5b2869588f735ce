"""How long the uploader waits, what a lane makes of strange sinks, and which files it takes for credentials."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from hal.call import Call, Cancel
from hal.errors import ConfigError, HallmarkError, Throttled, Unauthorized, Unreachable
from hal.secret import Secret
from hal.types import (
    Enrollment,
    Receipt,
    SealedSymmetricAttestation,
    SymmetricKeyAttestation,
    UploadResult,
)
from station.credentials import FileCredentials
from station.enrollment import to_json
from station.messages import Batch, Item, Outcome, SinkHealth
from station.notify import Watchdog
from station.paths import Paths
from station.sealing import seal_for_upload
from station.uploader.lane import Lane
from station.uploader.opening import Opener
from station.uploader.outbox import Outbox
from station.uploader.pace import CEILING, JITTER_SHARE, UNREACHABLE_CEILING, Pace
from tests.fixtures_dps import Keys, unit

# --- pace ---


@given(st.integers(1, 60))
def test_waits_grow_to_a_ceiling_and_no_further(tries: int) -> None:
    away, ill = Pace(), Pace()
    for number in range(tries):
        bound = 2.0**number
        assert 0 <= away.failed(Unreachable("x")) <= min(bound, UNREACHABLE_CEILING)
        assert 0 <= ill.failed(Unauthorized("x")) <= min(bound, CEILING)
    assert away.tries == tries
    away.succeeded()
    assert away.failed(Unreachable("x")) <= 1


def test_waits_are_spread_over_the_whole_range() -> None:
    waits = []
    for _ in range(200):
        pace = Pace()
        waits.append([pace.failed(Unreachable("x")) for _ in range(9)][-1])
    assert min(waits) < UNREACHABLE_CEILING * 0.2
    assert max(waits) > UNREACHABLE_CEILING * 0.8


@given(st.floats(0, 3600))
def test_retry_after_is_a_lower_bound(asked: float) -> None:
    assert asked <= Pace().failed(Throttled("x", retry_after=asked)) <= max(1.0, asked) * (1 + JITTER_SHARE)


# --- a lane and its sink ---


class StrangeSink:
    batch_limit = 3

    def __init__(self, *answers: UploadResult | Exception) -> None:
        self.answers = list(answers)

    def upload(self, call: Call, batch: Sequence[Enrollment]) -> UploadResult:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Heard(Outbox):
    """The station's answers without a station."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.told: list[SinkHealth] = []
        self.closed = False

    def report(self, call: Call, outcomes: Sequence[Outcome]) -> None:
        self.outcomes += outcomes

    def health(self, call: Call, health: SinkHealth) -> None:
        self.told.append(health)

    def close(self) -> None:
        self.closed = True


def deliver(*answers: UploadResult | Exception, most: int = 2) -> tuple[Heard, bool]:
    lane = Lane(
        "dps",
        StrangeSink(*answers),
        Path("nowhere"),
        Watchdog(("dps",), allowed=9),
        Cancel(),
        Opener(Keys()),
    )
    heard = Heard()
    fine = True
    for _ in answers:
        items = [Item(seq, f"u{seq}", to_json(unit(f"u{seq}")), 0) for seq in range(1, most + 1)]
        fine = lane._deliver(heard, Batch(items))
    return heard, fine


def codes(heard: Heard) -> list[str | None]:
    return [outcome.problem.code if outcome.problem else None for outcome in heard.outcomes]


@pytest.mark.parametrize(
    "answer",
    [
        TypeError("a driver's fault"),
        UploadResult((Receipt("u1"),)),
        UploadResult((Receipt("u1"), Receipt("u2"), Receipt("u3"))),
    ],
)
def test_a_faulty_driver_parks_nothing_and_ends_nothing(answer: UploadResult | Exception) -> None:
    heard, fine = deliver(answer)
    assert codes(heard) == ["Unreachable", "Unreachable"], "due again, behind the others"
    assert fine
    assert "driver" in heard.told[0].detail


def test_an_error_of_the_uploader_itself_gives_the_lease_back() -> None:
    heard, fine = deliver(ConfigError("no such credential"))
    assert (heard.outcomes, heard.closed, fine) == ([], True, False)


def test_receipts_and_errors_go_to_their_items() -> None:
    heard, fine = deliver(UploadResult((Throttled("later"), Receipt("u2", "e", sent=b"{}")), clock_skew=9.0))
    assert codes(heard) == ["Throttled", None]
    assert (heard.outcomes[1].etag, heard.outcomes[1].sent) == ("e", b"{}")
    assert heard.told[0].next_try is not None
    assert heard.told[0].clock_skew == 9.0
    assert fine


def test_health_is_told_on_change_only_while_all_is_well() -> None:
    def well(skew: float) -> UploadResult:
        return UploadResult((Receipt("u1"), Receipt("u2")), clock_skew=skew)

    heard, _ = deliver(well(0), well(1), well(0.5), Unreachable("away"), well(0), well(60), well(61))
    assert [(told.reachable, told.clock_skew) for told in heard.told] == [
        (True, 0),
        (False, None),
        (True, 0),
        (True, 60),
    ]


def test_a_sent_form_that_is_too_long_is_left_out_and_the_receipt_kept() -> None:
    heard, _ = deliver(UploadResult((Receipt("u1", sent=b"x" * 70_000),)), most=1)
    assert (heard.outcomes[0].problem, heard.outcomes[0].sent) == (None, b"")


# --- credentials ---


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path)
    found.credential("x").parent.mkdir(parents=True)
    return found


def test_a_credential_is_its_files_octets_now(paths: Paths) -> None:
    path = paths.credential("dps-key")
    path.write_bytes(b"one")
    path.chmod(0o600)
    credentials = FileCredentials(paths)
    assert credentials.secret("dps-key").reveal() == b"one"
    path.write_bytes(b"two")
    assert credentials.secret("dps-key").reveal() == b"two"


def test_systemds_folder_comes_first(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "dps-key").write_bytes(b"of systemd")
    (folder / "dps-key").chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert FileCredentials(paths).secret("dps-key").reveal() == b"of systemd"


@pytest.mark.parametrize("name", ["", "../station.toml", "a/b", ".hidden", "a\n", "x" * 65])
def test_a_name_is_never_a_path(paths: Paths, name: str) -> None:
    with pytest.raises(ConfigError, match="not the name"):
        FileCredentials(paths).secret(name)


def test_files_that_are_no_good_credentials_are_refused_with_a_hint(paths: Paths) -> None:
    def problem(prepare: str) -> HallmarkError:
        path = paths.credential(prepare)
        match prepare:
            case "empty":
                path.touch(mode=0o600)
            case "long":
                path.write_bytes(b"x" * 70_000)
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path, 0o600)
            case "open":
                path.write_bytes(b"secret")
                path.chmod(0o644)
        with pytest.raises(ConfigError) as caught:
            FileCredentials(paths).secret(prepare)
        assert prepare in caught.value.hint
        return caught.value

    assert "can't be read" in str(problem("missing"))
    assert "can't be read" in str(problem("folder"))
    for name in ("empty", "long", "pipe"):
        assert "empty, too long or no plain file" in str(problem(name))
    assert "every user" in str(problem("open"))


# --- symmetric keys, opened at the last moment ---


class Taking(StrangeSink):
    """Takes all, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Enrollment] = []

    def upload(self, call: Call, batch: Sequence[Enrollment]) -> UploadResult:
        self.given += batch
        return UploadResult(tuple(Receipt(item.registration_id) for item in batch))


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def sealed_item(seq: int, to: ec.EllipticCurvePrivateKey, name: str, written: str = "") -> Item:
    keys = SymmetricKeyAttestation(Secret(b"p" * 32), Secret(b"s" * 32))
    sealed = SealedSymmetricAttestation(seal_for_upload(to.public_key(), name, keys))
    return Item(seq, name, to_json(Enrollment(written or name, name, sealed)), 0)


def offered(keys: Keys, *items: Item) -> tuple[Taking, Heard, float]:
    sink, heard, waited = Taking(), Heard(), [0.0]
    cancel, watchdog = Cancel(), Watchdog(("dps",), allowed=9)
    lane = Lane("dps", sink, Path("nowhere"), watchdog, cancel, Opener(keys))

    def pause(seconds: float) -> None:
        waited[0] += seconds

    lane._pause = pause  # type: ignore[method-assign]
    lane._deliver(heard, Batch(list(items)))
    return sink, heard, waited[0]


def test_keys_are_opened_for_the_sink_only_and_for_their_own_unit() -> None:
    uploader, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    keys = Keys({"upload-key": private_pem(uploader)})
    sink, heard, waited = offered(
        keys,
        sealed_item(1, uploader, "gw-1"),
        sealed_item(2, other, "gw-2"),
        sealed_item(3, uploader, "gw-3", written="gw-4"),
        Item(4, "gw-5", to_json(unit("gw-5")), 0),
    )
    assert [item.registration_id for item in sink.given] == ["gw-1", "gw-5"]
    assert sink.given[0].attestation == SymmetricKeyAttestation(Secret(b"p" * 32), Secret(b"s" * 32))
    by_seq = {outcome.seq: outcome.problem and outcome.problem.code for outcome in heard.outcomes}
    assert by_seq == {1: None, 2: "Rejected", 3: "Rejected", 4: None}, "no try opens what is another's"
    assert waited == 0


@pytest.mark.parametrize("found", [{}, {"upload-key": "not a key: SECRET"}], ids=["missing", "unreadable"])
def test_without_its_private_key_they_wait_and_hold_nothing_else_up(found: dict[str, str]) -> None:
    uploader = ec.generate_private_key(ec.SECP256R1())
    sink, heard, waited = offered(
        Keys(found), sealed_item(1, uploader, "gw-1"), Item(2, "gw-2", to_json(unit("gw-2")), 0)
    )
    assert [item.registration_id for item in sink.given] == ["gw-2"]
    by_seq = {outcome.seq: outcome.problem and outcome.problem.code for outcome in heard.outcomes}
    assert by_seq == {1: "Unauthorized", 2: None}
    assert waited > 0, "not again at once"
    assert "SECRET" not in repr(heard.outcomes)
    assert "SECRET" not in repr(heard.told)
