"""Runs: folders, checkpoints, reports."""
