"""TPM 2.0 over the Enhanced System API: endorsement identity, ownership, device key and certificate.

One implementation serves every transport: a TCTI of the host's, or the board's own link. What a step wants to achieve
must not come in; nor may tpm2-pytss's types go out.
"""
