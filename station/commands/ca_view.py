"""The CA's generations as `hallmark ca` shows them, to people and to scripts."""

from __future__ import annotations

import datetime as dt
from typing import Final

from cryptography import x509

from hal.errors import ConfigError
from station.config import load_configuration
from station.messages.ca import CaGeneration
from station.paths import Paths
from station.signer import administration
from station.signer.policy import Verdict, judge
from station.signer.profiles import load_profiles

EXPIRY_WARNING: Final = dt.timedelta(days=90)


def print_generation(one: CaGeneration) -> None:
    """A generation for people: what it is, what it is under, when it issues, when it ends."""
    chain = [x509.load_der_x509_certificate(der) for der in (*one.chain, one.root)]
    print(f"CA {one.number:<7}{chain[0].subject.rfc4514_string()}")
    for certificate in chain[1:]:
        print(f"  under   {certificate.subject.rfc4514_string()}")
    print(f"  key     {one.label}")
    issues = {
        administration.ACTIVE: "now",
        administration.NEXT: f"from {day(one.since or 0):%Y-%m-%d %H:%M} UTC on",
        administration.INSTALLED: f"not before `hallmark ca activate {one.number}`",
        administration.FORMER: "no longer; what it has issued stays",
    }
    print(f"  issues  {issues.get(one.state, one.state)}")
    end = day(one.not_after)
    soon = one.state == administration.ACTIVE and end - dt.datetime.now(dt.UTC) <= EXPIRY_WARNING
    late = "   SOON: ask for a new one with `hallmark ca csr --new-key`" if soon else ""
    print(f"  until   {end:%Y-%m-%d}{late}")


def print_profiles(paths: Paths, one: CaGeneration) -> None:
    """Until when it can issue each profile, or why it can't."""
    try:
        found = _verdicts(paths, one)
    except ConfigError as error:  # it says nothing against the CA
        print(f"  profiles can't be read: {error}")
        return
    for name, verdict in found.items():
        print(f"  profile {name}: {verdict.text}{'   SOON' if verdict.soon else ''}")


def plain_generation(paths: Paths, one: CaGeneration) -> dict[str, object]:
    problem, verdicts = "", {}
    try:
        verdicts = _verdicts(paths, one)
    except ConfigError as error:
        problem = str(error)
    return {
        "number": one.number,
        "state": one.state,
        "key": one.label,
        "subject": one.subject,
        "not_after": f"{day(one.not_after):%Y-%m-%dT%H:%M:%SZ}",
        "since": None if one.since is None else f"{day(one.since):%Y-%m-%dT%H:%M:%SZ}",
        "profiles": {
            name: {"until": f"{verdict.until:%Y-%m-%dT%H:%M:%SZ}", "problem": str(verdict.problem or "")}
            for name, verdict in verdicts.items()
        },
        "profiles_problem": problem,
    }


def _verdicts(paths: Paths, one: CaGeneration) -> dict[str, Verdict]:
    now = max(dt.datetime.now(dt.UTC), day(one.since or 0))
    configuration = load_configuration(paths, drivers=False)
    profiles = load_profiles(configuration.path(configuration.file.signer.profiles))
    authority = administration.authority_of(one)
    return {name: judge(profile, authority, now) for name, profile in profiles.items()}


def day(at: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC)
