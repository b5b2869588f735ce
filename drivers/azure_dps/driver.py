"""The driver "azure-dps": its settings, and how its sink is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from drivers.azure_dps.http import Service
from drivers.azure_dps.sink import DpsSink
from hal.driver import Bindings, Driver
from hal.interfaces import Credentials, EnrollmentSink


@dataclass(frozen=True, slots=True)
class DpsSettings:
    """`endpoint`: https://NAME.azure-devices-provisioning.net (http:// on loopback only). `policy`: a shared access
    policy with EnrollmentWrite and EnrollmentRead, no more. `key`: the name of the credential that holds its key.
    `trust`: a PEM file of roots in the place of the system's. `storage_root_key`: send the SRK beside the EK.
    `audit_tag`: the tag of the initial twin that takes the station's newest audit checkpoint; empty: it isn't sent.
    """

    endpoint: str
    policy: str
    key: str
    trust: str = ""
    storage_root_key: bool = False
    audit_tag: str = "auditCheckpoint"


@contextmanager
def open_sink(settings: DpsSettings, needs: Bindings) -> Iterator[Mapping[type, object]]:
    """Opens no connection: a service that is away is the first upload's business."""
    credentials = needs.get(Credentials)
    service = Service(
        settings.endpoint, settings.policy, lambda: credentials.secret(settings.key), settings.trust
    )
    try:
        yield {
            EnrollmentSink: DpsSink(service, with_srk=settings.storage_root_key, head_tag=settings.audit_tag)
        }
    finally:
        service.close()


DRIVER: Final = Driver(
    name="azure-dps",
    summary="Enrollments to Azure IoT Hub Device Provisioning Service (TPM, X.509, symmetric keys, groups)",
    settings=DpsSettings,
    open=open_sink,
    offers=frozenset({EnrollmentSink}),
    needs=frozenset({Credentials}),
)
