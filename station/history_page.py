"""The device history record as a page for people: one file, printable, without scripts or anything from elsewhere.

Each text may come from a device or a network: it gets onto the page only through `markup`. The page is for reading;
`history.json` beside it is the record.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from collections.abc import Iterable
from typing import Final

from station.history import CertificateFact, History
from station.markup import Html, joined, tag
from station.messages import Fact
from station.store.decisions import Decision
from station.store.records import DoneAction, VisitRecord

OCTETS_SHOWN: Final = 40
"""Octets of a fact that are written out; of longer ones the digest is."""
CONSENTS: Final = ("override", "waiver", "consent")
"""Parts of the names of facts by which a recipe or a person has allowed what is refused otherwise."""
STYLE: Final = """
:root { --ink: #1b1f24; --dim: #5a636e; --line: #d5dae0; --paper: #ffffff; --soft: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 2rem; color: var(--ink); background: var(--paper);
       font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header { display: flex; justify-content: space-between; align-items: flex-start; gap: 2rem;
         border-bottom: 2px solid var(--ink); padding-bottom: 1.25rem; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.25rem 0 .6rem; font-size: 1.1rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { margin: 1.4rem 0 .4rem; font-size: 1rem; }
p { margin: .35rem 0; max-width: 46rem; }
.kicker { margin: 0 0 .2rem; color: var(--dim); font-size: .85rem; letter-spacing: .06em; text-transform: uppercase; }
.dim { color: var(--dim); }
.verdict { border: 2px solid currentColor; border-radius: .4rem; padding: .35rem 1.1rem; font-size: 1.5rem;
           font-weight: 700; letter-spacing: .04em; white-space: nowrap; color: var(--dim); }
.PASS { color: #14713d; } .FAIL { color: #b3261e; } .REFUSED, .ERROR { color: #9a5b00; }
.note { border-left: 4px solid #9a5b00; background: #fdf6ea; padding: .6rem 1rem; margin: 1rem 0; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--line);
         overflow-wrap: anywhere; }
thead th { color: var(--dim); font-weight: 600; border-bottom: 1px solid var(--ink); }
tbody th { width: 13rem; font-weight: 600; color: var(--dim); }
code, pre { font: .85em/1.45 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: .3rem; padding: .7rem .9rem;
      white-space: pre-wrap; }
ul { margin: 0; padding: 0; list-style: none; }
.when, .short { white-space: nowrap; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .8rem; color: var(--dim);
         font-size: .85rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  h2, h3 { break-after: avoid; } tr, pre { break-inside: avoid; } thead { display: table-header-group; }
  @page { margin: 18mm 16mm; }
}
"""
POLICY: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'"
)
"""Nothing is loaded and nothing runs, whatever a browser makes of what is on the page."""


def page(made: History) -> bytes:
    """The whole file, UTF-8."""
    name = made.summary.registration_id
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"Device history record: {name}"),
        Html(f"<style>{STYLE}</style>"),
    )
    body = tag(
        "body",
        _header(made),
        _notes(made),
        _section("Identity", _identity(made)),
        _section("What was trusted, and why", _trust(made)),
        _section("Visits", _visits(made)),
        _section("Certificate", _certificates(made)),
        _section("Ownership and escrow", _escrows(made)),
        _section("Enrollments", _enrollments(made)),
        _section("Decisions by people", _decisions(made.decisions)),
        _section("Audit trail", _audit(made)),
        _footer(made),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n".encode()


def _header(made: History) -> Html:
    summary = made.summary
    known = tag(
        "div",
        tag("p", "Device history record", class_="kicker"),
        tag("h1", summary.registration_id),
        tag("p", f"{summary.sku}, {summary.state}", class_="dim"),
    )
    return tag("header", known, tag("div", made.outcome, class_=f"verdict {made.outcome}"))


def _notes(made: History) -> Html:
    """What a reader must not overlook."""
    summary = made.summary
    notes = []
    if summary.retired is not None:
        notes.append(f"This unit is out for good: {summary.retired}")
    if summary.quarantine is not None:
        notes.append(f"This unit was put aside and waits for a decision: {summary.quarantine}")
    if made.audit is None:
        notes.append("The audit trail has no signed checkpoint: nothing on this page can be proven.")
    return joined([tag("p", note, class_="note") for note in notes])


def _identity(made: History) -> Html:
    summary = made.summary
    rows: list[tuple[object, object]] = [
        ("Unit", tag("code", summary.unit)),
        ("SKU", summary.sku),
        ("First seen", _moment(summary.created_at)),
        ("Passed", _moment(summary.passed_at) if summary.passed_at is not None else "not yet"),
        ("Work order", made.work_order or "none"),
    ]
    rows += [
        (
            item.kind,
            joined([tag("code", item.value), tag("span", "" if item.strong else " (claimed)", class_="dim")]),
        )
        for item in made.identifiers
    ]
    return _facts_table(rows)


def _trust(made: History) -> Html:
    rows: list[tuple[object, object]] = []
    verdict = made.ek_verdict
    if verdict is not None:
        rows.append(("Endorsement key", f"vouched for by: {verdict.trust}"))
        if verdict.anchor:
            rows.append(
                ("Its root", joined([tag("div", verdict.anchor), tag("code", verdict.anchor_sha256)]))
            )
        if verdict.source:
            rows.append(
                ("Trust from", f"{verdict.source} {verdict.bundle_serial or ''} {verdict.bundle_sha256}")
            )
        if verdict.lot:
            rows.append(("Vendor's list", f"lot {verdict.lot}, {verdict.list_sha256}"))
        if verdict.crl:
            rows.append(("Revocation lists", verdict.crl))
        rows += [("Note", note) for note in verdict.notes]
    else:
        rows.append(("Endorsement key", "none: a board without a TPM, or not looked at yet"))
    configurations = {item.configuration.hex() for item in made.visits if item.configuration}
    rows.append(
        (
            "Configuration",
            joined([tag("div", tag("code", digest)) for digest in sorted(configurations)])
            if configurations
            else "not signed (bench mode)",
        )
    )
    for action in made.actions:
        for name, value in (action.facts or {}).items():
            if value and any(part in name for part in CONSENTS):
                rows.append((f"Allowed: {action.step}, {name}", _fact(value)))
    return _facts_table(rows)


def _visits(made: History) -> Html:
    return joined([_visit(visit, made.actions) for visit in made.visits]) or tag("p", "None.")


def _visit(visit: VisitRecord, actions: list[DoneAction]) -> Html:
    outcome = visit.outcome or "open"
    title = tag(
        "h3", f"{_moment(visit.opened_at)}, nest {visit.nest}: ", tag("span", outcome, class_=outcome)
    )
    about = tag(
        "p",
        f"Pass {visit.recipe_pass} at {visit.place}, recipe ",
        tag("code", visit.recipe_digest.hex()),
        class_="dim",
    )
    told = (
        tag(
            "p",
            f"{visit.code} in {visit.step}.{visit.action}: {visit.message} {visit.hint or ''}",
            class_="note",
        )
        if visit.code
        else Html("")
    )
    rows = [
        (
            tag("span", _moment(action.done_at or action.begun_at), class_="when"),
            tag("span", f"{action.step}.{action.action}", class_="short"),
            tag("span", _took(action), class_="short"),
            _facts(action),
        )
        for action in actions
        if action.visit == visit.visit
    ]
    return joined([title, about, told, _table(("When", "Action", "Took", "Result"), rows)])


def _took(action: DoneAction) -> str:
    if action.done_at is None:
        return "no result"
    if action.found or action.begun_at is None:
        return "found done"
    return f"{action.done_at - action.begun_at:.2f} s"


def _facts(action: DoneAction) -> Html:
    given = [(name, value) for name, value in (action.facts or {}).items() if value is not None]
    return tag("ul", *(tag("li", f"{name}: ", _fact(value)) for name, value in given))


def _fact(value: Fact) -> Html:
    if isinstance(value, bytes):
        if len(value) > OCTETS_SHOWN:
            return tag("code", f"{len(value)} octets, SHA-256 {hashlib.sha256(value).hexdigest()}")
        return tag("code", value.hex())
    if isinstance(value, list):
        return joined([tag("span", _fact(part), " ") for part in value])
    return tag("span", "yes" if value is True else "no" if value is False else value)


def _certificates(made: History) -> Html:
    if not made.certificates:
        return tag("p", "None was recorded.")
    parts = [tag("p", f"Profile {made.profile}.")]
    for number, found in enumerate(made.certificates):
        parts += [tag("h3", "The device's" if number == 0 else f"Issuer {number}"), _certificate(found)]
    return joined(parts)


def _certificate(found: CertificateFact) -> Html:
    if found.unreadable:
        return _facts_table([("SHA-256", tag("code", found.sha256)), ("Can't be read", found.unreadable)])
    return _facts_table(
        [
            ("Subject", found.subject),
            ("Issuer", found.issuer),
            ("Serial number", tag("code", found.serial)),
            ("Valid", f"{found.not_before} to {found.not_after}"),
            ("SHA-256", tag("code", found.sha256)),
            ("SHA-256 of its key", tag("code", found.spki_sha256)),
        ]
    )


def _escrows(made: History) -> Html:
    if not made.escrows:
        return tag("p", "No auth value of this unit is in escrow.")
    rows = [
        (
            _moment(item.recorded_at),
            item.generation,
            ", ".join(item.hierarchies),
            tag("code", item.ek_name),
            tag("code", item.sealed_sha256),
        )
        for item in made.escrows
    ]
    return _table(("Recorded", "Generation", "Auths of", "EK Name", "SHA-256, sealed"), rows)


def _enrollments(made: History) -> Html:
    if not made.enrollments:
        return tag("p", "None.")
    rows = [
        (
            item.sink,
            item.state,
            _moment(item.queued_at),
            _moment(item.closed_at) if item.closed_at is not None else "",
            f"{item.code}: {item.message}" if item.code else "existed already" if item.existed else "",
            tag("code", item.etag or ""),
        )
        for item in made.enrollments
    ]
    return _table(("Sink", "State", "Queued", "Closed", "Answer", "ETag"), rows)


def _decisions(asked: list[Decision]) -> Html:
    if not asked:
        return tag("p", "None was asked for.")
    rows = [
        (
            _moment(item.asked_at),
            item.question,
            item.answer or "waits",
            item.reason or "",
            item.by or "",
        )
        for item in asked
    ]
    return _table(("Asked", "Question", "Answer", "Reason", "By"), rows)


def _audit(made: History) -> Html:
    parts = []
    if made.audit is not None:
        proven = len(made.audit.records)
        parts += [
            tag(
                "p",
                f"{proven} of the {len(made.records)} records below are proven by history.json to be in the trail of"
                " this signed checkpoint:",
            ),
            _lines(made.audit.checkpoint),
            tag(
                "p",
                "To check it: ",
                tag("code", "hallmark audit verify-proof history.json --key KEY.pem"),
                ", with the key that the manufacturer has published.",
            ),
        ]
    rows = [
        (
            item.seq,
            tag("span", _moment(item.at / 1000), class_="when"),
            item.kind,
            tag(
                "ul",
                *(tag("li", f"{name}: {value}") for name, value in item.fields.items() if value is not None),
            ),
        )
        for item in made.records
    ]
    parts.append(_table(("No.", "When", "What", "Details"), rows))
    return joined(parts)


def _lines(text: str) -> Html:
    """Text with its line ends, which `markup` would write as codes."""
    return tag("pre", *(tag("code", line, Html("\n")) for line in text.split("\n")))


def _footer(made: History) -> Html:
    trail = f" Audit trail {made.trail}." if made.trail else ""
    return tag(
        "footer",
        f"Made {_moment(made.made_at)} by Hallmark.{trail} Times are UTC. This page is for reading;"
        " history.json beside it is the record. Octets that are longer than a line are shown by their digest.",
    )


def _section(title: str, content: Html) -> Html:
    return tag("section", tag("h2", title), content)


def _facts_table(rows: Iterable[tuple[object, object]]) -> Html:
    return tag("table", tag("tbody", *(tag("tr", tag("th", name), tag("td", value)) for name, value in rows)))


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Html:
    head = tag("thead", tag("tr", *(tag("th", column) for column in columns)))
    return tag("table", head, tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows)))


def _moment(at: float | None) -> str:
    if at is None:
        return ""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
