"""The `sensai` command: one file per command, put together in `sensai_serve.cli.main`."""
