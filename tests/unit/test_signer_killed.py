"""The signer killed before and after every durable write: what people and boards ask for again ends up the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from cryptography import x509

from hal.call import Call
from station import messages
from station.signer import ledger
from tests.unit.test_signer_generations import Station


class Killed(BaseException):
    """As SIGKILL: nothing in the program handles it."""


class Trap:
    """Kills at the given moment: before (even) or after (odd) one of the ledger's transactions that write."""

    def __init__(self, at: int) -> None:
        self.at, self.moments = at, 0

    def moment(self) -> None:
        if self.moments == self.at:
            self.moments += 1
            raise Killed
        self.moments += 1


def set_trap(book: ledger.Ledger, trap: Trap) -> None:
    """Each statement that begins a write, and each commit, is a moment."""
    connection: Any = book._db

    def tracer(db: Any, sql: str, bindings: object) -> bool:
        del db, bindings
        word = sql.lstrip().split(maxsplit=1)[0].upper()
        if word in ("INSERT", "UPDATE", "DELETE", "RELEASE"):
            trap.moment()
        return True

    connection.exec_trace = tracer


def whole_story(station: Station) -> None:
    """Rollover, issuing under both, revocation, a list: as often as one likes."""
    if not station.generations.all:
        station.install(certificate(station, "issuing-ca"))
    station.issue("k1")
    if len(station.generations.all) < 2:
        station.request(label="issuing-ca-2")
        station.install(certificate(station, "issuing-ca-2"))
    station.activate(2)
    station.issue("k2")
    station.administration.answer(Call(), messages.Revoke("k1", "superseded", ""), "tester")
    station.administration.answer(Call(), messages.MakeCrl(1), "tester")


def certificate(station: Station, label: str) -> x509.Certificate:
    """The root's answer for a key, given once."""
    if label not in station.answers:
        station.answers[label] = station.certify(station.request(label=label).csr)
    return station.answers[label]


@contextlib.contextmanager
def opened(folder: Path, trap: Trap, stations: list[Station]) -> Iterator[Station]:
    """The station as it starts: its ledger, and the token and root of the start before, if there was one."""
    with ledger.opened(folder) as book:
        if not stations:
            stations.append(Station(folder, book))
        (station,) = stations
        station.book = book
        set_trap(book, trap)
        station.open()
        yield station


def test_killed_at_any_write_the_story_ends_the_same(tmp_path: Path) -> None:
    none = Trap(-1)
    with opened(tmp_path / "whole", none, []) as station:
        whole_story(station)
    assert none.moments > 25
    for at in range(none.moments):
        stations: list[Station] = []
        with pytest.raises(Killed), opened(tmp_path / str(at), Trap(at), stations) as station:
            whole_story(station)
        with opened(tmp_path / str(at), Trap(-1), stations) as station:
            check_end(station, at)


def check_end(station: Station, at: int) -> None:
    with station.book.using() as db:
        revoked = db.execute("SELECT count(*) FROM revocations").get
    if revoked:  # then k1 is given no certificate any more, and all before that was done
        station.administration.answer(Call(), messages.MakeCrl(1), "tester")
    else:
        whole_story(station)
    with station.book.using() as db:
        leaves = list(db.execute("SELECT unit, serial, certificate FROM certificates ORDER BY id"))
        generations = list(db.execute("SELECT number, label FROM generations ORDER BY number"))
        numbers = [
            number for (number,) in db.execute("SELECT number FROM crls WHERE crl IS NOT NULL ORDER BY id")
        ]
        pending = db.execute("SELECT count(*) FROM crls WHERE crl IS NULL").get
    assert [unit for unit, _, _ in leaves] == ["k1", "k2"], at
    assert all(made is not None for _, _, made in leaves), at
    assert generations == [(1, "issuing-ca"), (2, "issuing-ca-2")], at
    assert numbers == list(range(1, len(numbers) + 1)), at
    assert (len(numbers) in (1, 2), pending) == (True, 0), at
    active = station.generations.active(station.clocks.now)
    assert active is not None
    assert active.number == 2


def test_a_kill_before_the_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Killed), opened(tmp_path, Trap(0), []) as station:
        whole_story(station)
    with contextlib.closing(apsw.Connection(str(tmp_path / ledger.FILE))) as db:
        assert (
            db.execute("SELECT (SELECT count(*) FROM certificates) + (SELECT count(*) FROM ca_keys)").get == 0
        )
