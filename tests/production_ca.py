"""A production station's CA on a real token, with a root elsewhere, as `docs/ca.md` makes it."""

from __future__ import annotations

import contextlib
import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from station.messages import SignRequest
from tests.fixtures_config import Releaser
from tests.fixtures_signer import BenchCa, configure, make_token, sign_request, softhsm_module, station_toml
from tests.openssl_root import OpensslRoot


def did(ca: BenchCa, *words: str) -> str:
    """`hallmark ca ...`, done; what it says."""
    done = ca.hallmark("ca", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def request_of(
    ca: BenchCa, unit: str, key: ec.EllipticCurvePrivateKey | None = None, profile: str = "idevid-p256"
) -> SignRequest:
    """As the station asks in production, with the digest of the configuration that both go by."""
    digest = hashlib.sha256((ca.paths.configuration.parent / "set.json").read_bytes()).digest()
    return msgspec.structs.replace(sign_request(unit, key, profile), configuration=digest)


@contextlib.contextmanager
def empty_ca(folder: Path, key_type: str = "p256") -> Iterator[tuple[BenchCa, Path]]:
    """Keys in the token and their request, which waits for a root; no signer runs."""
    ca = configure(folder, make_token(folder))
    ca.paths.configuration.write_text(station_toml(softhsm_module(), "production"))
    Releaser(folder).release()
    csr = folder / "1.csr"
    did(ca, "init", "--key-type", key_type)
    did(ca, "csr", "--organization", "Acme", "--out", str(csr))
    try:
        yield ca, csr
    finally:
        ca.stop(signal.SIGKILL)


@contextlib.contextmanager
def production_ca(folder: Path) -> Iterator[tuple[BenchCa, OpensslRoot]]:
    """A signer that runs, its first intermediate from a root of openssl's."""
    with empty_ca(folder) as (ca, csr):
        root = OpensslRoot(folder / "root")
        did(ca, "install", str(root.sign(csr)), "--root", str(root.certificate))
        ca.start()
        yield ca, root
