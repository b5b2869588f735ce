"""`configure`: the device knows where it belongs: ID scope, provisioning endpoint, registration ID; read back."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from hal.interfaces import DeviceSettings
from station.action import Action, Step, Trip
from station.messages import Facts
from station.shared_keys import why_shared

SettingText = Annotated[str, Meta(min_length=1, max_length=256, description="text of 1 to 256 characters")]
SettingKey = Annotated[str, Meta(pattern=r"^[a-z0-9/_-]{1,64}$")]


class Options(Struct, frozen=True):
    id_scope: SettingText
    endpoint: SettingText = "global.azure-devices-provisioning.net"
    extra: dict[SettingKey, SettingText] = {}

    def __post_init__(self) -> None:
        for name, value in self.extra.items():
            if why := why_shared(name, value):
                raise ValueError(f"`extra`: {why}")


def _wanted(trip: Trip) -> dict[str, str]:
    return {
        "dps/id-scope": trip.options.id_scope,
        "dps/endpoint": trip.options.endpoint,
        "dps/registration-id": trip.text("registration_id"),
        **trip.options.extra,
    }


class Write(Action):
    name = "write"

    def probe(self, trip: Trip) -> Facts | None:
        wanted = _wanted(trip)
        found = trip.need(DeviceSettings).read_settings(trip.call, sorted(wanted))
        if dict(found) != wanted:
            return None
        return {"id_scope": trip.options.id_scope, "endpoint": trip.options.endpoint}

    def apply(self, trip: Trip) -> None:
        trip.need(DeviceSettings).write_settings(trip.call, _wanted(trip))


STEP = Step(
    use="configure",
    summary="write ID scope, endpoint and registration ID",
    options=Options,
    actions=lambda _options: (Write(),),
    needs=lambda _options: ((DeviceSettings, None),),
    requires=lambda _options: frozenset({"registration_id", "unit"}),
    gives=lambda _options: frozenset({"id_scope", "endpoint"}),
)
