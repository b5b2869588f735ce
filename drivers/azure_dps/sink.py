"""Batches of enrollments to the service, and for each of them a receipt or its own error.

Creating is repeatable: what is there already with the same content counts as taken, with other content is a Conflict.
One bad item never decides over its neighbours: a request that is refused as a whole is made again item by item.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from drivers.azure_dps import messages
from drivers.azure_dps.http import Answer, Service
from drivers.azure_dps.messages import Json
from hal.call import Call
from hal.errors import Conflict, HallmarkError, Rejected, SinkError, Unreachable, quote
from hal.types import Enrollment, Receipt, SymmetricGroupAttestation, UploadResult, X509GroupAttestation

CONFLICT: Final = frozenset({409, 412})
"""The ID is taken; with an If-Match that we never send, the ETag differs. Either way the record there decides."""
FAILURES_BEFORE_GIVING_UP: Final = 2
"""Items in a row on which the service fails (500): then it is ill, not they."""

WITH: Final = {"x509": "the issuing CA", "symmetricKey": "the group key that is in the token"}
"""What an enrollment group of each kind is made with."""

Verdict = Receipt | HallmarkError


class DpsSink:
    """`hal.interfaces.EnrollmentSink`. Not for several threads at once."""

    def __init__(self, service: Service, *, with_srk: bool = False, head_tag: str = "") -> None:
        """`head_tag`: the tag of the initial twin that keeps the station's audit checkpoint; empty: none does."""
        self._service, self._with_srk, self._head_tag = service, with_srk, head_tag
        self._skew: float | None = None

    @property
    def batch_limit(self) -> int:
        return messages.BULK_LIMIT

    def upload(self, call: Call, batch: Sequence[Enrollment]) -> UploadResult:
        """Each item exactly once in effect. What stops everything is raised only while no item has its answer yet."""
        work = _Batch(batch)
        self._skew = None
        try:
            for indexes in work.rounds(with_srk=self._with_srk, head_tag=self._head_tag):
                self._create(call, work, indexes)
            self._groups(call, work)
        except SinkError as error:
            if not work.decided:
                raise
            work.settle_rest(error)
        return UploadResult(work.verdicts(), self._skew)

    def _request(
        self,
        call: Call,
        method: str,
        path: str,
        value: object = None,
        item: str | None = None,
        under: str = "",
    ) -> Answer:
        answer = self._service.request(call, method, path, value, item=item, under=under)
        self._skew = answer.skew if answer.skew is not None else self._skew
        return answer

    def _create(self, call: Call, work: _Batch, indexes: list[int]) -> None:
        if len(indexes) == 1:
            self._create_one(call, work, indexes[0])
            return
        items = [work.forms[index] for index in indexes]
        answer = self._request(call, "POST", "enrollments", {"mode": "create", "enrollments": items})
        if not _fine(answer):
            # Refused (or failed) as a whole, perhaps for the sake of one: each gets a request and an answer of its own.
            self._one_by_one(call, work, indexes)
            return
        said = messages.bulk_answer(answer.body, frozenset(item["registrationId"] for item in items))
        # First what is certain, so that a later failure can't take it back.
        for index in indexes:
            name = work.forms[index]["registrationId"]
            if name in said.done:
                work.receive(index, etag=None, existed=False)
            elif name in said.errors and messages.status_of(said.errors[name][0]) not in CONFLICT:
                work.settle(index, messages.item_error(*said.errors[name]))
            call.progress(work.decided, len(work.batch))
        for index in indexes:
            if not work.is_settled(index):
                named = work.forms[index]["registrationId"] in said.errors
                self._look(call, work, index, create_when_missing=not named)

    def _one_by_one(self, call: Call, work: _Batch, indexes: list[int]) -> None:
        failures = 0
        for index in indexes:
            try:
                self._create_one(call, work, index)
            except Unreachable:
                failures += 1
                if failures >= FAILURES_BEFORE_GIVING_UP:
                    raise
                continue  # it has no verdict yet: the next ones show whether it is the item or the service
            failures = 0
        if failures or any(not work.is_settled(index) for index in indexes):
            work.settle_rest(Unreachable("the service fails on this enrollment, but not on others"), indexes)

    def _create_one(self, call: Call, work: _Batch, index: int) -> None:
        form = work.forms[index]
        answer = self._request(call, "PUT", "enrollments", form, form["registrationId"])
        if _fine(answer):
            work.receive(index, etag=_etag(answer), existed=False)
        elif answer.status in CONFLICT:
            self._look(call, work, index, create_when_missing=False)
        else:
            work.settle(index, _refusal(answer))
        call.progress(work.decided, len(work.batch))

    def _look(self, call: Call, work: _Batch, index: int, *, create_when_missing: bool) -> None:
        """What stands under the ID decides: a receipt when it is the same, else Conflict."""
        form = work.forms[index]
        answer = self._request(call, "GET", "enrollments", item=form["registrationId"])
        if answer.status == 404:
            if create_when_missing:
                self._create_one(call, work, index)
            else:
                work.settle(
                    index, Unreachable("the service says both that the enrollment exists and that not")
                )
        elif not _fine(answer):
            work.settle(index, _refusal(answer))
        else:
            tag = "" if self._head_tag in work.batch[index].tags else self._head_tag
            found = self._with_keys(call, form, answer)
            difference = messages.same_content(messages.without_head(form, tag), found)
            if difference is None:
                work.forms[index] = messages.with_head_of(form, found, tag) if tag else form
                work.receive(index, etag=_etag(answer), existed=True)
            else:
                work.settle(
                    index, Conflict(f"{quote(form['registrationId'], 140)} is enrolled already: {difference}")
                )
        call.progress(work.decided, len(work.batch))

    def _with_keys(self, call: Call, form: Json, answer: Answer) -> object:
        """The record that is there, with its symmetric keys, which the service tells only when asked for."""
        found = messages.decode(answer.body)
        if not isinstance(found, dict) or form["attestation"]["type"] != "symmetricKey":
            return found
        name = form["registrationId"]
        told = self._request(call, "POST", "enrollments", item=name, under="/attestationmechanism")
        return {**found, "attestation": messages.decode(told.body)} if _fine(told) else found

    def _groups(self, call: Call, work: _Batch) -> None:
        """Units of an enrollment group need no record each, but the group has to be there: one look for each group."""
        for (group, kind), indexes in work.groups().items():
            answer = self._request(call, "GET", "enrollmentGroups", item=group)
            for index in indexes:
                if _fine(answer) and messages.kind_of(answer.body) != kind:
                    hint = "An engineer corrects the group's name in the recipe, or the group's attestation in DPS."
                    said = f"enrollment group {quote(group)} is not one of kind {kind}"
                    work.settle(index, Rejected(said, hint=hint))
                elif _fine(answer):
                    work.settle(
                        index, Receipt(work.batch[index].registration_id, _etag(answer), existed=True)
                    )
                elif answer.status == 404:
                    hint = (
                        f"Create the enrollment group in DPS with {WITH[kind]}, then `hallmark outbox retry`."
                    )
                    work.settle(index, Rejected(f"enrollment group {quote(group)} does not exist", hint=hint))
                else:
                    work.settle(index, _refusal(answer))
            call.progress(work.decided, len(work.batch))


class _Batch:
    """The enrollments of one upload, their requests' forms, and the verdicts so far."""

    def __init__(self, batch: Sequence[Enrollment]) -> None:
        self.batch = batch
        self.forms: dict[int, Json] = {}
        self._verdicts: list[Verdict | None] = [None] * len(batch)

    @property
    def decided(self) -> int:
        return sum(verdict is not None for verdict in self._verdicts)

    def is_settled(self, index: int) -> bool:
        return self._verdicts[index] is not None

    def settle(self, index: int, verdict: Verdict) -> None:
        self._verdicts[index] = verdict

    def receive(self, index: int, *, etag: str | None, existed: bool) -> None:
        form = self.forms[index]
        sent = messages.encode(messages.kept(form))
        self.settle(index, Receipt(form["registrationId"], etag, existed, sent))

    def settle_rest(self, error: HallmarkError, indexes: Sequence[int] | None = None) -> None:
        for index in range(len(self.batch)) if indexes is None else indexes:
            if self._verdicts[index] is None:
                self._verdicts[index] = error

    def verdicts(self) -> tuple[Verdict, ...]:
        self.settle_rest(Unreachable("the service said nothing of this enrollment"))
        return tuple(verdict for verdict in self._verdicts if verdict is not None)

    def groups(self) -> dict[tuple[str, str], list[int]]:
        """Indexes by group and by the kind of attestation that it has to have."""
        found: dict[tuple[str, str], list[int]] = {}
        for index, enrollment in enumerate(self.batch):
            match enrollment.attestation:
                case X509GroupAttestation(group=group):
                    found.setdefault((group, "x509"), []).append(index)
                case SymmetricGroupAttestation(group=group):
                    found.setdefault((group, "symmetricKey"), []).append(index)
        return found

    def rounds(self, *, with_srk: bool, head_tag: str) -> Iterator[list[int]]:
        """Indexes by request: at most BULK_LIMIT and BODY_LIMIT, and no ID twice in one (it would fail the whole)."""
        waiting: list[int] = []
        for index, enrollment in enumerate(self.batch):
            if isinstance(enrollment.attestation, X509GroupAttestation | SymmetricGroupAttestation):
                continue
            try:
                self.forms[index] = messages.individual(enrollment, with_srk=with_srk, head_tag=head_tag)
            except Rejected as error:
                self.settle(index, error)
                continue
            waiting.append(index)
        while waiting:
            chosen: list[int] = []
            names: set[str] = set()
            size = len(messages.encode({"mode": "create", "enrollments": []}))
            for index in waiting:
                form = self.forms[index]
                length = len(messages.encode(form)) + 1
                fits = not chosen or size + length <= messages.BODY_LIMIT
                if len(chosen) < messages.BULK_LIMIT and form["registrationId"] not in names and fits:
                    chosen.append(index)
                    names.add(form["registrationId"])
                    size += length
            waiting = [index for index in waiting if index not in chosen]
            yield chosen


def _fine(answer: Answer) -> bool:
    return 200 <= answer.status < 300


def _refusal(answer: Answer) -> HallmarkError:
    error = messages.service_error(answer.status, answer.body)
    if answer.status >= 500:
        raise Unreachable(f"the service failed: {error}")
    return messages.item_error(error.code if error else answer.status, error.message if error else "")


def _etag(answer: Answer) -> str | None:
    """The record's entity tag: in the header, or in the body as most of the service's answers have it."""
    if answer.etag:
        return answer.etag[:200]
    found = messages.decode(answer.body)
    etag = found.get("etag") if isinstance(found, dict) else None
    return etag[:200] if isinstance(etag, str) else None
