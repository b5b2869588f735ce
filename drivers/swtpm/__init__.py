"""A software TPM for tests and bench mode: manufactured with an EK certificate of its own, run as a child process.

Nothing here may end up in production: the driver is `bench_only`. No knowledge of what the commands mean comes in.
"""
