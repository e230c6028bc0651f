"""``python -m sensai_serve`` is the `sensai` command."""

from sensai_serve.cli.main import main

main()
