"""The operations on NumPy."""
