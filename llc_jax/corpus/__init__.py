"""A corpus in shards: encoded by any number of tasks, each of which can be stopped at any time."""
