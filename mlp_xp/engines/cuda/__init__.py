"""Whole epochs on a GPU."""
