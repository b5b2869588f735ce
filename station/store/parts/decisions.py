"""Questions for a permitted person, the answers, and what the answers permit."""

from __future__ import annotations

from collections.abc import Sequence

from station.store import decisions, known_boards, owned_tpms
from station.store.decisions import Decision
from station.store.part import Part


class Decisions(Part):
    """Asked once, answered once, used once."""

    def ask(
        self,
        kind: str,
        subject: str,
        question: str,
        choices: Sequence[str],
        *,
        unit: str | None = None,
        details: dict[str, str] | None = None,
    ) -> Decision:
        """The open question of this kind and subject, asked now where there is none. Durable when it returns."""
        return self._write(decisions.ask, kind, subject, question, choices, unit=unit, details=details)

    def decide(self, number: int, choice: str, reason: str, by: str) -> Decision:
        """A permitted person's answer and all that it brings about, in one transaction.

        LookupError for a question that doesn't wait, ValueError for a word that is no choice or a missing reason.
        """
        made = self._write(known_boards.decide, number, choice, reason, by, owned_tpms.EFFECTS)
        self._writable.writer.scrub()  # a unit that is out for good leaves no copy of secrets
        return made

    def ask_owned(self, visit: str, ek_name: bytes, message: str) -> Decision:
        """Puts the visit's unit aside: somebody else owns its TPM, and an engineer is asked."""
        return self._write(owned_tpms.ask, visit, ek_name, message)

    def spend_clear(self, visit: str, means: str | None) -> None:
        """The permission to clear, where there is one, ends: what it permits was done by `means`, or not needed."""
        self._write(owned_tpms.spend, visit, means)

    def use_decision(self, number: int) -> Decision:
        """What an answer permits is done now, once. LookupError when it was done before."""
        return self._write(decisions.use, number)

    def decision(self, kind: str, subject: str) -> Decision | None:
        """The newest question of this kind and subject, answered or not."""
        return self._readers.read(lambda db: decisions.latest(db, kind, subject))

    def decisions(self, limit: int, after: int = 0, *, waiting: bool = False) -> list[Decision]:
        """Those with a number over `after`, in order; with `waiting` only those without an answer."""
        return self._readers.read(lambda db: decisions.listed(db, limit, after, waiting=waiting))

    def decisions_waiting(self) -> int:
        """How many questions wait for a person."""
        return self._readers.read(decisions.waiting)
