"""One script a question; see `benchmarks/README.md`."""
