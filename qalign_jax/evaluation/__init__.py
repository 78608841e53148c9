"""Scoring: readers of answers, benchmarks, and the evaluation of one system on one benchmark."""
