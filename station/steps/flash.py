"""`flash`: the trusted image is on the device, started, and kept. The device's own digest decides."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from hal.interfaces import FirmwareTarget
from hal.types import FirmwareImage, InstalledImage
from station.action import DEFAULT_SECONDS, Action, Step, Trip
from station.messages import Facts


class Options(Struct, frozen=True):
    image: Annotated[
        str, Meta(min_length=1, max_length=128, description="an image's name in images/manifest.json")
    ]
    within: Annotated[float, Meta(ge=1, le=600, description="seconds that a boot may take, 1 to 600")] = 60.0


def _wanted(trip: Trip) -> tuple[FirmwareImage, bytes]:
    """The image and the digest by which this device names it. Fetched once a visit."""
    image = trip.desk.image(trip.options.image)
    return image, trip.need(FirmwareTarget).accepts(trip.call, image)


def _find(trip: Trip, digest: bytes) -> InstalledImage | None:
    """The image on the device, the active one first."""
    found = [image for image in trip.need(FirmwareTarget).installed(trip.call) if image.digest == digest]
    return max(found, key=lambda image: image.active, default=None)


def _facts(image: FirmwareImage, digest: bytes) -> Facts:
    return {"firmware": image.name, "firmware_version": image.version, "firmware_digest": digest}


class Write(Action):
    """The image is in the device's flash, whole."""

    name = "write"
    seconds = 900.0
    repeatable = True

    def probe(self, trip: Trip) -> Facts | None:
        image, digest = _wanted(trip)
        return _facts(image, digest) if _find(trip, digest) else None

    def apply(self, trip: Trip) -> None:
        image, _digest = _wanted(trip)
        trip.need(FirmwareTarget).write(trip.call, image)


class Boot(Action):
    """The device runs it. Boards with native USB vanish for that."""

    name = "boot"
    repeatable = True

    def __init__(self, within: float) -> None:
        """`within`: seconds that it may take until the board runs the image, and that it may be away for that."""
        self.seconds = self.absence = within

    def probe(self, trip: Trip) -> Facts | None:
        found = _find(trip, trip.octets("firmware_digest"))
        return {} if found and found.active else None

    def apply(self, trip: Trip) -> None:
        trip.need(FirmwareTarget).boot(trip.call, trip.octets("firmware_digest"))


class Confirm(Action):
    """The next reset starts it too."""

    name = "confirm"
    repeatable = True

    def __init__(self, within: float) -> None:
        self.seconds = DEFAULT_SECONDS + within

    def probe(self, trip: Trip) -> Facts | None:
        found = _find(trip, trip.octets("firmware_digest"))
        return {} if found and found.active and found.confirmed else None

    def apply(self, trip: Trip) -> None:
        target, digest = trip.need(FirmwareTarget), trip.octets("firmware_digest")
        found = _find(trip, digest)
        if found is not None and not found.active:
            # It lost power since it was booted, so its bootloader has taken the old image back.
            target.boot(trip.call, digest)
        target.confirm(trip.call, digest)


STEP = Step(
    use="flash",
    summary="write the image, boot it, keep it",
    options=Options,
    actions=lambda options: (Write(), Boot(options.within), Confirm(options.within)),
    needs=lambda _options: ((FirmwareTarget, None),),
    gives=lambda _options: frozenset({"firmware", "firmware_version", "firmware_digest"}),
)
