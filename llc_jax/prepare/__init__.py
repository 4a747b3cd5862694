"""Making data ready, once, before any run: what `llc prepare` does."""
