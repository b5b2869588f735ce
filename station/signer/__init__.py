"""The signer process: the only one with the CA token and its PIN.

It issues device certificates from profiles, remembers each in a ledger of its own, and wraps secrets under a token key.
No devices, no network, no station database; requests come as `station.messages` over one unix socket.
"""
