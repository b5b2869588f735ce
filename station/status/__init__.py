"""What one can see of a running station, and the few things one may tell it: view types, server, client, panel.

Nothing here decides about units: the server shows what the supervisor and the store give, the panel shows what
the server gives. No credentials, no device, no writes to the database.
"""
