"""Time and memory, of countvae and of others, on one machine in one run."""
