"""Where a checkout can't be used by the units under test: their sandbox hides these places on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Final

HIDDEN: Final = ("/tmp", "/var/tmp", "/home", "/root", "/run/user")
"""PrivateTmp= and ProtectHome= (systemd.exec(5))."""


def hidden_from_units(checkout: Path) -> str | None:
    """Why the units can't start what is in `checkout`, or None when they can."""
    place = next((place for place in HIDDEN if checkout.is_relative_to(place)), None)
    return (
        f"the units' sandbox hides {place}, where this checkout is: run the tests from one elsewhere"
        if place
        else None
    )
