"""The two TPM drivers: `tcti` for a TPM of this host's, `tcti-tunnel` for one behind the board's link."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from drivers.tpm import tcti
from drivers.tpm.attestation import Attesting
from drivers.tpm.context import Tpm
from drivers.tpm.endorsement import Endorsements
from drivers.tpm.identitykeys import TcgKeys
from drivers.tpm.keyplace import TpmKeyPlace
from drivers.tpm.ownership import Owning
from drivers.tpm.store import TpmCertificateStore
from hal.driver import Bindings, Driver
from hal.interfaces import (
    CertificateStore,
    Custody,
    EndorsementIdentity,
    IdentityKeys,
    KeyAttestation,
    KeyPlace,
    Ownership,
    TpmTransport,
)
from hal.types import KeyProtection

OFFERS: Final = frozenset(
    {EndorsementIdentity, KeyAttestation, Ownership, Custody, KeyPlace, IdentityKeys, CertificateStore}
)


@dataclass(frozen=True, slots=True)
class TctiSettings:
    """`tcti`: name[:configuration] as for tpm2-tools: device:/dev/tpmrm0, swtpm:path=/run/x, mssim:host=..., cmd:..."""

    tcti: str = "device:/dev/tpmrm0"

    @property
    def bench_only(self) -> bool:
        """Whether a station in production has to refuse these settings."""
        return tcti.is_bench_only(self.tcti)


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """Nothing to set: the TPM is where the board's link leads."""


@contextmanager
def serve(transport: TpmTransport) -> Iterator[Mapping[type, object]]:
    """All that this room offers, over `transport`. Nothing is sent before the first call."""
    tpm = Tpm(transport)
    with ExitStack() as stack:
        stack.callback(tpm.close)
        owning = Owning(tpm)
        yield {
            EndorsementIdentity: Endorsements(tpm),
            KeyAttestation: Attesting(tpm),
            IdentityKeys: TcgKeys(tpm),
            Ownership: owning,
            Custody: owning,
            KeyPlace: TpmKeyPlace(tpm),
            CertificateStore: TpmCertificateStore(tpm),
        }


@contextmanager
def _open_tcti(settings: TctiSettings, needs: Bindings) -> Iterator[Mapping[type, object]]:
    del needs
    with tcti.opened(settings.tcti) as transport, serve(transport) as offered:
        yield offered


@contextmanager
def _open_tunnel(settings: TunnelSettings, needs: Bindings) -> Iterator[Mapping[type, object]]:
    del settings
    with serve(needs.get(TpmTransport)) as offered:
        yield offered


TCTI: Final = Driver(
    name="tcti",
    summary="TPM 2.0 that this host reaches through a TCTI of tpm2-tss",
    settings=TctiSettings,
    open=_open_tcti,
    offers=OFFERS,
    protection=KeyProtection.TPM,
)

TUNNEL: Final = Driver(
    name="tcti-tunnel",
    summary="TPM 2.0 on the board, its commands carried over the board's link",
    settings=TunnelSettings,
    open=_open_tunnel,
    offers=OFFERS,
    protection=KeyProtection.TPM,
    needs=frozenset({TpmTransport}),
)
