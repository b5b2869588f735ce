"""What every FirmwareTarget promises: `check(open_, image, damaged)`. It leaves `image` running.

No test framework comes in.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

from hal.conformance.calls import Silence, honours_calls, working
from hal.errors import FirmwareError
from hal.interfaces import FirmwareTarget
from hal.types import FirmwareImage, InstalledImage

Open = Callable[[], AbstractContextManager[FirmwareTarget]]

_LEAST_DIGEST: Final = 16


def check(open_: Open, image: FirmwareImage, damaged: bytes, silence: Silence | None = None) -> None:
    """`image` is one for this target, `damaged` is none; the target may have other images, but not this one.

    For devices that vanish at reset, `open_` waits until the device is back.
    """
    with open_() as target:
        digest = target.accepts(working(), image)
        assert len(digest) >= _LEAST_DIGEST, "a digest that proves little"
        assert target.accepts(working(), image) == digest, "an image has one digest"
        refuses(target, image, damaged)
        assert _find(target, digest) is None, "the image is there before it was written"
        honours_calls(target.installed, silence)
        writes_all_of_it(target, image)
        assert _find(target, digest) is not None, "the image is not there after it was written"
        target.write(working(), image)  # the same call may be made again
        target.boot(working(), digest)
    with open_() as target:
        found = _find(target, digest)
        assert found is not None, "the image is gone after boot"
        assert found.active, "the image doesn't run after boot"
        target.confirm(working(), digest)
        found = _find(target, digest)
        assert found is not None, "the image is gone after confirm"
        assert found.confirmed, "the image is not confirmed after confirm"


def refuses(target: FirmwareTarget, image: FirmwareImage, damaged: bytes) -> None:
    """Bytes that are no image, by `accepts` and by `write`, before anything is written."""
    before = list(target.installed(working()))
    wrong = replace(image, data=damaged)
    for attempt in (target.accepts, target.write):
        try:
            attempt(working(), wrong)
        except FirmwareError:
            continue
        message = "bytes that are no image were accepted"
        raise AssertionError(message)
    assert list(target.installed(working())) == before, "a refused image changed the device"


def writes_all_of_it(target: FirmwareTarget, image: FirmwareImage) -> None:
    """With progress that never goes back and ends at the image's size."""
    seen: list[int] = []

    def progress(done: int, total: int | None) -> None:
        assert total == len(image.data), "progress towards another size"
        seen.append(done)

    target.write(replace(working(), progress=progress), image)
    assert seen, "no progress was told"
    assert seen == sorted(seen), "progress went back"
    assert seen[-1] == len(image.data), "progress ended before the image did"


def _find(target: FirmwareTarget, digest: bytes) -> InstalledImage | None:
    ours = [found for found in target.installed(working()) if found.digest == digest]
    return next((found for found in ours if found.active), ours[0] if ours else None)
