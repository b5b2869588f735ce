"""A visit's auth values, station's side: sealed, wrapped, copied, given back, to the TPM that they belong to only.

The order is kept here: a value is on record, sealed to the officers and wrapped for a resume, before its worker may use
it, and as many copies as the recipe wants are durable before it may be set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from hal.errors import EscrowIncomplete, StationError
from hal.secret import Secret
from station.escrow import EscrowRecord, seal

if TYPE_CHECKING:
    from station.nest.service import Services

_auths: Final = msgspec.msgpack.Encoder(order="sorted")
_auths_decoder: Final = msgspec.msgpack.Decoder(dict[str, bytes])


class UnitSecrets:
    """Of one visit, whose unit and EK the caller has checked."""

    def __init__(self, services: Services, visit: str) -> None:
        self._services, self._visit = services, visit

    def protect(self, unit: str, ek_name: bytes, auths: dict[str, bytes]) -> None:
        """Escrow record and copy for resume, both durable when it returns."""
        services, store = self._services, self._services.store
        if not services.officers:
            raise StationError(
                "no escrow officer is configured, so no auth may be set",
                hint="An engineer names an officer's certificate under [escrow] and runs `hallmark check`.",
            )
        generation = store.next_generation(ek_name)
        sealed = seal(
            services.officers,
            EscrowRecord(
                ek_name=ek_name,
                unit=unit,
                station=services.station,
                generation=generation,
                auths={name: Secret(value) for name, value in auths.items()},
            ),
        )
        key = store.wrap_key(self._visit)
        plain = Secret(_auths.encode(auths))
        wrapped = services.signer.wrap(_context(unit, ek_name, generation), plain, key)
        store.protect(self._visit, ek_name, sorted(auths), sealed, wrapped, generation, key)

    def recover(self, unit: str, ek_name: bytes) -> dict[str, bytes]:
        """The values on record, and over them those that an officer has brought for this visit."""
        store = self._services.store
        offer = self._services.offered.take(ek_name, self._visit)
        copy = store.resume_copy(self._visit, ek_name)
        found: dict[str, bytes] = {}
        if copy is not None:
            generation, wrapped = copy
            key = store.resume_key(ek_name, generation)
            plain = self._services.signer.unwrap(_context(unit, ek_name, generation), wrapped, key)
            found = _auths_decoder.decode(plain.reveal())
        if offer is not None:
            brought, by, first = offer
            if first:
                fields = {"visit": self._visit, "by": by, "hierarchies": ",".join(sorted(brought))}
                store.append_event("auths-used", unit=unit, fields=fields)
            found |= {name: value.reveal() for name, value in brought.items()}
        if not found:
            raise StationError("this unit's auths are only in escrow: the copy for resuming is gone")
        return found

    def copy_escrow(self, ek_name: bytes, wanted: int) -> int:
        """How many durable copies there are now; EscrowIncomplete with fewer than `wanted`."""
        services, store = self._services, self._services.store
        newest = store.newest_escrow(self._visit, ek_name)
        if newest is None:
            raise StationError("there is no escrow record to copy")
        generation, sealed = newest
        places = store.escrow_places(ek_name, generation)
        trouble: list[str] = []
        used = {device for medium in services.media if medium.name in places and (device := medium.device())}
        for medium in services.media:
            if 1 + len(places) >= wanted:
                break
            if medium.name in places:
                continue
            try:
                used.add(medium.keep(ek_name, generation, sealed, used))
            except EscrowIncomplete as error:
                trouble.append(str(error))
                continue
            store.escrow_copied(self._visit, ek_name, generation, medium.name)
            places.append(medium.name)
        copies = 1 + len(places)
        if copies < wanted:
            why = "; ".join(trouble) or "station.toml names no further medium"
            raise EscrowIncomplete(f"waiting for copy {copies + 1} of {wanted} of the escrow record: {why}")
        return copies


def _context(unit: str, ek_name: bytes, generation: int) -> bytes:
    """What a wrapped copy is bound to: it opens for this unit, this EK and this generation only."""
    return b"hallmark resume\x00" + unit.encode() + b"\x00" + ek_name + b"\x00" + str(generation).encode()
