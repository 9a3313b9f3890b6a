"""A cell with feature maps of two resolutions."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from models.equilibrium_classifier.cell import POOLED, ImageCell, Norm, pooled, stem
from rbp_lightning import contractive, held
from rbp_lightning.errors import UserError
from rbp_lightning.pytree import State
from rbp_lightning.solvers import Update


class MultiscaleImageCell(ImageCell):
    """Two feature maps, one of half the other's resolution, that are combined at every step (as in MDEQ).

    fine <- relu(A * fine + B * larger(coarse) + d) and coarse <- relu(C * coarse + D * smaller(fine) + e), at once. d
    and e come from the stems, larger repeats pixels and smaller averages them, each scaled to norm 1, and the
    convolutions A, B, C and D have norms of at most ``bound / 2``. So do the four blocks of the Jacobian, and the
    update is a contraction with constant ``bound``. The state is a dict of both maps. This is a multiscale deep
    equilibrium model (Bai, Koltun and Kolter, NeurIPS 2020, arXiv 2006.08656) with bounded norms, not normalisation.

    Args:
        num_channels: Number of channels of an image.
        num_classes: Number of classes.
        num_hidden: Number of channels of each feature map.
        halvings: Number of times that the sides of an image are halved before it is injected.
        norm: The norm in which the update is a contraction.
        bound: The contraction constant, in (0, 1).
        depth: Number of convolutions at each resolution of the stem; ``depth - 1`` more precede the readout.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> cell = MultiscaleImageCell(num_hidden=8)
        >>> update, state = cell.start(torch.ones(4, 1, 28, 28))
        >>> {name: tuple(leaf.shape) for name, leaf in update(state).items()}
        {'fine': (4, 8, 14, 14), 'coarse': (4, 8, 7, 7)}
    """

    def __init__(
        self,
        num_channels: int = 1,
        num_classes: int = 10,
        num_hidden: int = 24,
        halvings: int = 1,
        norm: Norm = "infinity",
        bound: float = 0.9,
        depth: int = 1,
    ) -> None:
        super().__init__(num_channels, num_classes, num_hidden, halvings, norm, bound, depth)
        self.stem = stem(num_channels, num_hidden, halvings, depth)
        self.smaller_stem = stem(num_hidden, num_hidden, 1, depth)
        # Repeating each pixel four times doubles the Euclidean norm, and keeps the largest entry.
        self._growth = 1.0 if norm == "infinity" else 2.0
        convolutions = {
            name: nn.Conv2d(num_hidden, num_hidden, 3, padding=1, bias=False)
            for name in ("fine", "coarse", "to_fine", "to_coarse")
        }
        self.hidden = contractive(nn.ModuleDict(convolutions), bound / 2, norm)
        self.pooled = nn.ModuleDict({"fine": pooled(num_hidden, depth), "coarse": pooled(num_hidden, depth)})
        self.readout = nn.Linear(2 * num_hidden * POOLED**2, num_classes)

    def start(self, images: Tensor) -> tuple[Update, State]:
        """Computes d and e, and returns the update and a state of zeros.

        Raises:
            UserError: If the fine feature map has odd sides.
        """
        fine = self.stem(images)
        if fine.shape[2] % 2 or fine.shape[3] % 2:
            raise UserError(
                f"MultiscaleImageCell: images of {images.shape[2]} x {images.shape[3]} pixels give feature maps of "
                f"{fine.shape[2]} x {fine.shape[3]} with halvings={self.halvings}, whose sides must be even: change "
                "halvings, or pad the images."
            )
        coarse = self.smaller_stem(torch.relu(fine))

        def update(state: dict[str, Tensor]) -> dict[str, Tensor]:
            larger = interpolate(state["coarse"], scale_factor=2) / self._growth
            smaller = avg_pool2d(state["fine"], 2) * self._growth
            return {
                "fine": torch.relu(self.hidden["fine"](state["fine"]) + self.hidden["to_fine"](larger) + fine),
                "coarse": torch.relu(
                    self.hidden["coarse"](state["coarse"]) + self.hidden["to_coarse"](smaller) + coarse
                ),
            }

        return held(update, self.hidden), {"fine": torch.zeros_like(fine), "coarse": torch.zeros_like(coarse)}

    def scores(self, state: State) -> Tensor:
        """Returns a linear map of both pooled feature maps."""
        features = torch.cat([self.pooled[name](state[name]) for name in ("fine", "coarse")], dim=1)
        scores: Tensor = self.readout(features)
        return scores
