"""Benchmarks: one module per claim, peers side by side in one run."""
