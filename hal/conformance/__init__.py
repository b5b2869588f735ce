"""Contract tests that every driver can run, ours or not: one module an interface, plain functions that assert.

A test suite calls them with something that opens the driver under test, e.g. `conformance.tpm_transport.check(open)`.
They import no test framework.
"""
