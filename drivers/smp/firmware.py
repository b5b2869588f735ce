"""FirmwareTarget over SMP's image and OS groups, for boards that boot by MCUboot.

The digest is MCUboot's: SHA-256 over header, body and protected TLVs. Three things stand for it: the board's own check
of the SHA-256 over its flash, where its server has one; the hash in its image state after `write`; and at boot
MCUboot itself, which hashes the flash before it starts an image. What a recipe wants of images doesn't come in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from smp import image_management as img
from smp import os_management
from smp.header import GroupId

from drivers.smp import mcuboot
from drivers.smp.link import Link
from drivers.smp.messages import BoardError
from drivers.smp.upload import Upload
from hal.call import Call
from hal.errors import (
    DeadlineExceeded,
    DeviceBusy,
    DeviceGone,
    FlashRejected,
    ProtocolViolation,
    VerifyMismatch,
    quote,
)
from hal.types import FirmwareImage, InstalledImage

_IMAGE_LIMIT: Final = 16
"""Images that one board may name: two slots of eight images."""
_VERSION_LIMIT: Final = 64
_HASH_LIMIT: Final = 64
_FIRST_SLOT: Final = "slot 0"
_STARTS: Final = 2
_POLL_SECONDS: Final = 0.2
_PLUG_AGAIN: Final = "Plug the board in again; if it repeats, set it aside."
_RESET_AGAIN_SECONDS: Final = 3.0
"""Longer than any board takes from its answer to its restart (Zephyr: 250 ms by default)."""


class SmpFirmware:
    """The board's MCUboot slots."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def accepts(self, call: Call, image: FirmwareImage) -> bytes:
        call.check()
        return mcuboot.parse(image.data).digest

    def installed(self, call: Call) -> Sequence[InstalledImage]:
        answer = self._link.ask(call, img.ImageStatesReadRequest, img.ImageStatesReadResponse, "image state")
        return _images(answer.images)

    def write(self, call: Call, image: FirmwareImage) -> None:
        digest = self.accepts(call, image)
        # Twice, since a board whose last answer was lost may have forgotten the upload, and then only its state tells.
        for _ in range(2):
            upload = Upload(self._link, call, image.data, self._link.settings.image)
            try:
                upload.run()
            except BoardError as exc:
                if exc.is_of(GroupId.IMAGE_MANAGEMENT, img.IMG_MGMT_ERR.NO_FREE_SLOT):
                    # An image on trial, or one to be swapped: a power cut in mid-visit leaves that. A restart ends it.
                    self._reset(call)
                    problem = "the board still has another image on trial; it was restarted to end that"
                    raise DeviceBusy(problem, hint=_PLUG_AGAIN) from exc
                problem = f"the board does not take {quote(image.name)}: {exc}"
                raise FlashRejected(problem) from exc
            if upload.matched is False:
                problem = "the SHA-256 that the board computed over its flash is not that of the image"
                raise VerifyMismatch(problem)
            if any(found.digest == digest for found in self.installed(call)):
                return
        problem = "the board doesn't name the image's hash after the upload"
        raise VerifyMismatch(problem)

    def boot(self, call: Call, digest: bytes) -> None:
        """Returns when the board runs the image, or has vanished from its port for its restart.

        A board that runs it already is left alone. One that went back to its old image is asked once more: it may have
        lost power in the new one's trial, which MCUboot can't tell from an image that did not come up.
        """
        refused: FlashRejected | None = None
        for _ in range(_STARTS):
            images = self.installed(call)
            ours = [found for found in images if found.digest == digest]
            if not ours:
                problem = "the board has no image of this hash to start"
                raise refused or VerifyMismatch(problem)
            if any(found.active for found in ours):
                return
            # A bootloader in serial recovery runs none of its images, and starts what is in the first slot at reset.
            in_recovery = not any(found.active for found in images)
            started_anyway = in_recovery and any(found.location.endswith(_FIRST_SLOT) for found in ours)
            try:
                if not started_anyway and not any(found.pending for found in ours):
                    self._mark(call, digest)
                self._reset(call)
                self._await(call, digest)
            except DeviceGone:
                # What was asked for: a board with USB of its own leaves the bus at reset. The nest awaits it.
                return
            except FlashRejected as error:
                refused = error
            else:
                return
        if refused is not None:
            raise refused

    def _mark(self, call: Call, digest: bytes) -> None:
        """Asks for a trial of the image at the next start.

        A board on which a swap is due already (after a power cut, or asked for by a worker that was killed) takes no
        request before it has restarted: then the restart, and what runs after it, tells.
        """
        try:
            self._set_state(call, digest, confirm=False)
        except FlashRejected as error:
            cause = error.__cause__
            due = isinstance(cause, BoardError) and cause.is_of(
                GroupId.IMAGE_MANAGEMENT, img.IMG_MGMT_ERR.IMAGE_ALREADY_PENDING
            )
            if not due:
                raise

    def confirm(self, call: Call, digest: bytes) -> None:
        images = _images(self._set_state(call, digest, confirm=True).images)
        # Pending: it lost power meanwhile and runs its old image; the next start will take this one for good.
        if not any(found.digest == digest and (found.confirmed or found.pending) for found in images):
            problem = "the board does not show the image as confirmed"
            raise VerifyMismatch(problem)

    def _set_state(self, call: Call, digest: bytes, *, confirm: bool) -> img.ImageStatesWriteResponse:
        deed = "confirm" if confirm else "start"
        try:
            return self._link.ask(
                call,
                img.ImageStatesWriteRequest,
                img.ImageStatesWriteResponse,
                f"to {deed} the image",
                hash=digest,
                confirm=confirm,
            )
        except BoardError as exc:
            problem = f"the board does not {deed} the image: {exc}"
            raise FlashRejected(problem) from exc

    def _reset(self, call: Call) -> None:
        try:
            # Once only: a repeated reset could hit MCUboot while it swaps.
            self._link.ask(
                call, os_management.ResetWriteRequest, os_management.ResetWriteResponse, "reset", tries=1
            )
        except (DeadlineExceeded, ProtocolViolation):
            # Some boards restart before their answer is out. Whether this one did is seen by its images.
            call.check()
        finally:
            self._link.lose()

    def _await(self, call: Call, digest: bytes) -> None:
        seconds = self._link.settings.boot_timeout
        limit = call.within(seconds)
        try:
            again = time.monotonic() + _RESET_AGAIN_SECONDS
            while not (state := self._started(limit, digest)):
                if state is False and time.monotonic() >= again:
                    # The old image answers just now: the reset was lost on its way, and nothing is being swapped.
                    self._reset(limit)
                    again = time.monotonic() + _RESET_AGAIN_SECONDS
                limit.pause(_POLL_SECONDS)
                # It may restart between two looks.
                self._link.lose()
        except DeadlineExceeded:
            call.check()
            problem = f"the board did not come back with the image within {seconds:g} s of its reset"
            raise DeadlineExceeded(problem) from None

    def _started(self, limit: Call, digest: bytes) -> bool | None:
        """Whether the image runs; None when the board doesn't say."""
        try:
            images = self.installed(limit)
        except (DeadlineExceeded, ProtocolViolation):
            # Silence and a bootloader's noise are what a restart sounds like; `limit` ends it.
            limit.check()
            return None
        ours = [found for found in images if found.digest == digest]
        if any(found.active for found in ours):
            return True
        if not any(found.active for found in images):
            return None
        if not any(found.pending for found in ours):
            problem = "the board restarted, but not with the image: its bootloader refused it"
            raise FlashRejected(problem)
        return False


def _images(states: Sequence[img.ImageState]) -> tuple[InstalledImage, ...]:
    if len(states) > _IMAGE_LIMIT:
        problem = f"the board names {len(states)} images"
        raise ProtocolViolation(problem)
    return tuple(_image(state) for state in states)


def _image(state: img.ImageState) -> InstalledImage:
    version, digest = state.version, bytes(state.hash or b"")
    printable = len(version) <= _VERSION_LIMIT and version.isascii() and version.isprintable()
    if not printable or len(digest) > _HASH_LIMIT or not 0 <= state.slot < 256:
        problem = "the board's image state has a version, hash or slot that can't be right"
        raise ProtocolViolation(problem)
    return InstalledImage(
        location=f"image {state.image or 0} slot {state.slot}",
        version=version,
        digest=digest,
        active=bool(state.active),
        confirmed=bool(state.confirmed),
        pending=bool(state.pending),
    )
