"""Work on many queries, in the threads of all cores."""

import concurrent.futures
import os
from collections.abc import Callable

from llc_jax.search import scan

# Queries that a thread answers in one call, at most.
_BATCH = scan.QUERY_GROUP


def in_threads(work: Callable[[slice], None], count: int) -> None:
    """Does the work for batches of `count` queries, on all cores."""
    cores = os.cpu_count() or 1
    size = max(1, min(-(-count // cores), _BATCH))
    batches = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    if len(batches) <= 1:
        for batch in batches:
            work(batch)
        return
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        for _ in pool.map(work, batches):
            pass
