"""The image group: uploads into a slot, and what the slots hold. As Zephyr's img_mgmt, or MCUboot's serial recovery.

What the bootloader does with the slots is its own business. An upload in progress is known in memory only: a reset or a
power cut ends it, and the host is told to begin again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from smp import image_management as image_group
from smp.header import GroupId
from smp.image_management import IMG_MGMT_ERR as ERR

from drivers.emulated.board.bootloader import PRIMARY, SECONDARY, Bootloader, Swap
from drivers.emulated.board.server import Answer, Command, Refusal
from drivers.emulated.image import MAGIC, Image

_HEADER_OCTETS: Final = 32
"""sizeof(struct image_header): the first piece of an upload holds at least that."""
_SHA256_OCTETS: Final = 32


@dataclass(slots=True)
class _Upload:
    size: int
    sha: bytes
    offset: int = 0


class Images:
    """For a running application (uploads go to slot 1), or the serial recovery (`running` None: to slot 0)."""

    def __init__(self, bootloader: Bootloader, running: Image | None) -> None:
        self._bootloader = bootloader
        self._running = running
        self._slot = SECONDARY if running else PRIMARY
        self._upload: _Upload | None = None

    def commands(self) -> list[Command]:
        return [
            Command(image_group.ImageStatesReadRequest, self._states),
            Command(image_group.ImageStatesWriteRequest, self._set_state),
            Command(image_group.ImageUploadWriteRequest, self._take),
            Command(image_group.ImageEraseRequest, self._erase),
        ]

    # --- state ---

    def _states(self, request: object) -> Answer:
        del request
        swap = self._bootloader.swap_type()
        flags: dict[int, dict[str, bool]] = {PRIMARY: {}, SECONDARY: {}}
        flags[PRIMARY]["active"] = self._running is not None
        flags[SECONDARY if swap is Swap.REVERT else PRIMARY]["confirmed"] = True
        flags[SECONDARY]["pending"] = swap in (Swap.TEST, Swap.PERM)
        flags[SECONDARY]["permanent"] = swap is Swap.PERM
        images: list[dict[str, Any]] = []
        for slot, slot_flags in flags.items():
            image = self._bootloader.image(slot)
            if image is not None:
                set_flags = {name: True for name, value in slot_flags.items() if value}
                described = {"slot": slot, "version": image.version, "hash": image.digest}
                images.append(described | {"bootable": image.bootable} | set_flags)
        return {"images": images, "splitStatus": 0}

    def _set_state(self, request: image_group.ImageStatesWriteRequest) -> Answer:
        swap = self._bootloader.swap_type()
        slot = self._find(request.hash, confirm=request.confirm)
        if slot == PRIMARY:
            if not request.confirm:
                _refuse(ERR.IMAGE_SETTING_TEST_TO_ACTIVE_DENIED)
            if swap in (Swap.TEST, Swap.PERM):
                _refuse(ERR.IMAGE_ALREADY_PENDING)
            self._bootloader.confirm()
        else:
            if swap is Swap.REVERT or (swap is Swap.PERM and not request.confirm):
                _refuse(ERR.IMAGE_ALREADY_PENDING)
            self._bootloader.set_pending(permanent=request.confirm)
        return self._states(request)

    def _find(self, digest: bytes | None, *, confirm: bool) -> int:
        """The slot that is meant: by digest, or the running one when it is to be confirmed."""
        if not digest:
            return PRIMARY if confirm else _refuse(ERR.INVALID_HASH)
        for slot in (PRIMARY, SECONDARY):
            image = self._bootloader.image(slot)
            if image is not None and image.digest == digest:
                return slot
        return _refuse(ERR.HASH_NOT_FOUND)

    # --- upload ---

    def _take(self, request: image_group.ImageUploadWriteRequest) -> Answer:
        if request.off < 0:
            _refuse(ERR.INVALID_OFFSET)
        if request.off == 0 and not self._is_resumed(request):
            self._begin(request)
            if self._upload is None:
                return {"off": request.len, "match": True}
        upload = self._upload
        if upload is None or request.off != upload.offset:
            # Not an error: the host is told where to go on.
            return {"off": upload.offset if upload else 0}
        if upload.offset + len(request.data) > upload.size:
            self._upload = None
            _refuse(ERR.INVALID_IMAGE_DATA_OVERRUN)
        self._bootloader.write(self._slot, upload.offset, request.data)
        upload.offset += len(request.data)
        if upload.offset < upload.size:
            return {"off": upload.offset}
        self._upload = None
        answer: dict[str, Any] = {"off": upload.offset}
        if len(upload.sha) == _SHA256_OCTETS:
            answer["match"] = self._holds(upload.sha, upload.size)
        return answer

    def _is_resumed(self, request: image_group.ImageUploadWriteRequest) -> bool:
        return self._upload is not None and bool(request.sha) and request.sha == self._upload.sha

    def _begin(self, request: image_group.ImageUploadWriteRequest) -> None:
        """Makes room for a new image; no upload is begun when the slot holds these very octets already."""
        if len(request.data) < _HEADER_OCTETS:
            _refuse(ERR.INVALID_IMAGE_HEADER)
        if request.len is None or request.len < len(request.data):
            _refuse(ERR.INVALID_LENGTH)
        if not request.data.startswith(MAGIC.to_bytes(4, "little")):
            _refuse(ERR.INVALID_IMAGE_HEADER_MAGIC)
        sha = request.sha or b""
        if len(sha) > _SHA256_OCTETS:
            _refuse(ERR.INVALID_HASH)
        if request.len > self._bootloader.capacity:
            _refuse(ERR.INVALID_IMAGE_TOO_LARGE)
        self._refuse_if_in_use()
        self._upload = None
        if not (len(sha) == _SHA256_OCTETS and self._holds(sha, request.len)):
            self._bootloader.prepare(self._slot, request.len)
            self._upload = _Upload(request.len, sha)

    def _holds(self, sha: bytes, size: int) -> bool:
        return hashlib.sha256(self._bootloader.read(self._slot, size)).digest() == sha

    def _erase(self, request: image_group.ImageEraseRequest) -> Answer:
        if request.slot not in (None, self._slot):
            _refuse(ERR.INVALID_SLOT)
        self._refuse_if_in_use()
        self._upload = None
        self._bootloader.prepare(self._slot, self._bootloader.capacity)
        return {}

    def _refuse_if_in_use(self) -> None:
        """A pending image, or the one to which a test would be reverted, is not overwritten."""
        if self._running is not None and self._bootloader.swap_type() is not Swap.NONE:
            _refuse(ERR.NO_FREE_SLOT)


def _refuse(rc: ERR) -> NoReturn:
    raise Refusal(rc, GroupId.IMAGE_MANAGEMENT)
