"""Convert models for other programs, and back."""
