"""The demo: boards get their identity before your eyes, then again while processes are killed under them.

It stands on the bench and on Hallmark's command line, and judges by what came out: files, ledger, cloud.
"""
