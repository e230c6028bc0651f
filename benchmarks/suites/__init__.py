"""The benchmarks of ``sensai bench``, one file or folder each.

Each has a function `command`, which typer makes a command of: its parameters are the options, its docstring the help.
The first line of the module's docstring is what ``sensai bench --help`` lists; it is read without an import.
"""
