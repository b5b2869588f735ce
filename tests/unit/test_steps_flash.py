"""`flash` on a board that swaps images as MCUboot does, and that loses power where it hurts: before it is confirmed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytest

from hal.call import Call
from hal.driver import Bindings
from hal.errors import VerifyMismatch
from hal.interfaces import FirmwareTarget
from hal.types import FirmwareImage, InstalledImage
from station.recipe import PlannedStep
from station.steps import flash
from tests.runner_parts import Stage, without_pauses

DATA = b"new image"
IMAGE = FirmwareImage("new.bin", DATA, hashlib.sha256(DATA).digest(), "2.0.0")
OLD = InstalledImage("slot 0", "1.0.0", b"o" * 32, active=True, confirmed=True)
NEW = InstalledImage("slot 1", "2.0.0", IMAGE.sha256, active=False, confirmed=False)


class Swapping:
    """FirmwareTarget with an old image and, once written, the new one. It loses power at the calls named in `cuts`."""

    def __init__(self, *cuts: str) -> None:
        self.images = [OLD]
        self.cuts = list(cuts)
        self.done: list[str] = []

    def accepts(self, call: Call, image: FirmwareImage) -> bytes:
        return image.sha256

    def installed(self, call: Call) -> Sequence[InstalledImage]:
        return list(self.images)

    def write(self, call: Call, image: FirmwareImage) -> None:
        self.images = [OLD, NEW]

    def boot(self, call: Call, digest: bytes) -> None:
        kept = self.images[1].pending
        self.images = [replace(OLD, active=False), replace(NEW, active=True, confirmed=kept)]
        self._after("boot")

    def confirm(self, call: Call, digest: bytes) -> None:
        if "in confirm" in self.cuts:
            self.cuts.remove("in confirm")
            self._lose_power()
        new = self.images[1]
        self.images[1] = replace(new, confirmed=True) if new.active else replace(new, pending=True)
        self._after("confirm")

    def _after(self, what: str) -> None:
        self.done.append(what)
        if what in self.cuts:
            self.cuts.remove(what)
            self._lose_power()

    def _lose_power(self) -> None:
        if not self.images[1].confirmed:
            self.images = [OLD, NEW]


class FlashStage(Stage):
    def image(self, name: str) -> FirmwareImage:
        return IMAGE


def run(target: FirmwareTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)
    board = Bindings()
    board.add("link", FirmwareTarget, target)
    FlashStage(board).run(PlannedStep(flash.STEP, flash.Options(image="new.bin")))


def test_an_image_is_written_started_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Swapping()
    run(target, monkeypatch)
    assert target.done == ["boot", "confirm"]
    assert target.images[1].confirmed


@pytest.mark.parametrize("cut", ["in confirm", "confirm"])
def test_a_board_that_lost_power_before_its_image_was_kept_gets_it_again(
    cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bootloader takes the old image back, as it should with one that nobody confirmed."""
    target = Swapping(cut)
    run(target, monkeypatch)
    assert target.images[1].active
    assert target.images[1].confirmed


def test_a_board_that_loses_power_in_each_trial_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VerifyMismatch):
        run(Swapping(*["in confirm", "boot"] * 8), monkeypatch)
