"""How XLA compiles networks."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax

CPU_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"


def jit_network(function: Callable, **options: Any) -> Callable:
    """Jits a function that calls a network, for speed on a CPU too; takes `jax.jit`'s options.

    XLA gives some operations on a CPU to a library, YNNPACK. Some versions, such as that of
    jax 0.10, also give it convolutions, which then take twice as long. Here it gets the
    reductions alone. Where XLA_FLAGS names the option, nothing is changed.
    """
    return jax.jit(function, compiler_options=cpu_options(), **options)


@functools.cache
def cpu_options() -> dict[str, str] | None:
    """Returns the options of XLA for a network on a CPU, or None for the usual ones."""
    if jax.default_backend() != "cpu" or CPU_LIBRARY in os.environ.get("XLA_FLAGS", ""):
        return None
    options = {CPU_LIBRARY: "LIBRARY_FUSION_TYPE_REDUCE"}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # The option is experimental: other versions lack it.
        return None
    return options
