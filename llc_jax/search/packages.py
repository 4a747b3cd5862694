"""Packages that only some formats need."""

import importlib
from types import ModuleType

from llc_jax.errors import InputError


def import_package(module: str, name: str) -> ModuleType:
    """Imports a module.

    Args:
      module: to import.
      name: of the package that has it, for pip.

    Raises:
      InputError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"This needs {name}: pip install {name}.") from error
