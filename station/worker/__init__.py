"""The worker process: one board, one visit. It has its device and its socket to the station, and nothing else:
no database, no credentials, no network, no other nest's device, an empty environment.
"""
