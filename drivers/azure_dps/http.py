"""One request to the service: signed anew, bounded in time and size, its answer's status made into an error.

No retries, no redirects, no clear text but on loopback. What a body means is not this room's business.
"""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import os
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote as url_quote
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

from drivers.azure_dps import messages
from drivers.azure_dps.sas import token
from hal.call import Call
from hal.errors import ConfigError, DeadlineExceeded, Throttled, Unauthorized, Unreachable, quote
from hal.secret import Secret

ANSWER_LIMIT: Final = 1 << 20
"""Octets of an answer that are read; the service's own are far below."""
CONNECT_SECONDS: Final = 10.0
TRY_SECONDS: Final = 30.0
"""For one request as a whole, however slowly the answer drips."""
RETRY_AFTER_LIMIT: Final = 3600.0
"""Seconds: a longer wish is not believed."""
SKEW_WORTH_A_HINT: Final = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`skew`: seconds that the service's clock is ahead of ours, None without a readable Date."""

    status: int
    body: bytes
    etag: str | None
    retry_after: float | None
    skew: float | None


def check_endpoint(endpoint: str) -> tuple[str, str]:
    """(base URL, host with port) of an endpoint; ConfigError for one that secrets must not be sent to."""
    parts = urlsplit(endpoint)
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"endpoint {quote(endpoint)} has no good port", key="endpoint") from error
    if not host or parts.username or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(f"endpoint {quote(endpoint)} is not https://HOST[:PORT]", key="endpoint")
    if parts.scheme != "https" and not (parts.scheme == "http" and _loopback(host)):
        raise ConfigError(
            f"endpoint {quote(endpoint)}: expected https:// (http:// only for this machine)", key="endpoint"
        )
    named = f"[{host}]" if ":" in host else host
    authority = f"{named}:{port}" if port else named
    return f"{parts.scheme}://{authority}", authority


def _loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class Service:
    """A pool of connections to one endpoint. Safe to close while a request is abandoned in it."""

    def __init__(self, endpoint: str, policy: str, key: Callable[[], Secret], trust: str = "") -> None:
        self._base, self._authority = check_endpoint(endpoint)
        self._policy, self._key = policy, key
        try:
            context = ssl.create_default_context(cafile=trust or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{quote(trust)} can't be read as PEM certificates: {error}", key="trust"
            ) from error
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=1, ssl_context=context, retries=False)

    def close(self) -> None:
        self._pool.clear()

    def request(
        self,
        call: Call,
        method: str,
        path: str,
        value: object = None,
        *,
        item: str | None = None,
        under: str = "",
    ) -> Answer:
        """One try. `path` is ours; `item`, an ID, is quoted behind it; `under`, ours too, comes behind that.

        Gives answers that speak of the request's content: 2xx, and 4xx in the service's own words. Raises Unauthorized,
        Throttled, and Unreachable for everything else; the cancel's reason when the call is stopped.
        """
        url = f"{self._base}/{path}" + (f"/{url_quote(item, safe='')}" if item is not None else "") + under
        headers = {
            "Authorization": token(self._authority, self._policy, self._key(), time.time()),
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "hallmark",
        }
        body = None
        if value is not None:
            body = messages.encode(value)
            headers["Content-Type"] = "application/json; charset=utf-8"
        limited = call.within(TRY_SECONDS)
        answer = _abandonable(limited, lambda: self._exchange(limited, method, url, body, headers))
        return _judged(replace(answer, body=messages.without_keys(answer.body, body)))

    def _exchange(
        self, call: Call, method: str, url: str, body: bytes | None, headers: dict[str, str]
    ) -> Answer:
        try:
            response = self._pool.urlopen(
                method,
                f"{url}?api-version={messages.API_VERSION}",
                body=body,
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=Timeout(connect=CONNECT_SECONDS, read=max(0.1, call.remaining())),
            )
            try:
                received = _bounded(call, response)
            except BaseException:
                response.close()
                raise
            response.release_conn()
        except (HTTPError, OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self._authority} does not answer: {_reason(error)}") from error
        return Answer(
            response.status,
            received,
            response.headers.get("ETag"),
            _retry_after(response.headers.get("Retry-After"), response.headers.get("Date")),
            _skew(response.headers.get("Date")),
        )


def _abandonable(call: Call, work: Callable[[], Answer]) -> Answer:
    """`work` in a thread, so that a deadline or a cancel is heard at once, even while a library waits in a name lookup.

    What is abandoned ends by its own timeouts; should the service still take it, the next try finds it there (409).
    """
    # The thread owns the writing end: its closing is what the caller waits for, or nobody, once it has left.
    waiting, finished = os.pipe()
    result: list[Answer | BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
            result.append(error)
        finally:
            os.close(finished)

    try:
        threading.Thread(target=run, name="dps-request", daemon=True).start()
        call.wait_readable(waiting)
    except DeadlineExceeded as error:
        raise Unreachable("the service did not answer in time") from error
    finally:
        os.close(waiting)
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def _bounded(call: Call, response: urllib3.BaseHTTPResponse) -> bytes:
    parts, size = [], 0
    while part := response.read(64 * 1024):
        call.check()
        size += len(part)
        if size > ANSWER_LIMIT:
            raise Unreachable(f"the service's answer is longer than {ANSWER_LIMIT} octets")
        parts.append(part)
    return b"".join(parts)


def _judged(answer: Answer) -> Answer:
    status = answer.status
    error = messages.service_error(status, answer.body)
    said = f"the service answered {status}" + (f", {error}" if error else "")
    if 200 <= status < 300:
        return answer
    if status in (401, 403):
        hint = None
        if answer.skew is not None and abs(answer.skew) > SKEW_WORTH_A_HINT:
            side = "behind" if answer.skew > 0 else "ahead of"
            hint = f"The station's clock is {abs(answer.skew):.0f} s {side} the service's: set it. Then check the key."
        raise Unauthorized(said, hint=hint)
    if status in (429, 503):
        raise Throttled(said, retry_after=answer.retry_after)
    if 400 <= status < 500 and status != http.client.REQUEST_TIMEOUT and error is not None:
        return answer
    if status == http.client.INTERNAL_SERVER_ERROR and error is not None:
        return answer
    raise Unreachable(
        said, hint="Check the sink's endpoint, and what stands between it and the station, such as a proxy."
    )


def _reason(error: BaseException) -> str:
    """The innermost cause of a library's nested errors in words, without its object addresses."""
    inner = error.__cause__ or error.__context__
    while inner is not None:
        error, inner = inner, inner.__cause__ or inner.__context__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return quote(str(error) or type(error).__name__, 160)


def _date(text: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, OverflowError):
        return None


def _skew(date: str | None) -> float | None:
    theirs = _date(date)
    return None if theirs is None else theirs - time.time()


def _retry_after(text: str | None, date: str | None) -> float | None:
    """Seconds from either form of Retry-After (RFC 9110, 10.2.3); a date counts from the service's own Date."""
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) < 10:
        return min(float(text), RETRY_AFTER_LIMIT)
    until = _date(text)
    if until is None:
        return None
    now = _date(date)
    return min(max(0.0, until - (time.time() if now is None else now)), RETRY_AFTER_LIMIT)
