"""Rows: data as training takes them."""
