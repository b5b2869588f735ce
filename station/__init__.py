"""What happens to a unit, in which order, and what is remembered. Hardware is met only through `hal`.

A unit's trip, and where to follow it:

    a board is seen at a place         supervisor.py, places.py
    its nest begins a visit            nest/nest.py, once the token has signed a canary
    a worker serves the board          worker/process.py: one board, one socket, nothing else
    it walks through the recipe        runner.py: probe, intent, apply, verify, result; the trip in one file
      each step's actions              steps/: flash, tpm_identity, tpm_ownership, certificate, configure, ...
    the station answers its worker     nest/service.py: nothing is told that isn't durable
      what is remembered               store/: one database, one writer; passing.py makes a PASS
      who issues certificates          signer/: a process of its own with the token and a ledger
    the cloud learns of the unit       outbox.py, uploader/
    people look                        overview.py, status/

Each process starts in `commands/`; what they say to each other is in `messages/`, how in `wire.py`.
"""
