"""Reports: tables, plots, and one HTML page for each run."""
