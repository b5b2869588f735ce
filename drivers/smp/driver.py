"""Driver "smp-serial": what an SMP board offers, over the Channel that another driver gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from drivers.smp.board import SmpIdentity, SmpKey, SmpSelfTest, SmpTpm
from drivers.smp.delivery import SmpKeyDelivery
from drivers.smp.firmware import SmpFirmware
from drivers.smp.link import Link
from drivers.smp.settings import Settings
from drivers.smp.store import SmpCertificates, SmpSettings
from drivers.smp.transactions import Transactions
from hal.driver import Bindings, Driver
from hal.interfaces import (
    CertificateStore,
    Channel,
    DeviceIdentity,
    DeviceSettings,
    FirmwareTarget,
    KeyDelivery,
    KeyPlace,
    SelfTest,
    TpmTransport,
)


def board(channel: Channel, settings: Settings) -> Mapping[type, object]:
    """All that one board offers, by interface. Nothing is sent until the first call."""
    settings.check()
    link = Link(channel, settings)
    transactions = Transactions(link)
    return {
        FirmwareTarget: SmpFirmware(link),
        DeviceIdentity: SmpIdentity(link),
        TpmTransport: SmpTpm(transactions),
        DeviceSettings: SmpSettings(link),
        CertificateStore: SmpCertificates(link),
        SelfTest: SmpSelfTest(transactions),
        KeyPlace: SmpKey(transactions, settings.protection),
        KeyDelivery: SmpKeyDelivery(transactions),
    }


@contextmanager
def _open(settings: Settings, needs: Bindings) -> Iterator[Mapping[type, object]]:
    # The channel belongs to its own driver, which closes it.
    yield board(needs.get(Channel), settings)


DRIVER: Final = Driver(
    name="smp-serial",
    summary="Boards with an SMP server (MCUboot, Zephyr, Mynewt, NuttX) on a serial port",
    settings=Settings,
    open=_open,
    offers=frozenset(
        {
            FirmwareTarget,
            DeviceIdentity,
            TpmTransport,
            DeviceSettings,
            CertificateStore,
            SelfTest,
            KeyPlace,
            KeyDelivery,
        }
    ),
    needs=frozenset({Channel}),
)
