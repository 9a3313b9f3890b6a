"""Logged values of hyperparameters."""

from collections.abc import Iterable, Mapping

from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from models.hyperparameters import Examples, ExampleWeights, Hyperparameter


def scalars_of(group: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns scalars unchanged, and the minimum, mean and maximum of vectors.

    Args:
        group: Prefix of the names.
        values: Scalars and vectors by name.

    Example:
        >>> scalars_of("a", {"rate": torch.tensor(0.1), "weight": torch.tensor([1.0, 3.0])})
        {'a/rate': tensor(0.1000), 'a/weight/min': tensor(1.), 'a/weight/mean': tensor(2.), 'a/weight/max': tensor(3.)}
    """
    scalars: dict[str, Tensor] = {}
    for name, value in values.items():
        tag = f"{group}/{name}"
        if value.dim() == 0:
            scalars[tag] = value
        else:
            scalars |= {f"{tag}/min": value.min(), f"{tag}/mean": value.mean(), f"{tag}/max": value.max()}
    return scalars


def clean_auroc(hyperparameters: Iterable[Hyperparameter], training: Examples) -> Tensor | None:
    """Returns the area under the ROC curve of detecting clean labels by example weights.

    Args:
        hyperparameters: The hyperparameters.
        training: The training split, where ``clean`` says whether a label is the original one.

    Returns:
        The area; ``None`` if there are no example weights or no labels known to be wrong.
    """
    if "clean" not in training or bool(training["clean"].all()):
        return None
    for hyperparameter in hyperparameters:
        if isinstance(hyperparameter, ExampleWeights):
            return binary_auroc(hyperparameter.weights().detach(), training["clean"].long())
    return None
