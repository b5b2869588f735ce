"""One module per subcommand: `HELP`, `arguments(parser)` and `run(args) -> exit code`. Imported when it is called.

Rooms that one subcommand is made of besides are named after it: ca_view.py is of `hallmark ca`.
"""
