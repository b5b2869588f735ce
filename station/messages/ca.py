"""What people ask of the issuing CA: of the signer while it runs, or answered by the command itself."""

from __future__ import annotations

from msgspec import Struct

from hal.types import KeyType
from station.messages.basics import Blob, Name, Text


class MakeCaRequest(Struct, frozen=True, tag="make-ca-request"):
    """A PKCS#10 request for a key of the token. Reply `CaRequest`. For root and the signer's own user.

    `label`: the key's, made when it isn't there; None: the one that waits for its certificate, or else the one that
    issues. `new_key`: the next label, and a new key.
    """

    label: Name | None
    new_key: bool
    key_type: KeyType
    common_name: Name | None
    organization: Name | None


class CaRequest(Struct, frozen=True, tag="ca-request"):
    """`csr` is PEM."""

    label: Name
    csr: Blob


class InstallCa(Struct, frozen=True, tag="install-ca"):
    """The certificate for one of the token's CA keys, and those above it (DER). Reply `CaGeneration`. As above.

    Asking again for the same certificate changes nothing.
    """

    certificates: list[Blob]
    root: Blob | None


class ActivateCa(Struct, frozen=True, tag="activate-ca"):
    """From `at` on (Unix seconds; None: now) this generation issues. Reply `CaGeneration`. As above."""

    generation: int
    at: int | None


class CaGeneration(Struct, frozen=True, tag="ca-generation"):
    """One certificate that the issuing CA has or had. Times are Unix seconds.

    `state`: `active`, `next` (takes over at `since`), `installed` (never activated), `former`. `chain`: DER, issuing
    CA first, without `root`. `not_after`: when the first of them all ends.
    """

    number: int
    label: Name
    state: Name
    subject: Text
    not_before: int
    not_after: int
    since: int | None
    chain: list[Blob]
    root: Blob


CaSays = CaRequest | CaGeneration
CaAsked = MakeCaRequest | InstallCa | ActivateCa
