"""Evaluations: separate loops over batches, each returning a dict of floats, and metrics."""
