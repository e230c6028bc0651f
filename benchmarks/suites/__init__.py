"""The benchmarks of ``sensai bench``, one file or folder each."""
