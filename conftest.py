"""Names that the doctests use without importing them, and collections of garbage that are quick."""

import gc
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    # The process that hands the tests out to others needs none of these, and they take seconds to import.
    import torch

    import rbp_lightning

    doctest_namespace["torch"] = torch
    doctest_namespace.update({name: getattr(rbp_lightning, name) for name in rbp_lightning.__all__})


def pytest_collection_finish() -> None:
    """Keeps the collections of garbage from going through all that has been loaded by now."""
    gc.collect()
    gc.freeze()
