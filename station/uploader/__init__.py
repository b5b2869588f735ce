"""The uploader process: leases enrollments over the outbox socket, hands them to sinks, reports what became of them.

The only process with a network and cloud credentials; it has no devices, no token and no database. It may be killed at
any point: what it had leased is leased again, and a sink that knows an enrollment already says so.
"""
