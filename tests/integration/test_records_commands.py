"""`hallmark units`, `outbox`, `audit`: from the database while no station runs; exported files are the contract's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from hal.errors import StationError
from station import cli, messages
from station.export import export
from station.paths import Paths
from station.status.routes import Groups
from station.status.server import StatusServer
from station.status.view import OutboxView, StationView
from station.store import Store
from station.wire import Problem
from tests import store_parts as parts

EK_PUBLIC = b"\x00\x04ekpu"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    paths = Paths(tmp_path)
    paths.state.mkdir(parents=True)
    with Store.open(paths.database, ballast=4096) as store:
        visit = parts.plug(store)
        store.done(visit, "tpm-identity", "ek", {"ek_public": EK_PUBLIC, "ek_name": parts.ek_name(1)})
        parts.join(store, visit, 1, [("serial", "SN\x1b[31m-1")])
        store.protect(visit, parts.ek_name(1), ["lockout"], b"older", b"w")
        store.protect(visit, parts.ek_name(1), ["lockout", "owner"], b"sealed", b"w")
        store.done(visit, "tpm-ownership", "auths", {"auths": ["lockout", "owner"]})
        store.record_certificate(visit, "idevid-p256", parts.chain(1))
        store.finish(visit, "enroll", "queue", {}, parts.enrollment(1), ["dps"], b"archive")
        parts.trip(store, 2)
        one, two = store.lease("dps", 10, "me")
        store.report([messages.Outcome(one.seq, etag="e", sent=b'{"as":"received"}')])
        store.report(
            [messages.Outcome(two.seq, problem=Problem("Conflict", "something\x1b[2J else", "look"))]
        )
    return tmp_path


def hallmark(root: Path, *words: str) -> int:
    return cli.main(["--root", str(root), *words])


def test_a_units_files_come_from_the_database_alone(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert hallmark(root, "units", "export", "--all", "--out", str(out)) == 0
    assert sorted(folder.name for folder in out.iterdir()) == ["board-1", "board-2"]
    folder = out / "board-1"
    assert (folder / "ek.pub").read_bytes() == EK_PUBLIC
    assert (folder / "escrow.p7m").read_bytes() == b"sealed"
    assert (folder / "enrollment.json").read_bytes() == b'{"as":"received"}'
    assert (folder / "chain.pem").read_text().count("BEGIN CERTIFICATE") == 2
    shown = subprocess.run(
        ["openssl", "x509", "-in", folder / "device.pem", "-outform", "DER"], capture_output=True, check=True
    )
    assert shown.stdout == parts.chain(1)[0]
    unit = json.loads((folder / "unit.json").read_text())
    assert unit["registration_id"] == "board-1"
    assert unit["outcome"] == "PASS"
    assert unit["ownership"] == {"auths": ["lockout", "owner"]}
    assert unit["ek_name"] == parts.ek_name(1).hex()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert not (out / "board-2" / "enrollment.json").exists(), "it was not taken yet"


def test_no_file_is_written_under_a_name_that_is_no_registration_id(root: Path, tmp_path: Path) -> None:
    with Store.open(Paths(root).database, readonly=True) as store:
        record = store.unit("board-1")
    assert record is not None
    evil = msgspec.structs.replace(
        record, summary=msgspec.structs.replace(record.summary, registration_id="../../evil")
    )
    with pytest.raises(StationError, match="no registration ID"):
        export(evil, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lists_and_records_are_safe_for_a_terminal(
    root: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert hallmark(root, "units") == 0
    assert hallmark(root, "units", "board-1") == 0
    assert hallmark(root, "outbox") == 1, "a parked row waits for a person"
    assert hallmark(root, "audit") == 0
    text = capsysbinary.readouterr().out
    assert b"\x1b" not in text
    for expected in (b"board-2", b"SN\\x1b[31m-1", b"Conflict", b"What to do", b"visit-opened"):
        assert expected in text


def test_json_is_one_row_a_line(root: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    for words in (("units",), ("outbox", "--state", "all"), ("audit", "--since", "3")):
        hallmark(root, *words, "--json")
        rows = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
        assert len(rows) > 1
        assert words[0] != "audit" or rows[0]["seq"] == 4
    hallmark(root, "units", "--json", "show", "board-1")
    assert json.loads(capsysbinary.readouterr().out)["summary"]["registration_id"] == "board-1"


def test_without_a_station_changes_go_into_the_store_and_on_the_trail(root: Path) -> None:
    assert hallmark(root, "units", "quarantine", "board-2", "--reason", "odd") == 0
    assert hallmark(root, "outbox", "retry", "3") == 0
    with Store.open(Paths(root).database, readonly=True) as store:
        assert store.units(1)[0].state == "quarantined"
        assert [event.kind for event in store.events(0, 500)][-2:] == ["quarantined", "requeued"]
    assert hallmark(root, "units", "release", "board-2") == 0
    assert hallmark(root, "units", "release", "board-2") == 1
    assert hallmark(root, "outbox", "retry", "3") == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["units", "nobody"], 1),
        (["units", "export", "board-1"], 2),
        (["units", "export", "--out", "x"], 2),
        (["units", "quarantine", "board-1"], 2),
        (["units", "show"], 2),
        (["units", "a", "b"], 2),
        (["outbox", "retry"], 2),
        (["outbox", "list", "7"], 2),
    ],
)
def test_what_can_not_be_done_has_its_exit_code(root: Path, words: list[str], code: int) -> None:
    assert hallmark(root, *words) == code


@pytest.mark.parametrize(
    "words", [["units"], ["outbox"], ["audit"], ["units", "export", "--all", "--out", "x"]]
)
def test_without_station_and_store_the_exit_code_says_so(tmp_path: Path, words: list[str]) -> None:
    assert hallmark(tmp_path, *words) == 3


class _Control:
    """The supervisor's part of the status socket, as far as these commands need it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def status(self) -> StationView:
        return StationView("line-1", "bench", "0")

    def outbox(self) -> OutboxView:
        return OutboxView()

    def quarantine(self, unit: str, by: str, reason: str) -> None:
        self._store.set_quarantine(unit, reason, by)

    def release(self, unit: str, by: str) -> None:
        self._store.set_quarantine(unit, None, by)

    def retry_outbox(self, seq: int, by: str) -> None:
        self._store.requeue(seq, by)


def test_a_running_station_is_asked_and_answers_the_same(
    root: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    paths = Paths(root)
    paths.runtime.mkdir(parents=True)
    lists = (["units"], ["units", "board-1"], ["outbox", "--state", "all"], ["audit"], ["units", "--json"])
    offline = []
    for words in lists:
        hallmark(root, *words)
        offline.append(capsysbinary.readouterr().out)
    with Store.open(paths.database, ballast=4096) as store:
        server = StatusServer(
            cast(Any, _Control(store)), store, paths.status_socket, Groups("nogroup", "nogroup")
        )
        server.start()
        try:
            for words, expected in zip(lists, offline, strict=True):
                hallmark(root, *words)
                assert capsysbinary.readouterr().out == expected
            assert hallmark(root, "units", "quarantine", "board-2", "--reason", "odd") == 0
            assert store.units(1)[0].quarantine == "odd"
            assert hallmark(root, "units", "release", "board-2") == 0
            assert hallmark(root, "outbox", "retry", "3") == 0
            assert hallmark(root, "outbox", "retry", "3") == 1
            assert hallmark(root, "units", "nobody") == 1
        finally:
            server.stop()


def test_a_store_that_a_silent_station_holds_is_not_changed_behind_its_back(root: Path) -> None:
    with Store.open(Paths(root).database, ballast=4096):
        assert hallmark(root, "units", "quarantine", "board-1", "--reason", "odd") == 1
