"""Benchmarks of the methods, as library functions that return their figures."""
