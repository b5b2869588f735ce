"""A bench CA in a folder of its own: a real SoftHSM2 token, `hallmark ca init --bench`, and a signer as a process.

For other rooms: `with bench_ca(tmp_path) as ca: SignerClient(ca.paths.signer_socket)...`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import apsw
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from hal.errors import PeerUnavailable
from hal.types import TokenCondition
from station.messages import SignRequest
from station.paths import Paths
from station.signer_client import SignerClient

REPOSITORY: Final = Path(__file__).resolve().parents[1]
MODULES: Final = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib64/pkcs11/libsofthsm2.so"),
    Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
)
TOKEN, PIN, SO_PIN = "hallmark-ca", "24680246", "13579135"
START_SECONDS: Final = 20.0


def softhsm_module() -> Path:
    found = next((path for path in MODULES if path.exists()), None)
    if found is None:
        pytest.skip("needs SoftHSM2: apt-get install softhsm2")
    return found


@dataclass
class BenchCa:
    """`paths` below `root`; `environment` points SoftHSM at this token."""

    root: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.root / "signer.log"

    @property
    def paths(self) -> Paths:
        return Paths(self.root)

    @property
    def tokens(self) -> Path:
        return self.root / "softhsm"

    @property
    def client(self) -> SignerClient:
        return SignerClient(self.paths.signer_socket)

    @property
    def pin_file(self) -> Path:
        return self.root / "etc/hallmark/credentials/ca-pin"

    def hallmark(self, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
        """One `hallmark --root ROOT ...` to its end."""
        command = [sys.executable, "-m", "station.cli", "--root", str(self.root), *words]
        return subprocess.run(  # type: ignore[call-overload]
            command,
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )

    def start(
        self, *words: str, ready: bool = True, extra: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts the signer; with `ready` waits until its token is."""
        command = [sys.executable, "-m", "station.cli", "--root", str(self.root), "signer", *words]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.environment | (extra or {}), cwd=REPOSITORY, stdout=log, stderr=log
            )
        self.wait_for(TokenCondition.READY if ready else None)
        return self.process

    def wait_for(self, condition: TokenCondition | None, seconds: float = START_SECONDS) -> str:
        """Until the signer answers, and is in this condition; what it is in."""
        end = time.monotonic() + seconds
        seen = "no answer"
        while time.monotonic() < end:
            assert self.process is not None
            assert self.process.poll() is None, f"the signer ended: {self.log.read_text()[-2000:]}"
            with contextlib.suppress(PeerUnavailable):
                state = self.client.state()
                seen = state.condition
                looked = state.problem != "not looked for yet"
                if looked and condition in (None, TokenCondition(seen)):
                    return seen
            time.sleep(0.05)
        raise AssertionError(f"the signer is {seen}, not {condition}: {self.log.read_text()[-2000:]}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends the signer; its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            self.process = None

    def ledger(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of the signer's ledger, read beside it: a test may, nobody else."""
        with contextlib.closing(apsw.Connection(str(self.paths.signer_state / "ledger.db"))) as db:
            return list(db.execute(query))

    def wrong_pin_counted(self) -> bool:
        """Whether the token says that a wrong PIN was given since the last right one (CKF_USER_PIN_COUNT_LOW)."""
        return "True" in self._token("print(pkcs11.TokenFlag.USER_PIN_COUNT_LOW in token.flags)")

    def log_in_elsewhere(self) -> None:
        """A right login by another process, which clears that flag."""
        self._token(f"token.open(user_pin={PIN!r})")

    def _token(self, code: str) -> str:
        prelude = (
            f"import pkcs11\ntoken = pkcs11.lib({str(softhsm_module())!r}).get_token(token_label={TOKEN!r})\n"
        )
        command = [sys.executable, "-c", prelude + code]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout


def station_toml(module: Path, mode: str = "bench") -> str:
    return f"""\
[station]
name = "test-line"
mode = "{mode}"
drivers = ["pkcs11"]
[signer]
driver = "pkcs11"
settings = {{ module = "{module}", token = "{TOKEN}" }}
[orders]
required = false
"""


def make_token(root: Path) -> dict[str, str]:
    """A SoftHSM2 token below `root`; the environment in which it is seen."""
    tokens = root / "softhsm"
    tokens.mkdir(parents=True)
    conf = root / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    environment = os.environ | {"SOFTHSM2_CONF": str(conf)}
    command = ["softhsm2-util", "--init-token", "--free", "--label", TOKEN, "--so-pin", SO_PIN, "--pin", PIN]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    return environment


def configure(root: Path, environment: dict[str, str]) -> BenchCa:
    """station.toml, profiles and the PIN's credential for the token in `environment`."""
    ca = BenchCa(root, environment)
    folder = ca.paths.configuration.parent
    ca.pin_file.parent.mkdir(parents=True)
    ca.paths.configuration.write_text(station_toml(softhsm_module()))
    shutil.copytree(REPOSITORY / "config/profiles", folder / "profiles")
    ca.pin_file.touch(mode=0o600)
    ca.pin_file.write_text(PIN + "\n")
    return ca


@functools.cache
def _pattern(key_type: str) -> Path:
    """An initialised bench CA, made once per test process and copied from then on."""
    root = Path(tempfile.mkdtemp(prefix="hallmark-pattern-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    ca = configure(root, make_token(root))
    done = ca.hallmark("ca", "init", "--bench", "--key-type", key_type)
    assert done.returncode == 0, done.stderr
    return root


@contextlib.contextmanager
def bench_ca(root: Path, key_type: str = "p256", *, start: bool = True) -> Iterator[BenchCa]:
    """A CA below `root` (an existing, empty folder with a short path), and with `start` its signer, ready."""
    softhsm_module()
    pattern = _pattern(key_type)
    shutil.copytree(pattern, root, dirs_exist_ok=True)
    conf = root / "softhsm2.conf"
    conf.write_text(conf.read_text().replace(str(pattern), str(root)))
    ca = BenchCa(root, os.environ | {"SOFTHSM2_CONF": str(conf)})
    try:
        if start:
            ca.start()
        yield ca
    finally:
        ca.stop(signal.SIGKILL)


def device_csr(common_name: str | None, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name is not None else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def sign_request(
    unit: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None, profile: str = "idevid-p256"
) -> SignRequest:
    """A request as the station makes it, for a unit whose registration ID is `dev-UNIT`."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    return SignRequest(unit, f"dev-{unit}", profile, device_csr(f"dev-{unit}", key))


@pytest.fixture
def short_root() -> Iterator[Path]:
    """A folder with a path short enough for unix sockets."""
    root = Path(tempfile.mkdtemp(prefix="hm-"))
    yield root
    shutil.rmtree(root)


@pytest.fixture
def signer(short_root: Path) -> Iterator[BenchCa]:
    """A running signer of its own for one test."""
    with bench_ca(short_root) as ca:
        yield ca


@pytest.fixture(scope="module")
def shared_signer() -> Iterator[BenchCa]:
    """A running signer for the tests of a module that leave it as it was."""
    root = Path(tempfile.mkdtemp(prefix="hm-"))
    with bench_ca(root) as ca:
        yield ca
    shutil.rmtree(root)
