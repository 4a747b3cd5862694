"""From a config to a run: planned, then done."""
