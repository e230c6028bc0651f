"""Picture files to pixels: which formats are read, what a file may cost, its colours as 8 bits, its size."""
