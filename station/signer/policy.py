"""Profiles against the CA that is to issue them, before a unit comes: names that it may not give, ends that don't fit.

The same rules refuse at issuing; here they are told with file, line and key, and in time.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from hal.errors import ConfigError, ProfileViolation
from station.signer.authority import Authority
from station.signer.names import names_refused
from station.signer.profiles import NEW_CA, NO_EXPIRY, Profile
from station.toml_source import Key

EXAMPLE: Final = {"registration_id": "device-1", "unit": "unit-1"}
"""What stands for a unit's names."""
SOON: Final = dt.timedelta(days=90)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`until`: the last moment at which these CAs can issue this profile. `problem`: why they can't at all."""

    until: dt.datetime
    problem: ConfigError | None
    soon: bool

    @property
    def text(self) -> str:
        if self.problem is not None:
            return str(self.problem)
        if self.until >= NO_EXPIRY:
            return "the issuing CA allows this profile for good"
        return f"the issuing CA's certificate allows this profile until {self.until:%Y-%m-%d}"


def judge(profile: Profile, authority: Authority, now: dt.datetime) -> Verdict:
    until = profile.allowed_until(authority)
    found = _names(profile, authority.above) or _end(profile, authority, until, now)
    problem = None
    if found is not None:
        key, message = found
        problem = profile.source.error(key, message)
        problem.hint = NEW_CA
    return Verdict(until, problem, soon=problem is None and until < now + SOON)


def _names(profile: Profile, above: Sequence[x509.Certificate]) -> tuple[Key, str] | None:
    try:
        subject, alternative = profile.names(EXAMPLE)
    except ProfileViolation as error:
        return ("subject",), str(error)
    refused = names_refused(above, subject, [])
    if refused:
        return ("subject",), refused
    for index, name in enumerate(alternative):
        refused = names_refused(above, x509.Name([]), [name])
        if refused:
            return ("extensions", "san", index), refused
    return None


def _end(
    profile: Profile, authority: Authority, until: dt.datetime, now: dt.datetime
) -> tuple[Key, str] | None:
    validity = profile.file.validity
    if validity.no_expiry:
        if authority.not_after < NO_EXPIRY:
            return ("validity", "no_expiry"), profile.outlives(authority)
        return None
    if until < now:
        key = "days" if validity.minimum_days is None else "minimum_days"
        left = max((authority.not_after - now).days, 0)
        message = (
            f"certificates are to be valid for at least {profile.least_days} days, and the issuing CA has {left} left"
            f" (until {authority.not_after:%Y-%m-%d})"
        )
        return ("validity", key), message
    return None
