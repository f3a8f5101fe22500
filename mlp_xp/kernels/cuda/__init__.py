"""The operations on CuPy, and the CUDA sources."""
