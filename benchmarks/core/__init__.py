"""What the core must show, one script a claim; see `python -m benchmarks.core.NAME --help`."""
