"""The panel and the words: all that a technician has to see is seen, in every state and width, and nothing more."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hal.errors import Outcome, PeerUnavailable
from station.status import letters, panel, watch, wording
from station.status.client import StatusClient
from station.status.view import (
    AuditView,
    ClockView,
    DiskView,
    NestState,
    NestView,
    OutboxView,
    SinkView,
    Snapshot,
    StationState,
    TokenView,
)
from tests.fixtures_status import FAILED, FLASHING, OUTBOX, PASSED, STATION, WAITING

changed = msgspec.structs.replace
SNAPSHOT = Snapshot(STATION, [FLASHING, PASSED, FAILED, WAITING], OUTBOX)
EVIL = "[bold red]\x1b[2J\x1b]0;owned\x07\u202egnol\r\n[/] end"


def drawn(
    snapshot: Snapshot, width: int = 150, height: int = 50, *, colour: bool = False, notice: str = ""
) -> str:
    out = io.StringIO()
    console = Console(
        width=width,
        height=height,
        file=out,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
    )
    console.print(panel.render(snapshot, width, height, notice=notice))
    return out.getvalue()


def words(text: str) -> str:
    """The text without frames and line breaks."""
    return " ".join(re.sub(r"[─━│┃╭╮╰╯┏┓┗┛]", " ", text).split())


def with_nest(nest: NestView) -> Snapshot:
    return Snapshot(STATION, [nest], OUTBOX)


def test_a_busy_nest_shows_step_progress_rate_and_time_left() -> None:
    seen = words(drawn(with_nest(FLASHING)))
    for part in (
        "A · usb:1-1.1",
        "gw-200 4mrkd2q7",
        "step 1/7 flash, write (apply)",
        "30 %",
        "30.0 kB/s",
        "23 s left",
    ):
        assert part in seen
    assert "DO NOT UNPLUG" in seen


def test_given_room_the_recipe_stands_there_as_a_list() -> None:
    steps = ["flash", "tpm-identity", "enroll"]
    busy = changed(
        FLASHING, step="tpm-identity", action="ek", step_index=2, step_count=3, steps=steps, total=None
    )
    seen = [line.strip("│ ") for line in drawn(with_nest(busy), width=60).splitlines()]
    begin = next(index for index, line in enumerate(seen) if line.startswith("✓ flash"))
    assert seen[begin + 1].startswith("▸ tpm-identity  ek (apply)")
    assert "enroll" in seen[begin + 2 : begin + 4]


def test_of_a_long_place_the_end_is_shown() -> None:
    seen = words(drawn(with_nest(changed(WAITING, place=f"/tmp/{'x' * 80}/nest-7")), width=60))
    assert "xx/nest-7" in seen
    assert "/tmp/" not in seen


def test_nests_that_fit_as_no_tiles_are_lines_and_the_queue_stays_in_sight() -> None:
    nests = [changed(PASSED if index % 2 else FLASHING, name=f"N{index}") for index in range(8)]
    seen = drawn(Snapshot(STATION, nests, OUTBOX), width=80, height=24).splitlines()
    assert [line.split()[0] for line in seen[1:9]] == [nest.name for nest in nests]
    assert any(line.startswith("outbox") for line in seen[:24])
    assert any(line.startswith("CA token") for line in seen[:24])


@pytest.mark.parametrize(
    ("socket_there", "said"), [(True, ["silent", "silent", "there"]), (False, ["silent"])]
)
def test_a_station_that_restarts_is_waited_for_and_one_that_is_not_there_is_not(
    monkeypatch: pytest.MonkeyPatch, socket_there: bool, said: list[str]
) -> None:
    asked: list[str] = []

    class Client:
        has_socket = socket_there

        def snapshot(self) -> Snapshot:
            asked.append("there" if len(asked) == 2 else "silent")
            if asked[-1] == "silent":
                raise PeerUnavailable("no station answers")
            return SNAPSHOT

    monkeypatch.setattr(watch, "BUSY_SECONDS", 0.01)
    client = cast("StatusClient", Client())
    if socket_there:
        assert watch._first(client) is SNAPSHOT
    else:
        with pytest.raises(PeerUnavailable):
            watch._first(client)
    assert asked == said


def test_without_figures_a_busy_nest_shows_how_long_it_waits() -> None:
    waiting = changed(FLASHING, step="tpm-identity", action="ek", done=0, total=None, action_elapsed=8.4)
    assert "step 1/7 tpm-identity, ek (apply) 8 s" in words(drawn(with_nest(waiting)))


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_verdict_stands_in_big_letters_with_reason_and_hint(outcome: Outcome) -> None:
    nest = changed(FAILED, outcome=outcome.value)
    text = drawn(with_nest(nest), width=60)
    rows = letters.big(outcome.value, 56)
    assert rows is not None
    for row in rows:
        assert row.rstrip() in text
    assert "DeadlineExceeded in tpm-identity after 1 min 1 s" in words(text)
    assert nest.message in words(text)
    assert nest.hint in words(text)
    assert "may be unplugged" in text


@pytest.mark.parametrize("outcome", list(Outcome))
def test_in_a_low_terminal_the_word_and_the_hint_remain(outcome: Outcome) -> None:
    nests = [changed(FAILED, name=name, outcome=outcome.value) for name in "ABCD"]
    seen = words(drawn(Snapshot(STATION, nests, OUTBOX), width=60, height=34))
    assert seen.count(f" {outcome.value} ") == 4
    assert seen.count("plug the board in again") == 4


def test_verdicts_are_told_apart_by_colour_too() -> None:
    colours = {
        outcome: drawn(with_nest(changed(FAILED, outcome=outcome.value)), colour=True) for outcome in Outcome
    }
    styles = {
        outcome: re.findall(r"\x1b\[[0-9;]*m(?=[^\x1b]*█)", text)[0] for outcome, text in colours.items()
    }
    assert len(set(styles.values())) == len(Outcome)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (NestState.WAITING, "ready for a board"),
        (NestState.PAUSED, "paused"),
        (NestState.STARTING, "starting"),
        (NestState.AWAY, "board resets, it comes back by itself"),
    ],
)
def test_every_other_state_has_its_words(state: NestState, sentence: str) -> None:
    nest = changed(FLASHING, state=state, plugged=False)
    assert sentence in words(drawn(with_nest(nest)))
    assert sentence in wording.nest_line(nest)


@given(
    st.integers(30, 250),
    st.integers(10, 80),
    st.integers(0, 12),
    st.sampled_from([FLASHING, PASSED, FAILED, WAITING]),
)
def test_the_picture_fits_its_width_for_any_terminal_and_number_of_nests(
    width: int, height: int, count: int, nest: NestView
) -> None:
    nests = [changed(nest, name=str(number)) for number in range(count)]
    for line in drawn(Snapshot(STATION, nests, OUTBOX), width, height).splitlines():
        assert len(line) <= width


def test_a_nest_that_waits_says_for_what_and_what_to_do() -> None:
    waiting = changed(
        WAITING, state=NestState.PAUSED, plugged=True, problem="TokenAbsent", message="the CA token is not there",
        hint="Plug the CA token in.",
    )  # fmt: skip
    for seen in (words(drawn(with_nest(waiting))), wording.nest_line(waiting)):
        assert "the CA token is not there" in seen
        assert "Plug the CA token in." in seen


def test_what_needs_a_person_is_said_and_being_offline_is_not() -> None:
    assert wording.attention(SNAPSHOT) == []
    troubled = Snapshot(
        changed(
            STATION,
            state=StationState.DRAINING,
            token=TokenView("absent", "hallmark-ca", problem="no token", hint="Plug the CA token in."),
            disk=DiskView(10, 100, low=True),
            clock=ClockView(0.0, trusted=False, detail="behind the CA certificate"),
            problems=["driver acme: broken"],
            audit=AuditView("required", 9, 7, problem="no audit key", hint="An engineer makes it."),
        ),
        [],
        changed(OUTBOX, parked=2),
    )
    seen = words(drawn(troubled))
    for part in (
        "DRAINED",
        "Plug the CA token in.",
        "only 10 B free",
        "NOT TRUSTED",
        "2 parked",
        "driver acme: broken",
        "Audit trail (units wait): no audit key",
    ):
        assert part in seen
    assert len(wording.attention(troubled)) == 6
    assert sum(line.startswith("ATTENTION") for line in wording.summary(troubled)) == 6


def test_bench_mode_is_marked_and_production_is_not() -> None:
    assert " BENCH " in drawn(SNAPSHOT)
    assert "BENCH (not for production)" in next(wording.summary(SNAPSHOT))
    assert "BENCH" not in drawn(Snapshot(changed(STATION, mode="production")))


def test_the_footer_has_queue_sink_token_and_disk() -> None:
    seen = words(drawn(SNAPSHOT))
    sink = "dps not reachable (no route to host), next try in 12 s"
    token = "ready (hallmark-ca), 41 issued, until 2036-01-01"
    disk = "944 MB free of 4.2 GB"
    for part in (
        "3 queued",
        "oldest waits 1 min 15 s",
        "last upload",
        sink,
        token,
        disk,
        "WO-17 gw-200 41/1000",
    ):
        assert part in seen


def test_a_clock_that_is_off_is_said() -> None:
    skewed = changed(OUTBOX, sinks=[SinkView("dps", reachable=True, clock_skew=-301.4)])
    assert "its clock is -301 s off" in words(drawn(Snapshot(STATION, [], skewed)))


def evil_snapshot() -> Snapshot:
    station = changed(
        STATION, name=EVIL, mode=EVIL, version=EVIL, token=TokenView(EVIL, EVIL, EVIL, EVIL, 1, EVIL, EVIL),
        clock=ClockView(1.0, trusted=False, detail=EVIL), problems=[EVIL],
    )  # fmt: skip
    nests = [
        NestView(
            EVIL, EVIL, state, sku=EVIL, registration_id=EVIL, step=EVIL, action=EVIL, phase=EVIL, step_index=1,
            step_count=2, outcome="FAIL", problem=EVIL, message=EVIL, hint=EVIL, plugged=True,
        )
        for state in NestState
    ]  # fmt: skip
    return Snapshot(
        station, nests, OutboxView(queued=1, sinks=[SinkView(EVIL, reachable=False, detail=EVIL)])
    )


@pytest.mark.parametrize("width", [40, 100, 200])
def test_text_from_devices_is_neither_markup_nor_control_characters(width: int) -> None:
    plain = drawn(evil_snapshot(), width, 90)
    assert all(char.isprintable() or char == "\n" for char in plain)
    if width == 200:
        assert "[bold red]" in plain  # shown as it is, not obeyed
    coloured = drawn(evil_snapshot(), width, 90, colour=True)
    assert not re.search(r"\x1b(?!\[[0-9;]*m)", coloured)
    for line in [*wording.summary(evil_snapshot()), *wording.changes(None, evil_snapshot())]:
        assert line.isprintable()


def test_changes_are_told_once() -> None:
    assert list(wording.changes(SNAPSHOT, SNAPSHOT)) == []
    further = Snapshot(STATION, [changed(FLASHING, done=900_000), PASSED, FAILED, WAITING], OUTBOX)
    assert list(wording.changes(SNAPSHOT, further)) == []  # progress within an action is no change
    passed = Snapshot(
        STATION, [changed(PASSED, name="A"), PASSED, FAILED, WAITING], changed(OUTBOX, queued=4)
    )
    assert [line.split()[:3] for line in wording.changes(SNAPSHOT, passed)] == [
        ["nest", "A", "PASS"],
        ["outbox", "4", "queued,"],
    ]


def test_a_stale_picture_says_so() -> None:
    assert "DOES NOT ANSWER" in drawn(SNAPSHOT, notice=" THE STATION DOES NOT ANSWER ")


def test_the_picture_can_be_saved_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    watch.save_svg(SNAPSHOT, tmp_path / "panel.svg")
    text = (tmp_path / "panel.svg").read_text()
    assert text.startswith("<svg")
    assert "usb:1-1.3" in text
    assert "url(http" not in text
    assert "@font-face" not in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 s"), (8.9, "8 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (356_400, "4 d 3 h")],
)
def test_lengths_of_time_have_two_figures(seconds: float, said: str) -> None:
    assert wording.duration(seconds) == said
