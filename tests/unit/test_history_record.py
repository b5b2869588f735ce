"""The device history record: complete, provable, readable, and safe whatever a board said."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import Outcome, StationError
from station import cli, history
from station.audit import proof
from station.history_page import STYLE, page
from station.markup import Html, tag
from station.paths import Paths
from station.store import Store
from tests import audit_parts as audit
from tests import store_parts as parts

NASTY = "</td><script>alert(1)</script><img src=x onerror='x'>&\"\u202egnp.exe\x1b[31m\x00"
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "footer", "section", "div", "p", "span", "code", "pre",
    "h1", "h2", "h3", "table", "thead", "tbody", "tr", "th", "td", "ul", "li",
}  # fmt: skip


class Reader(HTMLParser):
    """What a browser's parser would see: elements, their attributes, and that each is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def judged(octets: bytes) -> Reader:
    """The page by two parsers: expat, which forgives nothing, and Python's HTML parser."""
    text = octets.decode("utf-8")
    assert text.startswith("<!DOCTYPE html>\n")
    ET.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert set(reader.elements) <= ALLOWED
    assert reader.attributes <= {"lang", "charset", "http-equiv", "content", "name", "class"}
    return reader


def nasty_unit(store: Store) -> str:
    """A board that says what no board should, and a second visit that failed."""
    visit = store.open_visit("A", NASTY[:100], parts.SKU, "final", b"\1" * 32, parts.BOOT)
    store.begin(visit, "flash", "write")
    store.done(visit, "flash", "write", {"version": NASTY, "digest": b"\2" * 32, "long": b"\3" * 900})
    unit = parts.join(store, visit, 1, [("serial", NASTY)])
    store.done(visit, "key", "check", {"key_override": NASTY, "names": ["a", NASTY], "none": None})
    store.record_certificate(visit, "idevid-p256", parts.chain(1))
    store.protect(visit, parts.ek_name(1), ["owner", "lockout"], b"sealed", b"wrapped", 1)
    store.finish(visit, "enroll", "queue", {}, parts.enrollment(1), ["dps"], b"")
    again = parts.plug(store)
    parts.join(store, again, 1, [("serial", NASTY)])
    store.fail(again, "flash", "write", "DeviceGone", NASTY, NASTY, Outcome.ABORTED)
    store.set_quarantine(unit.unit, NASTY, "me")
    return unit.unit


def test_the_file_holds_the_units_whole_life(store: Store) -> None:
    unit = nasty_unit(store)
    signed = audit.sign(store)
    made = msgspec.json.decode(history.encode(history.history(store, unit)), type=history.History)
    assert [visit.outcome for visit in made.visits] == ["PASS", "ABORTED"]
    assert [f"{item.step}.{item.action}" for item in made.actions] == [
        "flash.write",
        "key.check",
        "enroll.queue",
    ]
    assert made.actions[0].facts is not None, "what was done before the board was known belongs to it"
    assert [item.subject for item in made.certificates] == ["CN=board-1", ""]
    assert made.certificates[1].unreadable
    assert (made.escrows[0].hierarchies, made.enrollments[0].sink) == (["lockout", "owner"], "dps")
    kinds = [record.kind for record in made.records]
    assert kinds[0] == "visit-opened"
    assert "visit-closed" in kinds
    assert made.audit is not None
    assert len(made.audit.records) == len(made.records)
    assert made.audit.checkpoint.encode() == signed.note


def test_the_proof_in_the_file_holds_elsewhere(store: Store, tmp_path: Path) -> None:
    unit = nasty_unit(store)
    audit.sign(store)
    octets = history.encode(history.history(store, unit))
    proven = proof.verify(proof.read(octets), audit.TRUST)
    assert proven.unit == unit


def test_a_unit_with_hundreds_of_visits_is_told_whole(store: Store) -> None:
    unit = parts.trip(store, 1).unit
    for _ in range(230):
        visit = parts.plug(store)
        parts.join(store, visit, 1)
        store.fail(visit, None, None, "DeviceGone", "gone", "", Outcome.ABORTED)
    made = history.history(store, unit)
    assert len(made.visits) == 231
    assert len([record for record in made.records if record.kind == "visit-closed"]) == 231
    judged(page(made))


def test_the_page_says_what_an_auditor_looks_for(store: Store) -> None:
    unit = nasty_unit(store)
    signed = audit.sign(store)
    text = " ".join(judged(page(history.history(store, unit))).text)
    leaf = parts.chain(1)[0]
    for wanted in (
        "board-1",
        "PASS",
        "ABORTED",
        "flash.write",
        hashlib.sha256(leaf).hexdigest(),
        parts.ek_name(1).hex(),
        "lockout, owner",
        "waits for a decision",
        "Allowed: key, key_override",
        signed.note.decode().split("\n")[2],
        "verify-proof history.json",
    ):
        assert wanted in text, wanted


def test_what_a_board_said_is_shown_and_never_obeyed(store: Store) -> None:
    unit = nasty_unit(store)
    octets = page(history.history(store, unit))
    reader = judged(octets)
    assert "script" not in reader.elements
    assert "<script>alert(1)</script>" in " ".join(reader.text), "it is told, as text"
    text = octets.decode()
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b]", text)
    assert "\\u202e" in text
    assert "\\u001b" in text


def test_the_page_loads_nothing_and_runs_nothing(store: Store) -> None:
    text = page(history.history(store, parts.trip(store, 1).unit)).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    assert "default-src &#x27;none&#x27;" in policy[1]
    assert f"sha256-{digest}" in policy[1]
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style == STYLE, "the digest is of what a browser reads"
    assert not re.search(r"https?://|url\(|@import|\b(src|href|on\w+)=", text.replace(policy[0], ""))
    assert "no signed checkpoint" in text


@given(st.text(max_size=60), st.text(max_size=60))
def test_markup_never_lets_text_become_markup(content: str, value: str) -> None:
    made = tag("p", content, tag("code", content), class_=value)
    reader = Reader()
    reader.feed(made)
    reader.close()
    assert reader.elements == ["p", "code"]
    element = ET.fromstring(made)
    assert (element.tag, [child.tag for child in element]) == ("p", ["code"])
    assert isinstance(made, Html)


def test_the_export_has_both_files_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = Paths(tmp_path)
    paths.state.mkdir(parents=True)
    with Store.open(paths.database, ballast=4096) as store:
        parts.trip(store, 1)
        audit.sign(store)
    out = tmp_path / "out"
    assert cli.main(["--root", str(tmp_path), "units", "export", "board-1", "--out", str(out)]) == 0
    names = {path.name for path in (out / "board-1").iterdir()}
    assert {"history.json", "history.html", "unit.json", "device.pem"} <= names
    judged((out / "board-1/history.html").read_bytes())
    (tmp_path / "key.pem").write_bytes(audit.KEY.pem)
    words = ["audit", "verify-proof", str(out / "board-1/history.json"), "--key", str(tmp_path / "key.pem")]
    assert cli.main(["--root", str(tmp_path / "elsewhere"), *words]) == 0
    assert "Holds:" in capsys.readouterr().out


def test_there_is_no_history_of_what_was_never_seen(store: Store) -> None:
    with pytest.raises(StationError, match="there is no unit"):
        history.history(store, "nobody")
