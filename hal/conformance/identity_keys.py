"""What every IdentityKeys promises: `check(open_device, owner, prepare)`, against a TPM without such keys.

The TPM is the caller's; the keys stay in it. No test framework comes in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hal.call import Call
from hal.conformance.endorsement_identity import PATIENCE, Open, cancelled, raised
from hal.driver import Bindings
from hal.errors import Aborted, KeyConflict
from hal.interfaces import IdentityKeys, KeyAttestation, KeyPlace
from hal.secret import EMPTY, Secret
from hal.types import AkKind, KeyType

ATTRIBUTES: Final = slice(6, 10)
RESTRICTED: Final = 1 << 16


def check(
    open_device: Open, owner: Secret = EMPTY, prepare: Callable[[Bindings], None] = lambda _: None
) -> bytes:
    """All promises, one after the other; the IAK. `prepare` is called in each visit before `owner` is used."""
    with open_device() as device:
        prepare(device)
        keys = device.get(IdentityKeys)
        assert isinstance(raised(lambda: keys.iak(cancelled())), Aborted)
        assert keys.iak(Call.lasting(PATIENCE)) is None
        device_key = keys.make_idevid(Call.lasting(PATIENCE), owner)
        assert device_key.key_type is KeyType.P256
        assert device_key.resident
        assert device.get(KeyPlace).key(Call.lasting(PATIENCE)) == device_key, "where every key is looked for"
        made = keys.make_iak(Call.lasting(PATIENCE), owner)
        assert int.from_bytes(made[ATTRIBUTES], "big") & RESTRICTED, "it signs only what its TPM has made"
        assert keys.iak(Call.lasting(PATIENCE)) == made
        for again in (keys.make_idevid, keys.make_iak):
            refused = raised(lambda again=again: again(Call.lasting(PATIENCE), owner))  # type: ignore[misc]
            assert isinstance(refused, KeyConflict)
    with open_device() as device:
        assert device.get(IdentityKeys).iak(Call.lasting(PATIENCE)) == made, "it outlives the visit"
        assert device.get(KeyPlace).key(Call.lasting(PATIENCE)) == device_key
        attesting = device.get(KeyAttestation)
        assert attesting.attestation_key(Call.lasting(PATIENCE), AkKind.IAK) == made
    return made
