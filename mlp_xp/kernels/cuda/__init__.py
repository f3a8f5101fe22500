"""The operations on CuPy arrays, and the CUDA sources."""
