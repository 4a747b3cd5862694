"""The paper's tables, computed anew: python -m llc_jax.reproduce table1 --on=features."""
