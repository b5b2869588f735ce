"""Whatever is done to an exported trail is found: flipped, dropped, doubled, reordered, cut or rolled back."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import AuditBroken
from station import trail
from station.audit import note, proof
from station.audit.tree import leaf_hash
from station.audit.verify import Trust
from station.store import Store
from tests import audit_parts as audit
from tests import store_parts as parts
from tests.unit.test_audit_store import fill


@dataclasses.dataclass(frozen=True)
class Trail:
    """An export of some forty records under five checkpoints, and what a receiver has kept of it."""

    lines: tuple[bytes, ...]
    later: tuple[bytes, ...]
    """From record 10 on."""
    notes: tuple[bytes, ...]
    roots: dict[int, bytes]
    proof: bytes
    unit: str


@functools.cache
def made() -> Trail:
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder, "s.db"), ballast=4096) as store:
        store.append_event("station-started")
        audit.sign(store)
        notes = []
        for board in range(2):
            parts.trip(store, board)
            notes.append(audit.sign(store).note)
        unit = parts.trip(store, 2)
        notes.append(audit.sign(store).note)
        fill(store, 9)
        notes.append(audit.sign(store).note)
        whole = tuple(audit.export(store))
        roots = {size: store.audit_root(size) for size in range(1, store.audit_size() + 1)}
        proven = msgspec.json.encode(trail.unit_proof(store, unit.unit))
        return Trail(whole, tuple(audit.export(store, 10)), tuple(notes), roots, proven, unit.unit)


def remembered(*notes: bytes) -> Trust:
    return Trust((audit.KEY,), None, tuple(note.read_note(item) for item in notes))


def size_of(octets: bytes) -> int:
    return note.read_note(octets).head.size


def test_an_untouched_export_holds_by_key_by_root_and_by_memory() -> None:
    found = made()
    last = max(found.roots)
    by_key = audit.judge(found.lines)
    assert (by_key.first, by_key.last, by_key.checkpoints) == (1, last, 5)
    assert by_key.root == found.roots[last]
    assert audit.judge(found.lines, Trust(root=(last, found.roots[last]))) == by_key
    assert audit.judge(found.lines, Trust(remembered=(note.read_note(found.notes[-1]),))) == by_key
    assert audit.judge(found.lines, remembered(*found.notes)) == by_key


def test_a_part_of_the_trail_holds_by_the_hashes_that_the_rest_comes_down_to() -> None:
    found = made()
    verdict = audit.judge(found.later)
    assert (verdict.first, verdict.last) == (11, max(found.roots))
    assert audit.judge(found.later, remembered(found.notes[-1])) == verdict
    with pytest.raises(AuditBroken, match="begins with record 11"):
        audit.judge(found.later, Trust((audit.KEY,), (4, found.roots[4])))


@given(st.data())
def test_any_flipped_octet_is_found(data: st.DataObject) -> None:
    lines = data.draw(st.sampled_from([made().lines, made().later]))
    octets = bytearray(b"".join(lines))
    place = data.draw(st.integers(0, len(octets) - 1))
    octets[place] ^= data.draw(st.integers(1, 255))
    changed = bytes(octets)
    if changed[: changed.index(b"\n") + 1 if b"\n" in changed else 0] != lines[0]:
        # The header's station and key list are for people; whatever else it says has to fit.
        header = json.loads(lines[0])
        try:
            other = json.loads(changed.split(b"\n", 1)[0])
        except ValueError:
            other = None
        if isinstance(other, dict) and all(
            other.get(name) == header[name] for name in header if name not in ("station", "keys")
        ):
            return
    with pytest.raises(AuditBroken):
        audit.judge([changed])


@given(st.data())
def test_any_dropped_doubled_or_exchanged_line_is_found(data: st.DataObject) -> None:
    lines = list(data.draw(st.sampled_from([made().lines, made().later])))
    one, other = data.draw(st.integers(0, len(lines) - 1)), data.draw(st.integers(0, len(lines) - 1))
    changed = list(lines)
    match data.draw(st.sampled_from(["drop", "double", "exchange", "move"])):
        case "drop":
            del changed[one]
        case "double":
            changed.insert(other, lines[one])
        case "exchange":
            changed[one], changed[other] = changed[other], changed[one]
        case _:
            changed.insert(other, changed.pop(one))
    if changed != lines:
        with pytest.raises(AuditBroken):
            audit.judge(changed)


@given(st.data())
def test_any_cut_is_found(data: st.DataObject) -> None:
    whole = b"".join(made().lines)
    with pytest.raises(AuditBroken):
        audit.judge([whole[: data.draw(st.integers(0, len(whole) - 1))]])


@given(st.data())
def test_a_trail_that_was_rolled_back_is_found_by_whoever_kept_a_later_checkpoint(
    data: st.DataObject,
) -> None:
    """The older state is a good trail in itself, signed and all: only memory tells."""
    found = made()
    lines, sizes = list(found.lines), [size_of(item) for item in found.notes]
    marks = audit.places(lines, "checkpoint")
    back = data.draw(st.integers(0, len(marks) - 2))
    until = marks[back]
    counts = {"records": until - 1 - back, "checkpoints": back + 1}
    older = [*lines[: until + 1], json.dumps({"end": counts}, separators=(",", ":")).encode() + b"\n"]
    verdict = audit.judge(older)
    later = [item for item, size in zip(found.notes, sizes, strict=True) if size > verdict.last]
    with pytest.raises(AuditBroken, match="cut or rolled back"):
        audit.judge(older, remembered(data.draw(st.sampled_from(later))))
    with pytest.raises(AuditBroken, match="cut or rolled back"):
        audit.judge(older, Trust(root=(max(found.roots), found.roots[max(found.roots)])))


@given(st.data())
def test_a_rewritten_record_is_found_although_all_hashes_were_made_to_fit(data: st.DataObject) -> None:
    lines = list(made().lines)
    place = data.draw(st.sampled_from(audit.places(lines, "leaf")))
    record = audit.loaded(lines[place])["record"]
    record["kind"] = "harmless"
    octets = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    leaf = leaf_hash(octets).hex().encode()
    lines[place] = b'{"leaf":"' + leaf + b'","record":' + octets + b"}\n"
    with pytest.raises(AuditBroken, match=r"records \d+ to \d+ are not those") as caught:
        audit.judge(lines)
    first, last = (int(word) for word in str(caught.value).split() if word.isdigit())
    assert first <= record["seq"] <= last


def test_the_record_that_was_changed_is_named() -> None:
    lines = list(made().lines)
    place = audit.places(lines, "leaf")[11]
    lines[place] = lines[place].replace(b'"kind":"', b'"kind":"x')
    with pytest.raises(AuditBroken, match="record 12 was changed"):
        audit.judge(lines)
    del lines[place]
    with pytest.raises(AuditBroken, match="record 12 is missing, or out of order: 13 is in its place"):
        audit.judge(lines)


def test_checkpoints_of_another_key_or_of_nobody_do_not_count(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db", ballast=4096) as store:
        fill(store, 3)
        audit.sign(store, audit.OTHER)
        lines = audit.export(store)
    with pytest.raises(AuditBroken, match="not signed by the key"):
        audit.judge(lines)
    unsigned = [line for line in lines if audit.kind_of(line) not in ("checkpoint", "end")]
    unsigned.append(b'{"end":{"records":3,"checkpoints":0}}\n')
    with pytest.raises(AuditBroken, match="nothing that you trust covers records 1 to 3"):
        audit.judge(unsigned)


def test_an_export_ends_at_its_newest_checkpoint_unless_all_is_asked_for(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db", ballast=4096) as store:
        fill(store, 3)
        audit.sign(store)
        fill(store, 2)
        assert audit.judge(audit.export(store)).last == 3
        with pytest.raises(AuditBroken, match="covers records 4 to 5"):
            audit.judge(audit.export(store, everything=True))
        root = (5, store.audit_root(5))
        assert audit.judge(audit.export(store, everything=True), Trust(root=root)).last == 5


def test_what_was_remembered_of_another_store_does_not_fit(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db", ballast=4096) as store:
        fill(store, 3)
        other = audit.sign(store).note
    with pytest.raises(AuditBroken, match="of another trail"):
        audit.judge(made().lines, remembered(other))


def test_a_remembered_checkpoint_that_nobody_signed_is_refused() -> None:
    forged = made().notes[0].replace(b"test/line-1", b"test/line-2")
    with pytest.raises(AuditBroken):
        audit.judge(made().lines, remembered(forged))


# --- a unit's proof --------------------------------------------------------------------------------------------


def test_a_units_records_are_proven_from_its_first_visit_on() -> None:
    found = made()
    proven = proof.verify(proof.read(found.proof), audit.TRUST)
    assert proven.unit == found.unit
    kinds = [item.kind for item in proven.records]
    assert kinds[0] == "visit-opened", "what happened before the board was known belongs to it"
    assert kinds[-1] == "visit-closed"
    head = note.read_note(found.notes[-1])
    assert proof.verify(proof.read(found.proof), Trust(remembered=(head,))) == proven
    assert proof.verify(proof.read(found.proof), Trust(root=(head.head.size, head.head.root))) == proven
    with pytest.raises(AuditBroken, match="neither the root nor"):
        proof.verify(proof.read(found.proof), remembered_only(found.notes[0]))


def remembered_only(octets: bytes) -> Trust:
    return Trust(remembered=(note.read_note(octets),))


@given(st.data())
def test_no_changed_octet_of_a_proof_goes_unseen(data: st.DataObject) -> None:
    """Where the change leaves a proof that holds, it shows the same records of the same unit."""
    octets = bytearray(made().proof)
    place = data.draw(st.integers(0, len(octets) - 1))
    octets[place] ^= data.draw(st.integers(1, 255))
    before = proof.verify(proof.read(made().proof), audit.TRUST)
    try:
        after = proof.verify(proof.read(bytes(octets)), audit.TRUST)
    except AuditBroken:
        return
    assert after == before


def test_a_record_of_another_unit_does_not_prove_anything_of_this_one(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db", ballast=4096) as store:
        one, other = parts.trip(store, 1), parts.trip(store, 2)
        audit.sign(store)
        ours, theirs = trail.unit_proof(store, one.unit), trail.unit_proof(store, other.unit)
    mixed = msgspec.structs.replace(ours, records=[*ours.records, *theirs.records])
    with pytest.raises(AuditBroken, match="does not tell of unit"):
        proof.verify(proof.read(msgspec.json.encode(mixed)), audit.TRUST)
    left = msgspec.structs.replace(ours, records=[])
    with pytest.raises(AuditBroken, match="none, or not in their order"):
        proof.verify(proof.read(msgspec.json.encode(left)), audit.TRUST)
