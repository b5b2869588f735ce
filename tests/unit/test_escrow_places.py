"""Where escrow records and auth values may be meanwhile: second media, the token's keys, the station's memory."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest

from hal.errors import ConfigError, EscrowIncomplete, PeerUnavailable, TokenAbsent
from hal.secret import Secret
from station import escrow_media
from station.commands import check
from station.config import load_configuration
from station.escrow_media import Medium
from station.key_keeper import KeyKeeper
from station.offered import LASTING, MOST, Offered
from station.paths import Paths
from station.store import Store
from tests import store_parts as parts

EK = parts.ek_name(1)
SEALED = b"sealed record" * 30


# --- media ------------------------------------------------------------------------------------------------------


@pytest.fixture
def medium(tmp_path: Path) -> Medium:
    (tmp_path / "stick").mkdir()
    return Medium(tmp_path / "stick", tmp_path, bench=True)


def test_a_record_is_kept_whole_and_again_is_the_same_file(medium: Medium) -> None:
    for _ in range(2):
        medium.keep(EK, 3, SEALED)
    (file,) = medium.folder.iterdir()
    assert (file.name, file.read_bytes()) == (f"{EK.hex()}-3.p7m", SEALED)
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_an_interrupted_copy_left_is_not_the_record(medium: Medium) -> None:
    part = medium.folder / f".{EK.hex()}-3.p7m.part"
    part.write_bytes(SEALED[:10])
    medium.keep(EK, 3, SEALED)
    assert not part.exists()


def test_another_record_under_that_name_is_never_replaced(medium: Medium) -> None:
    medium.keep(EK, 3, SEALED)
    with pytest.raises(EscrowIncomplete):
        medium.keep(EK, 3, b"another")
    link = medium.folder / f"{EK.hex()}-4.p7m"
    link.symlink_to("/etc/passwd")
    with pytest.raises(EscrowIncomplete):
        medium.keep(EK, 4, SEALED)
    assert link.is_symlink()


def test_a_medium_that_is_not_there_or_full_is_waited_for(tmp_path: Path, medium: Medium) -> None:
    for folder in (tmp_path / "away", tmp_path / "file"):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(EscrowIncomplete, match="is not there") as refused:
            Medium(folder, tmp_path, bench=True).keep(EK, 1, SEALED)
        assert refused.value.retryable
        assert refused.value.hint


def test_in_production_the_stations_own_disk_and_memory_are_no_second_medium(
    tmp_path: Path, medium: Medium
) -> None:
    with pytest.raises(EscrowIncomplete, match="own disk"):
        Medium(medium.folder, tmp_path).keep(EK, 1, SEALED)
    memory = Path("/dev/shm")
    if memory.stat().st_dev in (tmp_path.stat().st_dev, Path("/").stat().st_dev):
        pytest.skip("needs /dev/shm to be a file system of its own")
    with pytest.raises(EscrowIncomplete, match="tmpfs"):
        Medium(memory, tmp_path).keep(EK, 1, SEALED)
    assert not list(memory.glob(f"*{EK.hex()}*"))


def test_a_disk_that_has_a_copy_does_not_count_twice(
    tmp_path: Path, medium: Medium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escrow_media.Medium, "_check_device", lambda _self, _device: None)
    outside = Medium(medium.folder, tmp_path)
    device = outside.keep(EK, 1, SEALED)
    (tmp_path / "other").mkdir()
    with pytest.raises(EscrowIncomplete, match="has a copy"):
        Medium(tmp_path / "other", tmp_path).keep(EK, 1, SEALED, {device})


# --- keys that wrap resume copies -------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)

    def __call__(self) -> int:
        return int(self.now.timestamp() * 1000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(store_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.open(store_path, clock=clock, ballast=4096) as found:
        yield found


def protect(store: Store, board: int, nest: str = "A") -> tuple[str, str]:
    visit = parts.plug(store, nest)
    parts.join(store, visit, board)
    key = store.wrap_key(visit)
    name = parts.ek_name(board)
    store.protect(visit, name, ["lockout"], b"sealed", b"wrapped", store.next_generation(name), key)
    return visit, key


def test_without_an_order_a_key_lasts_its_day_and_while_a_copy_needs_it(timed: Store, clock: Clock) -> None:
    visit, key = protect(timed, 1)
    assert key == "day-20261123.1"
    assert timed.resume_key(parts.ek_name(1), 1) == key
    other, again = protect(timed, 2, "B")
    assert again == key
    timed.finish(other, "enroll", "queue", {}, b"{}", ["dps"], b"")
    clock.now += dt.timedelta(days=1)
    assert timed.retire_wrap_keys() == [], "unit 1 is still open"
    timed.finish(visit, "enroll", "queue", {}, b"{}", ["dps"], b"")
    assert timed.retire_wrap_keys() == [key]
    assert timed.retire_wrap_keys() == [key], "asked for until it is done"
    timed.wrap_key_destroyed(key)
    assert timed.retire_wrap_keys() == []


def test_an_order_that_is_not_spent_keeps_its_key_and_a_retired_name_never_comes_again(
    timed: Store, clock: Clock
) -> None:
    timed.load_work_orders([("WO-1", parts.SKU, 2)])
    visit, key = protect(timed, 1)
    timed.finish(visit, "enroll", "queue", {}, b"{}", ["dps"], b"")
    clock.now += dt.timedelta(days=9)
    assert timed.retire_wrap_keys() == []
    visit, again = protect(timed, 2)
    assert again == key == "order-WO-1.1"
    timed.finish(visit, "enroll", "queue", {}, b"{}", ["dps"], b"")
    assert timed.retire_wrap_keys() == [key]
    timed.load_work_orders([("WO-1", parts.SKU, 3)])
    assert protect(timed, 3)[1] == "order-WO-1.2"


def test_a_secret_wrapped_under_a_key_that_was_just_retired_is_not_taken(timed: Store, clock: Clock) -> None:
    visit = parts.plug(timed)
    parts.join(timed, visit, 1)
    key = timed.wrap_key(visit)
    clock.now += dt.timedelta(days=1)
    assert timed.retire_wrap_keys() == [key]
    with pytest.raises(PeerUnavailable):
        timed.protect(visit, EK, ["lockout"], b"sealed", b"wrapped", 1, key)
    assert timed.next_generation(EK) == 1, "nothing of it was recorded"
    assert timed.wrap_key(visit) == "day-20261124.1"


def test_a_unit_that_is_out_for_good_keeps_no_copy(timed: Store, clock: Clock) -> None:
    visit, key = protect(timed, 1)
    timed.ask_owned(visit, EK, "it says so")
    asked = timed.decisions(1)[0]
    timed.decide(asked.id, "reject", "not ours", "erika")
    clock.now += dt.timedelta(days=1)
    assert timed.retire_wrap_keys() == [key]


def test_what_the_token_could_not_destroy_is_destroyed_after_a_restart(
    store_path: Path, clock: Clock
) -> None:
    class Signer:
        def __init__(self) -> None:
            self.absent = True
            self.destroyed: list[str] = []

        def destroy_wrap_key(self, key: str) -> None:
            if self.absent:
                raise TokenAbsent("pulled")
            self.destroyed.append(key)

    signer = Signer()
    with Store.open(store_path, clock=clock, ballast=4096) as store:
        visit, key = protect(store, 1)
        store.finish(visit, "enroll", "queue", {}, b"{}", ["dps"], b"")
        clock.now += dt.timedelta(days=1)
        with pytest.raises(TokenAbsent):
            KeyKeeper(store, signer).tidy()  # type: ignore[arg-type]
    signer.absent = False
    with Store.open(store_path, clock=clock, ballast=4096) as store:
        keeper = KeyKeeper(store, signer)  # type: ignore[arg-type]
        keeper.start()
        end = store.last_event()
        while store.retire_wrap_keys():
            assert store.wait_event(end, 10)
        keeper.stop()
        keeper = KeyKeeper(store, signer)  # type: ignore[arg-type]
        keeper.tidy()
    assert signer.destroyed == [key]


# --- offers -----------------------------------------------------------------------------------------------------


def test_an_offer_serves_one_visit_and_not_for_ever() -> None:
    now = [0.0]
    offered = Offered(lambda: now[0])
    auths = {"lockout": Secret(b"l" * 32)}
    offered.put(EK, auths, "olga")
    assert offered.waits(EK)
    assert not offered.waits(parts.ek_name(2))
    assert offered.take(EK, "v1") == (auths, "olga", True)
    assert offered.take(EK, "v1") == (auths, "olga", False)
    assert offered.take(EK, "v2") is None
    assert not offered.waits(EK)
    offered.over("v1")
    assert offered.take(EK, "v1") is None
    offered.put(EK, auths, "olga")
    now[0] += LASTING + 1
    assert not offered.waits(EK)
    for board in range(MOST + 1):
        offered.put(parts.ek_name(board), auths, "olga")
    assert not offered.waits(parts.ek_name(0))
    assert offered.waits(parts.ek_name(MOST))
    assert "l" * 32 not in repr(vars(offered))


# --- configuration ----------------------------------------------------------------------------------------------

STATION = """
[station]
name = "s"
mode = "bench"
drivers = ["pkcs11"]
[signer]
settings = {{ module = "/m.so", token = "t" }}
{signer}
[escrow]
media = {media}
"""


@pytest.mark.parametrize(
    ("signer", "media", "key"),
    [
        ("", '["media"]', "escrow.media[0]"),
        ("", '["/media/../etc"]', "escrow.media[0]"),
        ("", '["/media/a", "/media/a"]', "escrow.media[1]"),
        ('ca_key = "resume-1"', "[]", "signer.ca_key"),
        ('canary_key = "resume"', "[]", "signer.canary_key"),
        ('wrap_key = "issuing"', "[]", "signer.ca_key"),
    ],
)
def test_media_and_labels_that_can_not_be_are_refused_where_they_stand(
    tmp_path: Path, signer: str, media: str, key: str
) -> None:
    paths = Paths(tmp_path)
    paths.configuration.parent.mkdir(parents=True)
    paths.configuration.write_text(STATION.format(signer=signer, media=media))
    with pytest.raises(ConfigError) as refused:
        load_configuration(paths)
    assert refused.value.key == key
    assert refused.value.line


def test_check_says_which_medium_is_not_there(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.configuration.parent.mkdir(parents=True)
    (tmp_path / "stick").mkdir()
    text = STATION.format(signer="", media=f'["{tmp_path}/stick", "{tmp_path}/away"]')
    paths.configuration.write_text(text)
    found = list(check._media(load_configuration(paths)))
    assert [(item.warning, item.what) for item in found] == [
        (False, "escrow medium"),
        (True, "escrow medium"),
    ]
