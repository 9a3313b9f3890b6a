"""The equilibrium classifier and its image cells."""

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch.nn.functional import conv2d, cross_entropy
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from datamodules import LabelledImages
from models import ConvolutionalImageCell, EquilibriumClassifier, MultiscaleImageCell
from models.equilibrium_classifier.pictures import WrongImages, titled
from rbp_lightning import BPTT, GMRES, JFB, Implicit, Picard, UserError
from tests.cli.runs import Run, Zygote
from tests.images import pixels_of
from tests.training import QUIET, fit, read_events

CELLS = [ConvolutionalImageCell, MultiscaleImageCell]
NORMS = {"spectral": 2, "frobenius": 2, "infinity": float("inf")}


def classifier(make, estimator=None, **arguments) -> EquilibriumClassifier:
    torch.manual_seed(0)
    cell = make(num_channels=2, num_classes=3, num_hidden=2, halvings=1, **arguments)
    model = EquilibriumClassifier(cell).double()
    model.estimator = estimator or JFB(Picard(tol=1e-12, max_steps=500))
    return model


def images_of(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", CELLS)
def test_the_update_is_a_contraction_within_the_bound(make, norm) -> None:
    cell = classifier(make, norm=norm, bound=0.8).cell
    with torch.no_grad():
        for parameter in cell.hidden.parameters():
            parameter.uniform_(0, 100)  # far above the bound
    update, zeros = cell.start(images_of(1))
    leaves, structure = tree_flatten(zeros)
    sizes = [leaf.numel() for leaf in leaves]

    def flat_update(flat: torch.Tensor) -> torch.Tensor:
        parts = [part.view_as(leaf) for part, leaf in zip(flat.split(sizes), leaves, strict=True)]
        return torch.cat([leaf.flatten() for leaf in tree_flatten(update(tree_unflatten(parts, structure)))[0]])

    # At large positive states every ReLU is active, so the Jacobian is that of the linear maps.
    state = 1e6 * torch.rand(sum(sizes), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(flat_update, state)
    assert 0.3 < float(torch.linalg.matrix_norm(jacobian, NORMS[norm])) <= 0.8 + 1e-9


def test_the_update_equals_its_formula() -> None:
    cell, images = classifier(ConvolutionalImageCell).eval().cell, images_of()
    update, zeros = cell.start(images)
    assert zeros.shape == (3, 2, 4, 4)
    assert not zeros.any()
    state = torch.randn_like(zeros)
    expected = (conv2d(state, cell.hidden.weight, padding=1) + cell.stem(images)).relu()
    torch.testing.assert_close(update(state), expected)


def test_the_multiscale_update_equals_its_formula() -> None:
    cell, images = classifier(MultiscaleImageCell, norm="spectral").eval().cell, images_of()
    update, zeros = cell.start(images)
    state = tree_map(torch.randn_like, zeros)
    fine, coarse = state["fine"], state["coarse"]
    assert [leaf.shape[2:] for leaf in (fine, coarse)] == [(4, 4), (2, 2)]

    def conv(name: str, value: torch.Tensor) -> torch.Tensor:
        return conv2d(value, cell.hidden[name].weight, padding=1)

    larger = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    smaller = fine.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    torch.testing.assert_close((larger / 2).norm(), coarse.norm())
    drive = cell.stem(images)
    expected = {
        "fine": (conv("fine", fine) + conv("to_fine", larger / 2) + drive).relu(),
        "coarse": (conv("coarse", coarse) + conv("to_coarse", smaller * 2) + cell.smaller_stem(drive.relu())).relu(),
    }
    torch.testing.assert_close(update(state), expected)


@pytest.mark.parametrize("make", CELLS)
def test_the_implicit_gradient_equals_that_of_bptt(make) -> None:
    found = []
    for estimator in (Implicit(GMRES(tol=1e-12), Picard(tol=1e-13, max_steps=500)), BPTT(Picard(300, tol=0))):
        model = classifier(make, estimator, norm="infinity", bound=0.7).eval()
        scores = model.cell.scores(model(images_of()).state)
        cross_entropy(scores, torch.tensor([0, 1, 2])).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert float(sum(gradient.norm() for gradient in found[0])) > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[EquilibriumClassifier, Trainer, LabelledImages]:
    """A classifier trained on scikit-learn's digits for a few seconds, with its Trainer and data."""
    seed_everything(0, verbose=False)
    model = EquilibriumClassifier(ConvolutionalImageCell(num_hidden=16), learning_rate=1e-2)
    data = LabelledImages(num_val=10, shift=0.5)
    logger = TensorBoardLogger(tmp_path_factory.mktemp("trained"))
    trainer = fit(
        model, data, JFB(Picard(50, tol=1e-2, check_every=2)), max_epochs=4, limit_val_batches=0, logger=logger
    )
    return model, trainer, data


def test_a_short_training_learns_the_digits_and_logs_wrong_images(trained) -> None:
    model, trainer, data = trained
    (metrics,) = trainer.test(model, data, verbose=False)
    (pictures,) = [one for one in trainer.callbacks if isinstance(one, WrongImages)]
    assert metrics["test/accuracy"] > 0.9
    assert metrics["test/residual"] <= 1e-2
    model.eval()
    with torch.no_grad():
        scores = torch.cat([model.cell.scores(model(b["images"]).state) for b in data.test_dataloader()])
    labels, classes = data.splits["test"]["labels"], scores.argmax(1)
    assert metrics["test/accuracy"] == pytest.approx(float((classes == labels).float().mean()))
    assert metrics["test/loss"] == pytest.approx(float(cross_entropy(scores, labels)), rel=1e-4)

    wrong = (classes != labels).nonzero()[:, 0]
    assert 0 < len(pictures.wrong) == min(len(wrong), 20)
    for (image, label, predicted_class), index in zip(pictures.wrong, wrong, strict=False):
        assert torch.equal(16 * image, data.splits["test"]["images"][index].float())
        assert (label, predicted_class) == (int(labels[index]), int(classes[index]))
    (event,) = read_events(trainer).Images("test/wrong")
    titled(pictures.wrong).savefig(drawn := io.BytesIO(), dpi="figure")
    for kept in (io.BytesIO(event.encoded_image_string), Path(trainer.log_dir) / "wrong.png"):
        assert np.array_equal(pixels_of(kept), pixels_of(drawn))

    predicted = torch.cat(trainer.predict(model, data))
    assert torch.equal(predicted, classes)
    assert np.loadtxt(Path(trainer.log_dir) / "classes.txt", dtype=int).tolist() == classes.tolist()


@pytest.mark.parametrize(
    "make",
    [
        partial(MultiscaleImageCell, halvings=0, depth=2),
        ConvolutionalImageCell,
        partial(ConvolutionalImageCell, depth=2),
    ],
)
def test_cells_train_and_load_from_checkpoints(make, tmp_path) -> None:
    model = EquilibriumClassifier(make(num_hidden=4))
    data = LabelledImages(num_train=20, num_val=4, num_test=8, batch_size=10)
    before = [parameter.clone() for parameter in model.parameters()]
    trainer = fit(model, data, JFB(Picard(50, tol=1e-2)))
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = EquilibriumClassifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    again.estimator = model.estimator
    (batch,) = data.test_dataloader()
    with torch.no_grad():
        one, other = (each.eval().cell.scores(each(batch["images"]).state) for each in (model, again))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bound": 1.0}, "bound=1.0 must be below 1"),
        ({"bound": 0.0}, "bound=0.0"),
        ({"norm": "nuclear"}, "norm='nuclear'"),
        ({"num_hidden": 0}, "num_hidden=0"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"halvings": -1}, "halvings=-1"),
        ({"depth": 0}, "depth=0"),
    ],
)
@pytest.mark.parametrize("make", CELLS)
def test_arguments_are_checked_at_once(make, arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        make(**arguments)


def test_images_and_labels_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(UserError, match=r"learning_rate=0\.0"):
        EquilibriumClassifier(ConvolutionalImageCell(), learning_rate=0.0)
    model = classifier(MultiscaleImageCell)
    with pytest.raises(UserError, match=r"num_channels=2.*\[3, 1, 8, 8\]"):
        model(images_of()[:, :1])
    with pytest.raises(UserError, match=r"6 x 8 .* 3 x 4 .*halvings=1"):
        model(images_of()[:, :, :6])
    with pytest.raises(UserError, match=r"num_classes=3.*set num_classes to 4"):
        model.training_step({"images": images_of(), "labels": torch.tensor([0, 1, 3])}, 0)


def metrics_with(processes: int) -> dict[str, float]:
    """The test metrics of an untrained network on an odd number of images."""
    torch.manual_seed(0)
    model = EquilibriumClassifier(ConvolutionalImageCell(num_hidden=4)).double()
    data = LabelledImages(num_test=7, eval_batch_size=2)
    strategy = {"strategy": "ddp_fork"} if processes > 1 else {}
    trainer = Trainer(**QUIET, devices=processes, precision="64-true", callbacks=[JFB(Picard(tol=1e-10))], **strategy)
    (metrics,) = trainer.test(model, data, verbose=False)
    return {name: metrics[name] for name in ("test/loss", "test/accuracy")}


@pytest.mark.slow
def test_two_processes_test_each_image_once(zygote: Zygote, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    lines = ["import json", "from tests.models.test_equilibrium_classifier import metrics_with"]
    script.write_text("\n".join([*lines, "open('metrics.json', 'w').write(json.dumps(metrics_with(2)))"]))
    run = Run(zygote, tmp_path, [], {}, script)
    assert run.end(300) == 0, run.error()[-3000:]
    assert json.loads((tmp_path / "metrics.json").read_text()) == pytest.approx(metrics_with(1), rel=1e-9)
