"""The Hopfield memory: its update, gradients and pictures."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch.nn.functional import l1_loss

from datamodules import ImagePatterns
from models import HopfieldMemory
from models.annotated import MARGIN
from models.hopfield_cell import HopfieldCell
from models.recall_pictures import WRONG, recall_grid
from rbp_lightning import BPTT, CGRBP, EquilibriumPropagation, JacobianOperator, Picard, UserError


def test_the_free_units_follow_the_whole_network_with_clamped_pixels() -> None:
    torch.manual_seed(0)
    cell = HopfieldCell(num_pixels=3, num_hidden=4, decay=0.3, gain=1.7, weight_scale=1.0).double()
    images = torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64)
    free = torch.randn(1, 7, dtype=torch.float64)
    state = torch.cat([2 * images - 1, free], dim=1)
    whole = (1 - 0.3) * state + torch.sigmoid(1.7 * state) @ cell.weight.T
    torch.testing.assert_close(cell.clamp(images)(free), whole[:, 3:])


def test_weights_stay_symmetric_without_self_loops() -> None:
    torch.manual_seed(0)
    memory = HopfieldMemory(num_pixels=6, num_hidden=5)
    before = memory.cell.weight.detach().clone()
    optimizer = torch.optim.Adam(memory.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        memory.outputs(memory(torch.rand(4, 6))).sum().backward()
        optimizer.step()
    weight = memory.cell.weight
    assert not torch.equal(weight, before)
    assert torch.equal(weight, weight.T)
    assert torch.equal(weight.diagonal(), torch.zeros(17))


def test_the_gradient_reaches_every_weight_and_is_exact() -> None:
    torch.manual_seed(0)
    memory = HopfieldMemory(num_pixels=4, num_hidden=6, weight_scale=0.1).double()
    images, clean = torch.rand(5, 4).double(), torch.rand(5, 4).double()
    found = []
    for estimator in (BPTT(Picard(300, tol=0)), CGRBP(30, 1e-12, solver=Picard(300, tol=0))):
        memory.estimator = estimator
        memory.zero_grad()
        l1_loss(memory.outputs(memory(images)), clean).backward()
        found.append(memory.cell.parametrizations.weight.original.grad.clone())
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-12)
    assert bool((found[0].triu(1)[:, 4:] != 0).sum() > 0.9 * (found[0].triu(1)[:, 4:].numel() / 2))


def test_the_energy_dynamics_have_the_same_fixed_point_and_a_symmetric_jacobian() -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 4, dtype=torch.float64)
    cells = []
    for dynamics in ("leaky", "energy"):
        torch.manual_seed(1)
        cells.append(HopfieldCell(4, 6, gain=1.5, weight_scale=0.2, dynamics=dynamics).double())
    state = torch.zeros(3, 10, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(300):
            state = cells[0].clamp(images)(state)
    leaky, energy = (JacobianOperator.at(cell.clamp(images), state, 1).dense() for cell in cells)
    torch.testing.assert_close(cells[1].clamp(images)(state), state)
    torch.testing.assert_close(energy, energy.mT)
    assert float((leaky - leaky.mT).norm() / leaky.norm()) > 1e-2
    identity, rates = torch.eye(10, dtype=torch.float64), torch.sigmoid(1.5 * state)
    slopes = 4 * rates * (1 - rates)
    torch.testing.assert_close(energy, identity - slopes[..., None] * (identity - leaky))


def test_equilibrium_propagation_gives_the_same_gradient_as_cgrbp() -> None:
    images, clean = torch.rand(5, 4).double(), torch.rand(5, 4).double()
    found = []
    for dynamics, estimator in (
        ("leaky", CGRBP(60, 1e-12, solver=Picard(500, tol=0))),
        ("energy", EquilibriumPropagation(1e-4, nudged_solver=Picard(1000, 1e-5), solver=Picard(500, tol=0))),
    ):
        torch.manual_seed(0)
        memory = HopfieldMemory(num_pixels=4, num_hidden=6, weight_scale=0.1, dynamics=dynamics).double()
        memory.estimator = estimator
        l1_loss(memory.outputs(memory(images)), clean).backward()
        found.append(memory.cell.parametrizations.weight.original.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match=r"num_pixels=4.*set num_pixels to 9"):
        HopfieldMemory(num_pixels=4)(torch.zeros(1, 3, 3))


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_pixels": 0},
        {"num_hidden": -1},
        {"decay": 0.0},
        {"decay": 1.5},
        {"gain": 0.0},
        {"weight_scale": -1.0},
        {"learning_rate": 0.0},
        {"dynamics": "gradient"},
        {"learning_rate": float("nan")},
    ],
)
def test_arguments_are_checked_at_once(arguments) -> None:
    with pytest.raises(UserError, match=f"{next(iter(arguments))}="):
        HopfieldMemory(**arguments)


def test_the_recall_grid_shows_each_image_in_its_row() -> None:
    clean, corrupted, recalled = torch.rand(3, 2, 5, 4).unbind()
    grid = recall_grid(clean, corrupted, recalled)
    assert grid.shape == (21, 12, 3)

    def grey(images: torch.Tensor) -> np.ndarray:
        return (255 * images).byte().numpy()[..., None].repeat(3, axis=2)

    assert np.array_equal(grid[1:6, 1:5], grey(clean[0]))
    assert np.array_equal(grid[8:13, 7:11], grey(corrupted[1]))
    wrong = ((clean[1] > 0.5) != (recalled[1] > 0.5)).numpy()[..., None]
    assert 0 < wrong.sum() < 20
    assert np.array_equal(grid[15:20, 7:11], np.where(wrong, WRONG, grey(recalled[1])))


def test_the_logged_picture_shows_the_recalled_images(tmp_path) -> None:
    torch.manual_seed(0)
    memory, data = HopfieldMemory(num_hidden=8), ImagePatterns(eval_draws=1, batch_size=10)
    trainer = Trainer(accelerator="cpu", logger=TensorBoardLogger(tmp_path), enable_progress_bar=False)
    trainer.validate(memory, data, verbose=False)
    batch = data.corrupt(next(iter(data.val_dataloader())), "val")
    recalled = memory.outputs(memory(batch["corrupted"])).reshape(10, 8, 8) > 0
    with Image.open(f"{trainer.log_dir}/recall.png") as picture:
        pixels = np.asarray(picture)
    # The text is above and to the left of the images, which are enlarged ten times.
    shown = pixels[-MARGIN - 300 : -MARGIN, -MARGIN - 1000 : -MARGIN][5::10, 5::10]
    assert np.array_equal(shown, recall_grid(batch["clean"], batch["corrupted"], recalled.float()))
    assert (pixels[: -MARGIN - 300] < 128).any()
    for row in range(3):
        assert (pixels[-MARGIN - 300 + 100 * row : -MARGIN - 200 + 100 * row, : -MARGIN - 1000] < 128).any()
