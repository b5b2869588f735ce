"""The OS group: echo, buffer parameters, bootloader information, reset. A reset is asked for here, done elsewhere."""

from __future__ import annotations

from smp import os_management as os_group
from smp.header import GroupId

from drivers.emulated.board.options import Options
from drivers.emulated.board.server import Answer, Command, Refusal


class System:
    def __init__(self, options: Options) -> None:
        self._options = options
        self.reset: os_group.BootMode | None = None
        """How to boot next, once a reset was asked for."""

    def commands(self) -> list[Command]:
        return [
            Command(os_group.EchoWriteRequest, self._echo),
            Command(os_group.ResetWriteRequest, self._reset),
            Command(os_group.MCUMgrParametersReadRequest, self._parameters),
            Command(os_group.BootloaderInformationReadRequest, self._bootloader),
        ]

    def _echo(self, request: os_group.EchoWriteRequest) -> Answer:
        return {"r": request.d}

    def _parameters(self, request: os_group.MCUMgrParametersReadRequest) -> Answer:
        del request
        return {"buf_size": self._options.buf_size, "buf_count": self._options.buf_count}

    def _bootloader(self, request: os_group.BootloaderInformationReadRequest) -> Answer:
        if request.query is None:
            return {"bootloader": "MCUboot"}
        if request.query == "mode":
            return {"mode": int(os_group.MCUbootMode.SWAP_USING_SCRATCH)}
        raise Refusal(os_group.OS_MGMT_RET_RC.QUERY_YIELDS_NO_ANSWER, GroupId.OS_MANAGEMENT)

    def _reset(self, request: os_group.ResetWriteRequest) -> Answer:
        wanted = request.boot_mode == os_group.BootMode.BOOTLOADER
        self.reset = os_group.BootMode.BOOTLOADER if wanted else os_group.BootMode.NORMAL
        return {}
