"""One file a library, each set up as its own experts would; `make(problem, device, threads)` returns a contender."""
