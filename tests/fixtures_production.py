"""A line in production mode: a signed configuration, a CA under a root that openssl made, boards without a TPM.

The software TPMs of the other lines are refused here, so these boards prove themselves by a key that they keep.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from drivers.emulated.bench.layout import Layout, NestPlan
from drivers.emulated.bench.line import Line
from drivers.emulated.bench.process import run
from tests.fixtures_config import Releaser
from tests.fixtures_line import KEYED, Bench
from tests.order_parts import Planner

CA_EXTENSIONS: Final = (
    "basicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"
    "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
)
SKU: Final = "gw-100"
STATION: Final = "line-1"


class ProductionLine(Line):
    """Laid out as docs/set-up.md does it. Leaving it ends every process."""

    def __init__(
        self, layout: Layout, nests: tuple[NestPlan, ...], prepare: Callable[[Layout], None]
    ) -> None:
        super().__init__(layout)
        self.releaser = Releaser(layout.root)
        self.root_certificate = layout.root / "office/root.pem"
        text = (layout.etc / "station.toml").read_text()
        for nest in nests:
            text = text.replace(
                f'place = "{nest.port}"\nrecipe = "gw-200.toml"',
                f'place = "{nest.port}"\nrecipe = "{SKU}.toml"',
            )
        text = text.partition("\n[[work_order]]")[0]  # here they are signed
        text = text.replace('name = "bench"', f'name = "{STATION}"')
        (layout.etc / "station.toml").write_text(text.replace('mode = "bench"', 'mode = "production"'))
        self.planner = Planner(layout.root / "office")
        (layout.etc / "trust/orders").mkdir()
        shutil.copy(self.planner.public, layout.etc / "trust/orders/planner.pem")
        (layout.etc / f"recipes/{SKU}.toml").write_text(KEYED)
        prepare(layout)
        self.releaser.release()

    def _make_ca(self) -> None:
        """Not the bench's: see `install_ca`, which needs the signed configuration."""

    def order(self, **changed: Any) -> Path:
        """A work order for what this line makes now, as FILE and FILE.sig."""
        etc = self.layout.etc
        images = json.loads((etc / "images/manifest.json").read_text())["images"]
        given = {
            "sku": SKU,
            "stations": [STATION],
            "recipes": [hashlib.sha256((etc / f"recipes/{SKU}.toml").read_bytes()).hexdigest()],
            "images": [image["sha256"] for image in images],
            "from": "2026-01-01T00:00:00Z",
            "until": "2099-01-01T00:00:00Z",
        }
        return self.planner.write(**(given | changed))

    def install_ca(self) -> None:
        """Keys in the token, a request, a certificate from a root that openssl keeps, installed."""
        office = self.root_certificate.parent
        hallmark = self.layout.hallmark
        run(hallmark("ca", "init"), self.layout.environment)
        run(hallmark("ca", "csr", "--out", str(office / "ca.csr")), self.layout.environment)
        openssl_root(office)
        (office / "ca.ext").write_text(CA_EXTENSIONS)
        _openssl(
            *("x509", "-req", "-in", str(office / "ca.csr"), "-CA", str(self.root_certificate)),
            *("-CAkey", str(office / "root.key"), "-days", "5475"),
            *("-extfile", str(office / "ca.ext"), "-out", str(office / "ca.pem")),
        )
        run(
            hallmark("ca", "install", str(office / "ca.pem"), "--root", str(self.root_certificate)),
            self.layout.environment,
        )


def openssl_root(folder: Path) -> None:
    """root.key and root.pem, as a factory's root might be."""
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-noenc", "-days", "7300"),
        *("-subj", "/O=Example Devices/CN=Factory root", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        *("-keyout", str(folder / "root.key"), "-out", str(folder / "root.pem")),
    )


def production_line(
    nests: tuple[str, ...], prepare: Callable[[Layout], None] = lambda _layout: None
) -> Iterator[Bench]:
    """A running production line; `prepare` may change the configuration before it is signed."""
    root = Path(tempfile.mkdtemp(prefix="hm-"))  # short: sockets lie below it
    try:
        (root / "dev").mkdir()
        shipped = tuple(NestPlan(name, root / f"dev/{name}", "gw-200.toml") for name in nests)
        plans = tuple(NestPlan(name, root / f"dev/{name}", f"{SKU}.toml") for name in nests)
        with ProductionLine(Layout(root, shipped, image_size=16 * 1024), plans, prepare) as line:
            bench = Bench(line)
            bench._plans = {plan.name: plan for plan in plans}
            line.install_ca()
            line.start_as_configured()
            bench.hallmark("orders", "import", str(line.order()))
            yield bench
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=30, stdin=subprocess.DEVNULL)
