"""Weights of other programs: PyTorch files to ours, and back."""
