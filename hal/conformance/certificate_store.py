"""What every CertificateStore promises: `check(open_, chain, other)`. It leaves `other` installed.

No test framework comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from hal.conformance.calls import Silence, ends_when_cancelled, ends_when_expired, honours_calls, working
from hal.interfaces import CertificateStore

Open = Callable[[], AbstractContextManager[CertificateStore]]


def check(
    open_: Open, chain: Sequence[bytes], other: Sequence[bytes], silence: Silence | None = None
) -> None:
    """`chain`, `other`: different chains, leaf first, DER. `silence`: see `hal.conformance.calls`."""
    with open_() as store:
        for wanted in (chain, other, chain, chain):
            store.install(working(), wanted)
            assert list(store.installed(working())) == list(wanted), "not the chain that was installed"
        ends_when_expired(lambda call: store.install(call, other))
        ends_when_cancelled(lambda call: store.install(call, other))
        assert list(store.installed(working())) == list(chain), "a call that ended at once changed the store"
        honours_calls(store.installed, silence)
        honours_calls(lambda call: store.install(call, other), silence)
    with open_() as store:
        assert list(store.installed(working())) == list(other), "forgotten when opened again"
