"""The live panel's picture, from one snapshot: header, a tile per nest, footer. Draws; asks and decides nothing.

A verdict is read by its word first: colour only repeats what the letters say. All text goes in as `Text`, never as
markup, after `wording.shown`.
"""

from __future__ import annotations

import math
from typing import Final

from rich.align import Align
from rich.box import HEAVY, ROUNDED
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hal.errors import Outcome
from station.status import wording
from station.status.letters import big
from station.status.view import NestState, NestView, Snapshot, StationState

TILE_WIDTH: Final = 48
"""At least: REFUSED in big letters is 41 wide, and the frame takes 4."""
TILE_HEIGHT: Final = 15
LETTERS_TILE_HEIGHT: Final = 11
"""With less, the verdict is one word in reverse video."""
SMALL_TILE_HEIGHT: Final = 7
LEAST_FOOTER: Final = 2
"""Lines of the footer that have to be seen, its most important first. If not even they fit, nests get a line each."""
VERDICTS: Final = {
    Outcome.PASS: "green",
    Outcome.FAIL: "red",
    Outcome.ERROR: "yellow",
    Outcome.REFUSED: "magenta",
    Outcome.ABORTED: "cyan",
}


def render(snapshot: Snapshot, width: int, height: int, *, notice: str = "") -> RenderableType:
    """The whole picture, fitted to so many columns and rows. `notice`: a line on top, when what is shown is old."""
    header, footer = _header(snapshot, notice), _footer(snapshot)
    rows = math.ceil(len(snapshot.nests) / max(1, width // TILE_WIDTH)) or 1
    columns = math.ceil(len(snapshot.nests) / rows) or 1
    footer_lines = 3 + len(snapshot.outbox.sinks) + len(wording.attention(snapshot))
    room = height - 1 - bool(notice) - footer_lines
    if rows * SMALL_TILE_HEIGHT > room + footer_lines - LEAST_FOOTER:
        return Group(header, *(_nest_line(nest) for nest in snapshot.nests), footer)
    tile_height = max(SMALL_TILE_HEIGHT, min(TILE_HEIGHT, room // rows))
    grid = Table.grid(expand=True)
    for _ in range(columns):
        grid.add_column(ratio=1)
    tiles = [tile(nest, width // columns, tile_height) for nest in snapshot.nests]
    for row in range(rows):
        grid.add_row(*tiles[row * columns : (row + 1) * columns])
    return Group(header, grid, footer)


def tile(nest: NestView, width: int, height: int) -> Panel:
    """One nest. The colour of its frame, and the words in its lower edge, say whether hands may go in."""
    inner = width - 4
    verdict = _outcome(nest)
    lines: list[RenderableType] = _board(nest, inner, height)
    if verdict is not None:
        lines += _verdict(nest, verdict, inner, height)
    else:
        lines += _work(nest, height)
    style = (
        VERDICTS[verdict] if verdict else "blue" if nest.state in (NestState.BUSY, NestState.AWAY) else "dim"
    )
    return Panel(
        Group(*lines),
        title=_line(f" {wording.position(nest, inner - 4)} ", "bold"),
        subtitle=_hands(nest),
        box=HEAVY if verdict else ROUNDED,
        border_style=style,
        height=height,
        padding=(0, 1),
    )


def _nest_line(nest: NestView) -> Text:
    verdict = _outcome(nest)
    busy = nest.state in (NestState.BUSY, NestState.AWAY)
    return _line(wording.nest_line(nest), f"bold {VERDICTS[verdict]}" if verdict else "" if busy else "dim")


def _board(nest: NestView, width: int, height: int) -> list[RenderableType]:
    """What is made, and which one it is: an ID that is too long to stand beside the SKU has its own line."""
    both = wording.board(nest)
    identity = wording.shown(nest.registration_id or nest.unit, 60)
    if len(both) <= width or not identity or height < TILE_HEIGHT:
        return [_line(both or " ", "bold")]
    return [_line(nest.sku, "bold"), _line(identity, "dim")]


def _verdict(nest: NestView, verdict: Outcome, width: int, height: int) -> list[RenderableType]:
    """The word, then what happened and what to do; in a low tile what to do comes first, the rest as it fits."""
    style = f"bold {VERDICTS[verdict]}"
    letters = big(verdict.value, width) if height >= LETTERS_TILE_HEIGHT else None
    roomy = height >= TILE_HEIGHT
    gap = [Text("")] if roomy and not nest.problem else []
    lines: list[RenderableType] = []
    if letters is not None:
        lines += [*gap, Align.center(Text("\n".join(letters), style=style)), *gap]
    else:
        lines.append(Align.center(Text(f"  {verdict.value}  ", style=f"{style} reverse")))
    took = f" after {wording.duration(nest.elapsed)}" if nest.elapsed else ""
    seconds = f" in {wording.duration(nest.elapsed)}" if nest.elapsed else ""
    if nest.problem:
        message = Text(wording.shown(nest.message, 2 * width), overflow="fold")
        hint = Text(f"→ {wording.shown(nest.hint, 2 * width)}", style="bold", overflow="fold")
        lines.append(_line(f"{nest.problem} in {nest.step or 'the visit'}{took}", "bold"))
        lines += [message, hint] if roomy else [hint, message]
    else:
        lines.append(Align.center(_line(f"{nest.step_count} steps{seconds}")))
    return lines


def _work(nest: NestView, height: int) -> list[RenderableType]:
    if nest.state not in (NestState.BUSY, NestState.AWAY):
        return [Text(""), Align.center(_line(wording.STATES[nest.state])), *_said(nest)]
    now: list[RenderableType] = [_line(wording.STATES[nest.state], "yellow")] * (nest.state is NestState.AWAY)
    now += [*_progress(nest), *_said(nest)]
    # Frame 2, board 2, the step's own lines: what remains is for the list of steps.
    if nest.step_index and nest.step_index <= len(nest.steps) <= height - 4 - max(2, len(now)):
        return _steps(nest, now)
    marks = Text("●" * max(0, nest.step_index - 1), style="green")
    marks.append("◉" if nest.step_index else "", style="bold blue")
    marks.append("○" * max(0, nest.step_count - nest.step_index), style="dim")
    return [marks, _line(wording.doing(nest) or "begins"), *now]


def _steps(nest: NestView, now: list[RenderableType]) -> list[RenderableType]:
    """The recipe as a list: what is done, what is being done and how far it is, what comes."""
    lines: list[RenderableType] = []
    for index, step in enumerate(nest.steps, 1):
        if index < nest.step_index:
            lines.append(Text.assemble(("✓ ", "green"), (wording.shown(step, 40), "dim")))
        elif index == nest.step_index:
            action = f"  {nest.action}" if nest.action else ""
            phase = f" ({nest.phase})" if nest.phase else ""
            said = Text.assemble(
                ("▸ ", "bold blue"), (wording.shown(step, 40), "bold"), wording.shown(action + phase, 60)
            )
            said.no_wrap, said.overflow = True, "ellipsis"
            lines += [said, *now]
        else:
            lines.append(_line(f"  {step}", "dim"))
    return lines


def _progress(nest: NestView) -> list[RenderableType]:
    said = _line(wording.progress(nest))
    if not nest.total:
        return [said] if said.plain else []
    done = min(nest.done, nest.total)
    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    row.add_row(ProgressBar(total=nest.total, completed=done, complete_style="blue"), said)
    return [row]


def _said(nest: NestView) -> list[RenderableType]:
    """What a nest without verdict waits for, and what to do about it, where there is something to say."""
    lines: list[RenderableType] = []
    if nest.message:
        lines.append(
            Text(wording.shown(nest.message), style="yellow" if nest.problem else "", overflow="fold")
        )
    if nest.hint:
        lines.append(Text(f"→ {wording.shown(nest.hint)}", style="bold", overflow="fold"))
    return lines


def _hands(nest: NestView) -> Text | None:
    if not nest.plugged:
        return None
    return (
        Text(" may be unplugged ", "green") if nest.safe_to_unplug else Text(" DO NOT UNPLUG ", "bold yellow")
    )


def _header(snapshot: Snapshot, notice: str) -> RenderableType:
    station = snapshot.station
    bench = station.mode == "bench"
    left = Text(wording.shown(station.name, 40), style="bold")
    left.append("  ")
    left.append(
        " BENCH " if bench else wording.shown(station.mode, 20), "bold black on yellow" if bench else "bold"
    )
    middle = _line(wording.state(station, snapshot.nests))
    if station.state is not StationState.RUNNING:
        middle.stylize("bold yellow")
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(ratio=1, justify="center")
    grid.add_column(ratio=1, justify="right")
    time_of_day = _line(wording.clock(station.clock.now) if station.clock.now else "")
    if not station.clock.trusted:
        time_of_day.append(" NOT TRUSTED", "bold red")
    grid.add_row(left, middle, time_of_day)
    parts: list[RenderableType] = [grid]
    if notice:
        parts.append(Align.center(Text(wording.shown(notice), style="bold white on red")))
    return Group(*parts)


def _footer(snapshot: Snapshot) -> RenderableType:
    station, outbox = snapshot.station, snapshot.outbox
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True, min_width=len("ATTENTION"))
    grid.add_column(overflow="ellipsis", no_wrap=True)
    for problem in wording.attention(snapshot):
        grid.add_row(Text("ATTENTION", "bold red"), Text(problem, "bold"))
    grid.add_row("outbox", _line(wording.queue(outbox)))
    ready = station.token.condition == "ready"
    grid.add_row("CA token", _line(wording.token(station), "" if ready else "bold red"))
    for view in outbox.sinks:
        grid.add_row("sink", _line(wording.sink(view), "" if view.reachable is not False else "yellow"))
    orders = f"   orders {wording.orders(station)}" if station.work_orders else ""
    grid.add_row("disk", _line(wording.disk(station) + orders))
    return grid


def _outcome(nest: NestView) -> Outcome | None:
    known = nest.state is NestState.DONE and nest.outcome in Outcome.__members__
    return Outcome(nest.outcome) if known else None


def _line(text: str, style: str = "") -> Text:
    return Text(wording.shown(text), style=style, no_wrap=True, overflow="ellipsis")
