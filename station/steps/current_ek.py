"""The EK that this visit has verified, as its steps hand it to the TPM's driver. Verifying it is not done here."""

from __future__ import annotations

from hal.types import EkOrigin, EndorsementKey
from station.action import Trip


def current_ek(trip: Trip) -> EndorsementKey:
    """For sessions salted to it. RecipeError before `tpm-identity` has verified one."""
    handle = trip.facts.get("ek_handle")
    return EndorsementKey(
        public=trip.octets("ek_public"),
        name=trip.octets("ek_name"),
        origin=EkOrigin(trip.text("ek_origin")),
        template=trip.text("ek_template"),
        handle=handle if isinstance(handle, int) else None,
    )
