"""Reports of the results of finished runs."""
