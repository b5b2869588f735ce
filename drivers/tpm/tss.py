"""The one door to tpm2-pytss, and what has to be so before its C library is loaded.

Other modules of this room take the library's names from here only, so that none is loaded before the log is off.
"""

from __future__ import annotations

import os

# The C library prints to stderr, and at its higher levels auth values too. It reads this once, at its first message;
# an assignment, because an inherited setting must not turn that on.
os.environ["TSS2_LOG"] = "all+NONE"

from tpm2_pytss import ESAPI, TCTI, TCTILdr, TSS2_Exception
from tpm2_pytss.constants import (
    ESYS_TR,
    TPM2_ALG,
    TPM2_CC,
    TPM2_ECC,
    TPM2_RC,
    TPM2_SE,
    TPMA_NV,
    TPMA_OBJECT,
    TPMA_SESSION,
)
from tpm2_pytss.cryptography import tpm_ecc_private_key, tpm_rsa_private_key
from tpm2_pytss.TCTI import PyTCTI
from tpm2_pytss.types import (
    TPM2B_DATA,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_NV_PUBLIC,
    TPM2B_PUBLIC,
    TPML_DIGEST,
    TPMS_NV_PUBLIC,
    TPMT_PUBLIC,
    TPMT_SIG_SCHEME,
    TPMT_SYM_DEF,
)
from tpm2_pytss.utils import NoSuchIndex, create_ek_template

__all__ = [
    "ESAPI",
    "ESYS_TR",
    "TCTI",
    "TPM2B_DATA",
    "TPM2B_ENCRYPTED_SECRET",
    "TPM2B_ID_OBJECT",
    "TPM2B_NV_PUBLIC",
    "TPM2B_PUBLIC",
    "TPM2_ALG",
    "TPM2_CC",
    "TPM2_ECC",
    "TPM2_RC",
    "TPM2_SE",
    "TPMA_NV",
    "TPMA_OBJECT",
    "TPMA_SESSION",
    "TPML_DIGEST",
    "TPMS_NV_PUBLIC",
    "TPMT_PUBLIC",
    "TPMT_SIG_SCHEME",
    "TPMT_SYM_DEF",
    "NoSuchIndex",
    "PyTCTI",
    "TCTILdr",
    "TSS2_Exception",
    "create_ek_template",
    "tpm_ecc_private_key",
    "tpm_rsa_private_key",
]
