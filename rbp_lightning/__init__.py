"""Fixed points and their gradients: deep equilibrium models and implicit layers for PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rbp_lightning.version import __version__

__all__ = ["__version__"]

if TYPE_CHECKING:
    from rbp_lightning import api
    from rbp_lightning.api import *  # noqa: F403

    __all__ += api.__all__
else:
    del __all__

    def __getattr__(name: str) -> Any:
        """Imports the public names on first use: importing PyTorch takes seconds, and --help does not need it."""
        api = import_module("rbp_lightning.api")
        globals().update({public: getattr(api, public) for public in api.__all__})
        globals()["__all__"] = sorted([*api.__all__, "__version__"])
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__() -> list[str]:
        return __getattr__("__all__")
