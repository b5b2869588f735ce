"""What each path of the status socket answers, and who may ask for it. No sockets, no threads.

Reading is free to whoever can connect: nothing here is secret. What changes something is for members of the operators
group, and what decides about a unit's identity for engineers; root and the user that the station runs as may do either.
The kernel says who asks (SO_PEERCRED and SO_PEERGROUPS).
"""

from __future__ import annotations

import grp
import os
import pwd
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn
from urllib.parse import parse_qsl, unquote

import msgspec
import structlog

from hal.errors import HallmarkError, IdentityConflict, PeerUnavailable, StoreUnavailable, quote
from station.status import events, metrics
from station.status.http import NDJSON, Answer, Request
from station.status.view import PAGE_LIMIT, Failure, Records, Snapshot, StationControl
from station.wire import PeerCredentials

TARGET_LIMIT: Final = 2048
"""Characters of a path with its query."""
PARAMETERS_LIMIT: Final = 16
PAGE: Final = 100
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
ANY: Final = "*"
"""In a pattern: one path segment of the caller's."""


class Refusal(HallmarkError):
    """An answer other than 2xx, raised from wherever it becomes clear. It doesn't leave this room."""

    def __init__(self, status: int, failure: Failure, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(failure.message, hint=failure.hint)
        self.answer = Answer.failure(status, failure, headers)


@dataclass(frozen=True, slots=True)
class Follow:
    """Not an answer but a stream of events from behind `since` on."""

    since: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A request taken apart: the segments that stand for `ANY`, the parameters, and for changes who asks."""

    segments: tuple[str, ...]
    parameters: Mapping[str, str]
    by: str = ""

    def number(self, name: str, default: int, *, least: int = 0, most: int = (1 << 63) - 1) -> int:
        text = self.parameters.get(name, "")
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
            bad_request(f"{name}={quote(text)} is not a number from {least} to {most}")
        return int(text)

    def text(self, name: str) -> str:
        value = self.parameters.get(name, "")
        if not value:
            bad_request(f"the parameter {name} is missing")
        return value


EK_PAGE_LIMIT: Final = 5000
"""EKs of one answer: a lot may have a million."""
EK_NAME: Final = re.compile(r"(?:[0-9a-f]{2}){0,66}")

Handler = Callable[[Asked], Answer | Follow]


@dataclass(frozen=True, slots=True)
class Groups:
    """Whose members may change something: the line's operators, and the engineers who decide."""

    operators: str
    engineers: str


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    pattern: tuple[str, ...]
    handler: Handler
    group: str | None = None
    """Whose members may ask this; None: anybody, because it changes nothing."""

    @property
    def changes(self) -> bool:
        return self.group is not None

    def match(self, path: tuple[str, ...]) -> tuple[str, ...] | None:
        """The segments that stand for `ANY`, or None when this isn't the path."""
        if len(path) != len(self.pattern):
            return None
        pairs = list(zip(self.pattern, path, strict=True))
        if any(wanted not in (ANY, given) for wanted, given in pairs):
            return None
        return tuple(given for wanted, given in pairs if wanted == ANY)


class Routes:
    """All paths. `answer` never raises: whatever goes wrong becomes an answer with a code and a hint."""

    def __init__(self, control: StationControl, records: Records, groups: Groups) -> None:
        self._control, self._records = control, records
        get = self._get

        def post(pattern: str, change: Callable[[Asked], None]) -> Route:
            return self._post(pattern, groups.operators, change)

        def engineers_post(pattern: str, change: Callable[[Asked], None]) -> Route:
            return self._post(pattern, groups.engineers, change)

        self._routes: list[Route] = [
            get("/v1/status", lambda _: Answer.json(self._snapshot())),
            get("/v1/nests", lambda _: Answer.json({"nests": list(control.nests())})),
            get("/v1/units", self._units),
            get("/v1/units/*", self._unit),
            get("/v1/outbox", lambda _: Answer.json(control.outbox())),
            get("/v1/outbox/items", self._outbox_items),
            get("/v1/decisions", self._decisions),
            get("/v1/stock", lambda _: Answer.json({"lots": list(records.lots())})),
            get("/v1/ek-lists", self._ek_lists),
            get("/v1/ek-lists/*/entries", self._ek_list_entries),
            get("/v1/eks", self._made_eks),
            get("/v1/eks/unlisted", self._unlisted_eks),
            get("/v1/orders", lambda _: Answer.json({"orders": list(control.orders())})),
            get("/v1/orders/reconcile", lambda _: Answer.json({"orders": list(control.reconcile())})),
            get("/v1/events", self._events),
            get("/metrics", lambda _: Answer(200, metrics.render(self._snapshot()), METRICS_TYPE)),
            post("/v1/pause", lambda asked: control.pause(asked.by)),
            post("/v1/resume", lambda asked: control.resume(asked.by)),
            post("/v1/drain", lambda asked: control.drain(asked.by)),
            post("/v1/audit/checkpoint", lambda asked: control.checkpoint(asked.by)),
            post("/v1/retry", lambda asked: control.retry(asked.text("nest"), asked.by)),
            post("/v1/outbox/*/retry", lambda asked: control.retry_outbox(_row(asked), asked.by)),
            post(
                "/v1/units/*/quarantine",
                lambda asked: control.quarantine(asked.segments[0], asked.by, asked.text("reason")),
            ),
            post("/v1/units/*/release", lambda asked: control.release(asked.segments[0], asked.by)),
            post("/v1/orders", self._import_order),
            engineers_post(
                "/v1/orders/*/close",
                lambda asked: control.close_order(asked.segments[0], asked.text("reason"), asked.by),
            ),
            engineers_post(
                "/v1/units/*/scrap",
                lambda asked: control.scrap(asked.segments[0], asked.text("reason"), asked.by),
            ),
            engineers_post("/v1/decisions/*/answer", self._decide),
            engineers_post("/v1/stock", lambda asked: control.take_stock(asked.text("file"), asked.by)),
            engineers_post(
                "/v1/units/*/auths",
                lambda asked: control.offer(asked.segments[0], asked.text("record"), asked.by),
            ),
        ]

    def answer(self, request: Request, peer: PeerCredentials | None) -> Answer | Follow:
        """`peer` is who asks, None where the kernel didn't say."""
        unit = ""
        try:
            path, parameters = take_apart(request)
            route, segments = self._find(request.method, path)
            unit = segments[0] if segments and path[1] == "units" else ""
            by = _allowed(peer, route.group) if route.group is not None else ""
            return route.handler(Asked(segments, parameters, by))
        except Refusal as refusal:
            return refusal.answer
        except HallmarkError as error:
            unavailable = isinstance(error, StoreUnavailable | PeerUnavailable)
            status = 503 if unavailable else 409 if isinstance(error, IdentityConflict) else 422
            return Answer.failure(status, Failure(error.code, str(error), error.hint, unit))
        except LookupError as error:
            text = str(error.args[0]) if error.args else "there is no such thing"
            return Answer.failure(
                404, Failure("NotFound", text[:200], "See the lists for what there is.", unit)
            )
        except Exception as error:  # noqa: BLE001 - the border of the server: logged, answered, and the next request goes on
            structlog.get_logger().error("a status request failed", target=request.target, exc_info=error)
            hint = "This is a defect: the station's log has the details."
            return Answer.failure(500, Failure("Internal", "the station could not answer this", hint, unit))

    # --- reading

    def _snapshot(self) -> Snapshot:
        return Snapshot(self._control.status(), list(self._control.nests()), self._control.outbox())

    def _units(self, asked: Asked) -> Answer:
        limit = asked.number("limit", PAGE, least=1, most=PAGE_LIMIT)
        found = self._records.units(limit, asked.parameters.get("after"), asked.parameters.get("query"))
        return Answer.json({"units": list(found)})

    def _unit(self, asked: Asked) -> Answer:
        found = self._records.unit(asked.segments[0])
        if found is None:
            message = f"there is no unit {quote(asked.segments[0])}"
            raise Refusal(404, Failure("NotFound", message, "See /v1/units.", asked.segments[0][:200]))
        return Answer.json(found)

    def _outbox_items(self, asked: Asked) -> Answer:
        limit = asked.number("limit", PAGE, least=1, most=PAGE_LIMIT)
        found = self._records.outbox_items(limit, asked.number("after", 0), asked.parameters.get("state"))
        return Answer.json({"items": list(found)})

    def _decisions(self, asked: Asked) -> Answer:
        limit = asked.number("limit", PAGE, least=1, most=PAGE_LIMIT)
        waiting = asked.parameters.get("waiting") == "1"
        found = self._records.decisions(limit, asked.number("after", 0), waiting=waiting)
        return Answer.json({"decisions": list(found)})

    def _ek_lists(self, _asked: Asked) -> Answer:
        """With the number of the last event: what becomes of a list that is put down now comes behind it."""
        return Answer.json(
            {"lists": list(self._records.ek_lists()), "last_event": self._records.last_event()}
        )

    def _ek_list_entries(self, asked: Asked) -> Answer:
        limit = asked.number("limit", PAGE, least=1, most=EK_PAGE_LIMIT)
        after = bytes.fromhex(_name(asked))
        return Answer.json({"entries": list(self._records.ek_list_entries(asked.segments[0], after, limit))})

    def _unlisted_eks(self, asked: Asked) -> Answer:
        limit = asked.number("limit", PAGE, least=1, most=EK_PAGE_LIMIT)
        return Answer.json({"entries": list(self._records.unlisted_eks(_name(asked), limit))})

    def _made_eks(self, asked: Asked) -> Answer:
        limit = asked.number("limit", PAGE, least=1, most=PAGE_LIMIT)
        return Answer.json({"eks": list(self._records.made_eks(asked.number("after", 0), limit))})

    def _events(self, asked: Asked) -> Answer | Follow:
        """From now on, or from behind `since`; `follow=0` ends with the last there is (or the first 500)."""
        if asked.parameters.get("follow") == "0":
            lines = events.lines(self._records, asked.number("since", 0), PAGE_LIMIT)[0]
            return Answer(200, lines, NDJSON)
        given = asked.parameters.get("since")
        return Follow(asked.number("since", 0) if given else self._records.last_event())

    # --- changing

    def _decide(self, asked: Asked) -> None:
        try:
            self._control.decide(_row(asked), asked.text("answer"), asked.text("reason"), asked.by)
        except ValueError as error:
            bad_request(str(error))

    def _import_order(self, asked: Asked) -> None:
        """`order` and `signature` are base64 of the two files' octets."""
        try:
            data, signature = (b64decode(asked.text(name), validate=True) for name in ("order", "signature"))
        except ValueError:
            bad_request("order or signature is no base64")
        self._control.import_order(data, signature, asked.by)

    # --- the table

    def _get(self, pattern: str, handler: Handler) -> Route:
        return Route("GET", tuple(pattern.split("/")[1:]), handler)

    def _post(self, pattern: str, group: str, change: Callable[[Asked], None]) -> Route:
        def handler(asked: Asked) -> Answer:
            change(asked)
            structlog.get_logger().info(
                "asked for by a person", request=pattern, by=asked.by, of=asked.segments
            )
            return Answer.json({"state": self._control.status().state})

        return Route("POST", tuple(pattern.split("/")[1:]), handler, group)

    def _find(self, method: str, path: tuple[str, ...]) -> tuple[Route, tuple[str, ...]]:
        fitting = [(route, found) for route in self._routes if (found := route.match(path)) is not None]
        for route, found in fitting:
            if route.method == method:
                return route, found
        if fitting:
            allowed = ", ".join(sorted({route.method for route, _ in fitting}))
            failure = Failure("MethodNotAllowed", f"{method[:20]} is not for this path", f"Use {allowed}.")
            raise Refusal(405, failure, (("allow", allowed),))
        known = ", ".join("/" + "/".join(route.pattern) for route in self._routes if not route.changes)
        raise Refusal(404, Failure("NotFound", "there is nothing at this path", f"Known are {known}."))


def _allowed(who: PeerCredentials | None, group: str) -> str:
    """Who asks, when it is one who may; else a Refusal. A group that doesn't exist has no members."""
    if who is None:
        message = "the kernel does not say who is asking"
        raise Refusal(403, Failure("Forbidden", message, "Connect again."))
    try:
        name = f"{pwd.getpwuid(who.uid).pw_name} (uid {who.uid})"
    except KeyError:
        name = f"uid {who.uid}"
    if who.uid not in (0, os.geteuid()) and _number(group) not in who.groups:
        message = f"{name} is not in the group {group}"
        hint = f"Ask an administrator: adduser NAME {group}, then log in again."
        raise Refusal(403, Failure("Forbidden", message, hint))
    return name


def _number(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def take_apart(request: Request) -> tuple[tuple[str, ...], dict[str, str]]:
    """Path segments and parameters: those of the query, and over them those of a JSON object in the body."""
    if len(request.target) > TARGET_LIMIT or not request.target.startswith("/"):
        bad_request(f"the path has to begin with / and to have at most {TARGET_LIMIT} characters")
    path, _, query = request.target.partition("?")
    try:
        segments = tuple(unquote(segment, errors="strict") for segment in path.split("/")[1:])
        parameters = dict(
            parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=PARAMETERS_LIMIT)
        )
        if request.body:
            given = msgspec.json.decode(request.body, type=dict[str, str | int])
            parameters |= {name: str(value) for name, value in given.items()}
    except ValueError as error:  # UnicodeDecodeError and msgspec's errors are ValueErrors, too
        bad_request(f"path, query or body can't be read: {quote(str(error))}")
    return segments, parameters


def bad_request(message: str) -> NoReturn:
    raise Refusal(400, Failure("BadRequest", message, "See docs/status.md."))


def _name(asked: Asked) -> str:
    """The EK Name in hex behind which a page begins, empty for the first."""
    text = asked.parameters.get("after", "")
    if not EK_NAME.fullmatch(text):
        bad_request(f"after={quote(text)} is no EK Name in hex")
    return text


def _row(asked: Asked) -> int:
    text = asked.segments[0]
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        bad_request(f"{quote(text)} is not the number of an item")
    return int(text)
