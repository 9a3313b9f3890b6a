"""The consistency loss, which also trains on nodes without a label."""

import torch
from torch import Tensor


def consistency_loss(scores: list[Tensor], temperature: float) -> Tensor:
    """Computes the mean squared distance of predictions under several dropout masks from their sharpened mean.

    From GRAND (Feng et al., NeurIPS 2020, arXiv 2005.11079, equations 3 to 5).

    Args:
        scores: Class scores (logits) of all nodes, of shape ``[num_nodes, num_classes]``, one tensor for each mask.
        temperature: Sharpens the mean by the power 1 / temperature; 1 leaves it unchanged.

    Returns:
        The squared distance, averaged over nodes and masks. No gradient flows through the mean.

    Example:
        >>> consistency_loss([torch.tensor([[0.0, 0.0]])], temperature=0.5)
        tensor(0.)
    """
    predictions = [draw.softmax(1, dtype=torch.promote_types(draw.dtype, torch.float32)) for draw in scores]
    with torch.no_grad():
        mean = torch.stack(predictions).mean(0)
        # With the largest probability scaled to 1, small ones may underflow, but never all of them.
        powers = (mean / mean.amax(1, keepdim=True)) ** (1 / temperature)
        target = powers / powers.sum(1, keepdim=True)
    return torch.stack([(draw - target).square().sum(1).mean() for draw in predictions]).mean()
