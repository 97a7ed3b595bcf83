"""Benchmarks of labelsmooth: `python -m benchmarks --help`."""
