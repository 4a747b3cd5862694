"""Times that alternate: each round measures every candidate once, on an idle machine."""

import statistics
import time
from collections.abc import Callable, Mapping

# Seconds before each call: the threads of a library keep cores busy a while after their work.
_PAUSE = 0.1


def medians(candidates: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Returns the median milliseconds of a call of each candidate, which waits for its result.

    Args:
      candidates: called in turn, first twice without a watch.
      seconds: the rounds go on for this long; there are at least three.
    """
    for call in (*candidates.values(), *candidates.values()):
        call()
    times = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, call in candidates.items():
            time.sleep(_PAUSE)
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}
