"""The service API: individual enrollments, groups, bulk operations, queries, registration states.

To service-2021-10-01.json of Microsoft's azure-rest-api-specs. HTTP and storage are other rooms' business.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from drivers.emulated.dps import sas
from drivers.emulated.dps.exchange import Answer, Request
from drivers.emulated.dps.records import checked, shown, stamped, thumbprints
from drivers.emulated.dps.refusal import Refusal, bad_request, not_found
from drivers.emulated.dps.store import Json, Store
from drivers.emulated.dps.weather import Weather

BULK_LIMIT: Final = 10
PAGE_LIMIT: Final = 1000
BODY_LIMIT: Final = 96 * 1024
ENROLLMENT_LIMIT: Final = 1_000_000
GROUP_LIMIT: Final = 100
QUERIES: Final = ("select * from enrollments", "select * from enrollmentgroups")


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between individual enrollments and groups."""

    kind: str
    id_field: str
    list_field: str
    limit: int


ENROLLMENTS: Final = Family("enrollment", "registrationId", "enrollments", ENROLLMENT_LIMIT)
GROUPS: Final = Family("group", "enrollmentGroupId", "enrollmentGroups", GROUP_LIMIT)


class ServiceApi:
    """`policy` and `key`: the one shared access policy; with `key` None nobody is asked who he is."""

    def __init__(self, store: Store, weather: Weather, policy: str = "", key: bytes | None = None) -> None:
        self._store, self._weather, self._policy, self._key = store, weather, policy, key

    def handle(self, request: Request) -> Answer:
        self._authorize(request)
        request.check_version()
        if len(request.body) > BODY_LIMIT:
            raise Refusal(413, f"the message is longer than {BODY_LIMIT} octets")
        match request.path:
            case ("enrollments", *rest):
                return self._records(request, ENROLLMENTS, rest)
            case ("enrollmentGroups", *rest):
                return self._records(request, GROUPS, rest)
            case ("registrations", *rest):
                return self._registrations(request, rest)
        raise not_found("resource")

    def _authorize(self, request: Request) -> None:
        if self._key is None:
            return
        host = request.headers.get("host", "")
        # The official client signs whatever endpoint it was given: with a scheme, when it got one (loopback only).
        resources = {host, host.rpartition(":")[0] or host, f"http://{host}", f"https://{host}"}
        sas.check(
            request.headers.get("authorization"), resources, self._policy, self._key, self._weather.now()
        )

    def _records(self, request: Request, family: Family, rest: list[str]) -> Answer:
        match request.method, rest:
            case "POST", []:
                return self._bulk(request, family)
            case "POST", ["query"]:
                return self._query(request, family)
            case "POST", [name, "attestationmechanism"]:
                return Answer(200, self._existing(family, name)["attestation"])
            case "GET", [name]:
                record = self._existing(family, name)
                return Answer(200, shown(record), {"ETag": record["etag"]})
            case "PUT", [name]:
                record = request.json()
                if isinstance(record, dict) and str(record.get(family.id_field)).lower() != name.lower():
                    raise bad_request(f"{family.id_field} is not the one of the address")
                with self._store.transaction():
                    stored = self._write(family, record, request.headers.get("if-match"))
                return Answer(200, shown(stored), {"ETag": stored["etag"]})
            case "DELETE", [name]:
                with self._store.transaction():
                    self._remove(family, name, request.headers.get("if-match"))
                return Answer(204)
        raise Refusal(405, "the method is not supported here")

    def _existing(self, family: Family, name: str) -> Json:
        record = self._store.get(family.kind, name)
        if record is None:
            raise not_found("enrollment")
        return record

    def _write(self, family: Family, given: object, if_match: str | None, *, update: bool = False) -> Json:
        """Creates without `if_match`, replaces with one ("*" for any); `update` replaces whatever is there."""
        record = checked(given, family.id_field)
        name = record[family.id_field]
        before = self._store.get(family.kind, name)
        if before is None and (if_match is not None or update):
            raise not_found("enrollment")
        if before is not None and if_match is None and not update:
            raise Refusal(409, "an enrollment with this ID exists already", 201)
        if before is not None and if_match is not None:
            _check_etag(before, if_match)
        if before is None and self._store.count(family.kind) >= family.limit:
            raise Refusal(403, f"the limit of {family.limit} is reached", 2)
        self._check_certificates(family, name, record)
        stored = stamped(record, before, self._weather.now())
        self._store.put(family.kind, name, stored)
        return stored

    def _check_certificates(self, family: Family, name: str, record: Json) -> None:
        """One certificate may stand in one entry only."""
        for print_ in thumbprints(record):
            owner = self._store.get("certificate", print_)
            if owner is not None and owner != {"kind": family.kind, "id": name}:
                raise bad_request("the certificate is in use by another enrollment")
            self._store.put("certificate", print_, {"kind": family.kind, "id": name})

    def _remove(self, family: Family, name: str, if_match: str | None) -> None:
        record = self._existing(family, name)
        if if_match is not None:
            _check_etag(record, if_match)
        for print_ in thumbprints(record):
            self._store.delete("certificate", print_)
        self._store.delete(family.kind, name)
        self._store.delete("registration", name)
        self._store.delete("identity", name)

    def _bulk(self, request: Request, family: Family) -> Answer:
        body = request.json()
        items = body.get(family.list_field) if isinstance(body, dict) else None
        mode = body.get("mode") if isinstance(body, dict) else None
        if mode not in ("create", "update", "updateIfMatchETag", "delete"):
            raise bad_request("mode is none of create, update, updateIfMatchETag, delete")
        if not isinstance(items, list) or not 1 <= len(items) <= BULK_LIMIT:
            raise bad_request(f"{family.list_field} has to hold 1 to {BULK_LIMIT} items")
        names = [str(item.get(family.id_field)) if isinstance(item, dict) else "" for item in items]
        if len({name.lower() for name in names}) != len(names):
            raise bad_request(f"{family.list_field} holds an ID twice")
        for item in items:  # what can't be read at all fails the request, not the item
            checked(item, family.id_field)
        errors = []
        for name, item in zip(names, items, strict=True):
            try:
                self._bulk_item(family, mode, name, item)
            except Refusal as refusal:
                errors.append(
                    {family.id_field: name, "errorCode": refusal.code, "errorStatus": refusal.message}
                )
        return Answer(200, {"isSuccessful": not errors, "errors": errors})

    def _bulk_item(self, family: Family, mode: str, name: str, item: Json) -> None:
        code = self._weather.bulk_error(name)
        if code is not None:
            raise Refusal(code // 1000, "failed on order", code % 1000)
        with self._store.transaction():
            if mode == "delete":
                self._remove(family, name, item.get("etag"))
            elif mode == "create":
                self._write(family, item, None)
            elif mode == "update":
                self._write(family, item, None, update=True)
            else:
                self._write(family, item, item.get("etag", ""))

    def _query(self, request: Request, family: Family) -> Answer:
        body = request.json()
        query = body.get("query") if isinstance(body, dict) else None
        if not isinstance(query, str) or " ".join(query.lower().split()) not in QUERIES:
            raise bad_request("the query language knows only SELECT * FROM enrollments (no WHERE)")
        limit = _page_size(request.headers.get("x-ms-max-item-count"))
        after = _continuation(request.headers.get("x-ms-continuation"))
        found = self._store.page(family.kind, after, limit + 1)
        headers = {"x-ms-item-type": family.kind, "x-ms-max-item-count": str(limit)}
        if len(found) > limit:
            headers["x-ms-continuation"] = base64.b64encode(found[limit - 1][0].encode()).decode()
        return Answer(200, [shown(record) for _, record in found[:limit]], headers)

    def _registrations(self, request: Request, rest: list[str]) -> Answer:
        match request.method, rest:
            case "GET", [name]:
                state = self._store.get("registration", name)
                if state is None:
                    raise not_found("registration")
                return Answer(200, state, {"ETag": state["etag"]})
            case "DELETE", [name]:
                with self._store.transaction():
                    if self._store.get("registration", name) is None:
                        raise not_found("registration")
                    self._store.delete("registration", name)
                return Answer(204)
            case "POST", [group, "query"]:
                found = [
                    state for state in self._store.all("registration") if state.get("group") == group.lower()
                ]
                return Answer(200, found, {"x-ms-item-type": "deviceRegistration"})
        raise Refusal(405, "the method is not supported here")


def _check_etag(record: Json, if_match: str) -> None:
    if if_match != "*" and if_match.strip('"') != record["etag"].strip('"'):
        raise Refusal(412, "the ETag is not the record's", 1)


def _page_size(text: str | None) -> int:
    if text is None:
        return PAGE_LIMIT
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= PAGE_LIMIT):
        raise bad_request(f"x-ms-max-item-count is no number from 1 to {PAGE_LIMIT}")
    return int(text)


def _continuation(token: str | None) -> str:
    try:
        return base64.b64decode(token or "", validate=True).decode()
    except (ValueError, binascii.Error) as error:
        raise bad_request("x-ms-continuation is not one of ours") from error
