"""Networks and servers that benchmarks measure or compare with."""
