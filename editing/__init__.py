"""Facts, models, editors and evals: a library that a notebook can use alone."""
