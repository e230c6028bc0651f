"""``python -m sensai_serve`` is the `sensai` command."""

from sensai_serve.cli import main

main()
