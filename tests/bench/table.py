"""Rows of a benchmark: what was measured, the raw baseline of the same run, and their ratio. As a table, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """`ratio` is what Hallmark adds: 1.0 is as good as the raw thing. For rates that is baseline / measured."""

    what: str
    measured: float
    unit: str
    baseline: float | None = None
    against: str = ""
    is_rate: bool = False

    @property
    def ratio(self) -> float | None:
        if not self.baseline or not self.measured:
            return None
        return self.baseline / self.measured if self.is_rate else self.measured / self.baseline


def text(title: str, rows: Sequence[Row]) -> str:
    cells = [("what", "measured", "raw baseline", "ratio")]
    cells += [
        (
            row.what,
            f"{_number(row.measured)} {row.unit}",
            "" if row.baseline is None else f"{_number(row.baseline)} {row.unit}  {row.against}".rstrip(),
            "" if row.ratio is None else f"{row.ratio:.2f}",
        )
        for row in rows
    ]
    wide = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = [
        f"| {row[0]:<{wide[0]}} | {row[1]:>{wide[1]}} | {row[2]:<{wide[2]}} | {row[3]:>{wide[3]}} |"
        for row in cells
    ]
    rule = f"|{'-' * (wide[0] + 2)}|{'-' * (wide[1] + 1)}:|{'-' * (wide[2] + 2)}|{'-' * (wide[3] + 1)}:|"
    return "\n".join([f"### {title}", "", lines[0], rule, *lines[1:], ""])


def as_json(found: dict[str, list[Row]]) -> str:
    return json.dumps(
        {name: [{**asdict(row), "ratio": row.ratio} for row in rows] for name, rows in found.items()},
        indent=2,
    )


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"
