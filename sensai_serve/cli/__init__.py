"""The `sensai` command: one file per group of commands, put together in `sensai_serve.cli.main`."""
