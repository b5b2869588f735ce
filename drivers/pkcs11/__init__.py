"""The CA token over PKCS#11 (python-pkcs11): signing, wrapping, and a state that is always known.

One thread owns the module (`owner`); `session` is all that runs in it; `ca_token` is what others call. Nothing here
knows of certificates, ledgers or where the PIN comes from, and no type of the library leaves this folder.
"""
