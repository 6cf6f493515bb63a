"""Evaluation: scoring, suites, paired comparisons, the gate."""
