"""Models to other programs and back."""
