"""The audit trail as arithmetic and formats: records, their Merkle tree, signed checkpoints, exports, proofs.

What an auditor checks with is here, and needs neither station, token nor database. Who writes records is
`station.store.audit`; who signs is the signer.
"""
