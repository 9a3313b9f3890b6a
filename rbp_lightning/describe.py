"""Objects as they would stand in a config."""

import inspect
from typing import Any

from rbp_lightning.solvers import FixedPointSolver


def describe(configured: object) -> dict[str, Any]:
    """Describes an object by its class and the arguments it was made with, in plain types.

    Args:
        configured: An object; constructor arguments that it does not keep in attributes of the same name are left out.

    Returns:
        ``class_path`` and ``init_args``, as in a YAML config.

    Example:
        >>> describe(Picard(max_steps=20))["init_args"]
        {'max_steps': 20, 'tol': 1e-06, 'check_every': 10}
    """
    init_args = {}
    for name in inspect.signature(type(configured)).parameters:
        if hasattr(configured, name):
            value = getattr(configured, name)
            plain = value is None or isinstance(value, bool | int | float | str)
            nested = describe(value) if isinstance(value, FixedPointSolver) else repr(value)
            init_args[name] = value if plain else nested
    return {"class_path": f"{type(configured).__module__}.{type(configured).__qualname__}", "init_args": init_args}
