"""Benchmarks: `mlp_xp` beside its peers at their best, every result checked against float64."""
