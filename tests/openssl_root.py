"""A root CA that knows nothing of Hallmark: openssl's, in a folder, as `docs/ca.md` shows it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

PEM: Final = serialization.Encoding.PEM
ISSUING: Final = (
    "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"
    "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
)


def openssl(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """One openssl to its end; the test fails with what it says."""
    done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
        ["openssl", *words], capture_output=True, text=True, timeout=30, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


class OpensslRoot:
    def __init__(self, folder: Path, subject: str = "/O=Acme/CN=Root", new_key: tuple[str, ...] = ()) -> None:
        folder.mkdir()
        self.folder, self.certificate, self.key = folder, folder / "root.pem", folder / "root.key"
        kind = new_key or ("ec", "-pkeyopt", "ec_paramgen_curve:P-384")
        openssl(
            *("req", "-x509", "-newkey", *kind, "-noenc", "-days", "9000", "-subj", subject),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
            *("-keyout", str(self.key), "-out", str(self.certificate)),
        )

    def sign(self, csr: Path, extensions: str = ISSUING, days: int = 7000) -> Path:
        """The certificate for this request, beside it."""
        file, made = csr.with_suffix(".ext"), csr.with_suffix(".pem")
        file.write_text(extensions)
        openssl(
            *("x509", "-req", "-in", str(csr), "-CA", str(self.certificate), "-CAkey", str(self.key)),
            *("-days", str(days), "-extfile", str(file), "-out", str(made)),
        )
        return made

    def intermediate(self, folder: Path, subject: str, new_key: tuple[str, ...] = ()) -> OpensslRoot:
        """A CA below this one, which signs as this does. `certificate` is its own; the root stays this one's."""
        folder.mkdir()
        csr = folder / "ca.csr"
        kind = new_key or ("ec", "-pkeyopt", "ec_paramgen_curve:P-384")
        key = folder / "root.key"
        openssl(
            *(
                "req",
                "-new",
                "-newkey",
                *kind,
                "-noenc",
                "-subj",
                subject,
                "-keyout",
                str(key),
                "-out",
                str(csr),
            )
        )
        made = self.sign(csr, ISSUING.replace(",pathlen:0", ""), days=8000)
        below = OpensslRoot.__new__(OpensslRoot)
        below.folder, below.certificate, below.key = folder, made, key
        return below

    def verify(self, chain: list[bytes], folder: Path, *words: str) -> None:
        """That openssl takes the chain (DER, leaf first) for a TLS client's."""
        folder.mkdir()
        files = []
        for number, der in enumerate(chain):
            files.append(folder / f"{number}.pem")
            files[-1].write_bytes(x509.load_der_x509_certificate(der).public_bytes(PEM))
        untrusted = [word for file in files[1:] for word in ("-untrusted", str(file))]
        openssl(
            *("verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", str(self.certificate)),
            *words,
            *untrusted,
            str(files[0]),
        )
