"""A whole line on one machine: boards, CA token, cloud and the station's own processes, laid out below one folder.

What systemd and a factory do for a real station is done here for a bench: the demo, the crash runs, the benchmarks and
customers without hardware stand on it. It knows the station by its command line and files only.
"""
