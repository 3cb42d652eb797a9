"""Benchmarks of tvmx; run them from a checkout, see ``docs/benchmarks.md``."""
