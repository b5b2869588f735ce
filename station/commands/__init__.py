"""One module per subcommand: `HELP`, `arguments(parser)` and `run(args) -> exit code`. Imported when it is called."""
