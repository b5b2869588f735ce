"""`hallmark decisions`: questions that wait for an engineer, and their answers."""

from __future__ import annotations

import argparse
import sys
from typing import Final

import msgspec

from hal.errors import ConfigError, quote
from station.commands.source import Source, change
from station.commands.units import moment
from station.store.decisions import Decision
from station.store.known_boards import CHOICES

HELP: Final = "list questions that wait for an engineer, and answer them"
FINE: Final = 0
ATTENTION: Final = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "hallmark decisions [--json] [list [--all] | show NUMBER | answer NUMBER ANSWER --reason TEXT]"
    )
    parser.add_argument("verb", nargs="?", choices=("list", "show", "answer"), default="list")
    parser.add_argument("number", nargs="?", type=int, metavar="NUMBER", help="a question's number")
    parser.add_argument(
        "answer", nargs="?", metavar="ANSWER", help="one of its answers: `show` explains them"
    )
    parser.add_argument("--all", action="store_true", help="list answered questions, too")
    parser.add_argument("--reason", metavar="TEXT", help="why, for the record")
    parser.add_argument("--json", action="store_true", help="for scripts: one question a line")


def run(args: argparse.Namespace) -> int:
    """1 when something waits for an answer."""
    if args.verb == "answer":
        return _answer(args)
    with Source(args.paths) as source:
        found = list(source.decisions(waiting=args.verb == "list" and not args.all))
    if args.verb == "show":
        found = [item for item in found if item.id == args.number]
        if not found:
            raise ConfigError(f"there is no decision {args.number}", hint="See `hallmark decisions --all`.")
    for item in found:
        if args.json:
            sys.stdout.buffer.write(msgspec.json.encode(item) + b"\n")
        else:
            _print(item)
    return ATTENTION if any(item.answer is None for item in found) else FINE


def _print(item: Decision) -> None:
    print(f"{item.id:>5}  {moment(item.asked_at)}  {item.kind}: {quote(item.question, 400)}")
    if item.answer is not None:
        done = f", done {moment(item.used_at)}" if item.used_at is not None else ""
        print(
            f"       {item.answer}, by {item.by}, {moment(item.answered_at or 0)}{done}: {quote(item.reason, 500)}"
        )
        return
    meanings = CHOICES.get(item.kind, {})
    for choice in item.choices:
        meaning = item.details.get(f"means {choice}") or meanings.get(choice, "")
        print(f"       {choice:<12}  {meaning}")
    print(f"       Answer it: hallmark decisions answer {item.id} ANSWER --reason TEXT")


def _answer(args: argparse.Namespace) -> int:
    if args.number is None or not args.answer or not args.reason:
        raise ConfigError(
            "an answer needs a number, one of its answers, and --reason",
            hint="See `hallmark decisions --help`.",
        )
    change(
        args.paths,
        f"/v1/decisions/{args.number}/answer",
        lambda store, by: store.decide(args.number, args.answer, args.reason, by),
        answer=args.answer,
        reason=args.reason,
    )
    return FINE
