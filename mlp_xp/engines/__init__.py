"""Engines: where rows are, and where updates are computed."""
