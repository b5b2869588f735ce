"""The policy on key places: a leaf that lives long wants a key that the device's software can't copy.

Judged twice: for the recipe, before there is a board, by what drivers declare and the profile says; and for each
certificate, by what it says itself. Practices document: validity, and where certificates are stored.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509

from hal.errors import ConfigError, ProfileViolation
from hal.types import KeyProtection
from station.signer.profiles import load_profile


def recipe_problem(
    profiles: Path, profile: str, protection: KeyProtection, limit: int, override: str | None
) -> str | None:
    """What is wrong with certifying a key kept so by this profile, in the words of the checker; None when nothing is.

    `limit`: days of [policy] long_lived_days.
    """
    if protection.keeps_from_software or override is not None:
        return None
    try:
        days = load_profile(profiles, profile).longest_days
    except (ConfigError, ProfileViolation) as error:
        return f"keys are kept as {protection.value}, and how long a certificate would live can't be told: {error}"
    if days <= limit:
        return None
    return (
        f"profile {profile!r} makes certificates for {days} days, and the key is kept as {protection.value}, where "
        f"software can copy it; expected at most {limit} days ([policy] long_lived_days), a safer place, or "
        "`override` with the reason"
    )


def check_lifetime(
    leaf: x509.Certificate, protection: KeyProtection, limit: int, override: str | None
) -> None:
    """ProfileViolation when this leaf lives too long for its key's place and the recipe doesn't say why it may."""
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    # A profile's backdating makes a certificate of exactly the limit a little longer than that.
    if protection.keeps_from_software or override is not None or life <= dt.timedelta(days=limit + 1):
        return
    raise ProfileViolation(
        f"the certificate lives {life.days} days, and its key is kept as {protection.value}:"
        f" at most {limit} days are allowed",
        hint="An engineer chooses a shorter life or a safer key place, or gives the recipe's `override` a reason.",
    )
