"""The equilibrium reasoner and its puzzle cells."""

import io
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageSequence
from torch.nn.functional import conv1d, conv2d, cross_entropy

from datamodules import Mazes, PrefixSums
from datamodules.puzzles import IGNORED
from models import AttentionCell, ConvolutionalCell, EquilibriumReasoner, TwoLevelCell
from models.annotated import MARGIN
from models.equilibrium_reasoner.curves import curves
from models.equilibrium_reasoner.pictures import CLASSES, HEIGHT, OUTSIDE, PANELS, WIDTH, WRONG
from rbp_lightning import BPTT, JFB, TBPTT, Failure, FailurePolicy, NeumannRBP, Picard, UserError, ignoring
from tests.cli.runs import Run
from tests.images import pixels_of
from tests.training import make_trainer, read_events


def reasoner(estimator=None, dims: int = 1, **arguments) -> EquilibriumReasoner:
    torch.manual_seed(0)
    cell = ConvolutionalCell(num_inputs=2, num_classes=3, num_hidden=5, dims=dims)
    model = EquilibriumReasoner(cell, **arguments).double()
    model.estimator = estimator or NeumannRBP(0, solver=Picard(max_steps=6, tol=0))
    return model


def batch_of(dims: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    positions = [7] * dims
    inputs = torch.randn(4, 2, *positions, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (4, *positions), generator=generator)
    return {"inputs": inputs, "targets": targets, "size": torch.full((4,), 7)}


@pytest.mark.parametrize("dims", [1, 2])
def test_the_update_equals_its_formula(dims) -> None:
    cell, inputs = reasoner(dims=dims).cell, batch_of(dims)["inputs"]
    convolve = {1: conv1d, 2: conv2d}[dims]
    block = cell.block
    update, state = cell.start(inputs)
    assert not state.any()
    state = torch.randn_like(state)

    def layer(module, value):
        return convolve(value, module.weight, module.bias, padding=1)

    hidden = layer(block.inject, torch.cat([state, inputs], 1)).relu()
    hidden = (hidden + layer(block.second, layer(block.first, hidden).relu())).relu()
    expected = hidden / (hidden.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(update(state), expected)


@pytest.mark.parametrize("dims", [1, 2])
def test_a_mask_keeps_the_state_at_zero(dims) -> None:
    torch.manual_seed(0)
    cell = ConvolutionalCell(num_inputs=2, num_classes=3, num_hidden=5, dims=dims, mask_channel=1).double()
    inputs = batch_of(dims)["inputs"]
    inputs[:, 1] = (inputs[:, 1] > 0).double()
    without = ConvolutionalCell(num_inputs=2, num_classes=3, num_hidden=5, dims=dims).double()
    without.load_state_dict(cell.state_dict())
    state = torch.randn_like(cell.start(inputs)[1])
    masked, whole = (one.start(inputs)[0](state) for one in (cell, without))
    kept = inputs[:, 1:].bool().expand_as(masked)
    torch.testing.assert_close(masked[kept], whole[kept])
    assert whole[~kept].any()
    assert not masked[~kept].any()


def test_attention_depends_on_all_positions_and_their_order() -> None:
    torch.manual_seed(0)
    cell = AttentionCell(num_inputs=2, num_classes=3, num_positions=6, num_hidden=8, num_heads=2).double()
    inputs = torch.randn(1, 2, 2, 3, dtype=torch.float64)
    update, state = cell.start(inputs)
    state = torch.randn_like(state)
    jacobian = torch.autograd.functional.jacobian(
        lambda h: update(h).square().sum((0, 1)).flatten() + update(h)[0, 0].flatten(), state
    )
    assert (jacobian.abs().amax((1, 2)) > 0).all()
    hidden = state.flatten(2)
    parts = cell.queries_keys_values(hidden)[0].reshape(3, 2, 4, 6)
    heads = [values @ (queries.T @ keys / 2).softmax(1).T for queries, keys, values in zip(*parts, strict=True)]
    expected = cell.mixed(torch.cat(heads)[None])
    torch.testing.assert_close(cell._attention(hidden), expected)
    swapped, _ = cell.start(inputs.flip(3))
    assert not torch.allclose(swapped(state.flip(3)), update(state).flip(3))
    with pytest.raises(UserError, match=r"num_positions=6.*set it to 4"):
        cell.start(torch.zeros(1, 2, 2, 2))
    with pytest.raises(UserError, match="num_heads=3 does not divide num_hidden=8"):
        AttentionCell(2, 3, 6, num_hidden=8, num_heads=3)


def test_the_two_level_update_equals_its_formula() -> None:
    torch.manual_seed(0)
    cell = TwoLevelCell(num_inputs=2, num_classes=3, num_hidden=4, low_steps=3).double()
    inputs = torch.randn(2, 2, 5, dtype=torch.float64)
    update, state = cell.start(inputs)
    state = {name: torch.randn_like(leaf) for name, leaf in state.items()}
    low, high = state["low"], state["high"]
    for _ in range(3):
        low = cell.low(low, cell.low.drive(torch.cat([high, inputs], 1)))
    high = cell.high(high, cell.high.drive(low))
    torch.testing.assert_close(update(state), {"low": low, "high": high})
    torch.testing.assert_close(cell.scores(update(state)), cell.readout(high))


@pytest.mark.parametrize("make", [ConvolutionalCell, TwoLevelCell, partial(AttentionCell, num_positions=7)])
def test_cells_train_and_load_from_checkpoints(make, tmp_path) -> None:
    cell = make(num_inputs=1, num_classes=2, num_hidden=8)
    model = EquilibriumReasoner(cell, segments=2, random_start=True, eval_steps=[2])
    data = PrefixSums(length=7, val_lengths=[7], test_lengths=[7], num_train=8, num_val=4, num_test=4)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    solver = Picard(max_steps=3, tol=0)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        callbacks=[TBPTT(2, solver), FailurePolicy(truncation_tol=1.0)],
        **quiet,
    )
    before = [parameter.clone() for parameter in model.parameters()]
    trainer.fit(model, data)
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = EquilibriumReasoner.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    again.estimator = model.estimator
    inputs = data.splits["test"][7]["inputs"]
    with torch.no_grad():
        (one,), (other,) = (list(each.eval().think(inputs, [3])) for each in (model, again))
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=0)


def test_thinking_evaluates_all_step_budgets_in_one_pass() -> None:
    model, inputs = reasoner(), batch_of()["inputs"]
    with torch.no_grad():
        for steps, scores, _ in model.think(inputs, [1, 4, 9]):
            alone = model(inputs, max_steps=steps)
            assert alone.steps == steps
            torch.testing.assert_close(scores, model.cell.scores(alone.state), rtol=0, atol=0)


def test_thinking_stops_once_the_state_no_longer_changes() -> None:
    model, inputs = reasoner(), batch_of()["inputs"]
    model.cell.block.inject.weight.data[:, : model.cell.num_hidden] = 0  # the same state after every step
    with torch.no_grad():
        taken = [(steps, fixed_point.steps) for steps, _, fixed_point in model.think(inputs, [1, 3, 10**8, 10**9])]
    assert taken == [(1, 1), (3, 2), (10**8, 2), (10**9, 2)]


def test_segments_pass_the_state_on_without_a_gradient() -> None:
    model, batch = reasoner(BPTT(Picard(max_steps=6, tol=0)), segments=3), batch_of()
    model.log = lambda *args, **kwargs: None
    loss = model.training_step(batch, 0)
    loss.backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    update, state = model.cell.start(batch["inputs"])
    total = 0
    for _ in range(3):
        state = state.detach()
        for _ in range(6):
            state = update(state)
        total = total + cross_entropy(model.cell.scores(state), batch["targets"]) / 3
    total.backward()
    torch.testing.assert_close(loss, total)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize(("make", "taped"), [(BPTT, 6), (partial(TBPTT, 2), 2)])
def test_losses_are_taken_at_the_chosen_steps_too(make, taped) -> None:
    model, batch = reasoner(make(solver=Picard(max_steps=6, tol=0)), segments=2, loss_steps=[2, 5]), batch_of()
    model.log = lambda *args, **kwargs: None
    with ignoring(Failure.TRUNCATED):
        loss = model.training_step(batch, 0)
        loss.backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    update, start = model.cell.start(batch["inputs"])
    total = 0
    for _ in range(2):
        for end in (2, 5, 6):
            state = start
            for step in range(end):
                if step == end - taped:  # the last steps before each loss are differentiated
                    state = state.detach()
                state = update(state)
            total = total + cross_entropy(model.cell.scores(state), batch["targets"]) / 6
        start = state.detach()
    total.backward()
    torch.testing.assert_close(loss, total)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_losses_after_the_drawn_number_of_steps_are_left_out() -> None:
    model, batch = reasoner(random_steps=[2, 6], loss_steps=[3, 5]), batch_of()
    logged = []
    model.log = lambda name, value, **kwargs: logged.append(float(torch.as_tensor(value).detach()))
    with torch.no_grad():
        update, state = model.cell.start(batch["inputs"])
        losses = []
        for _ in range(6):
            state = update(state)
            losses.append(float(cross_entropy(model.cell.scores(state), batch["targets"])))
    drawn = set()
    for _ in range(40):
        model.training_step(batch, 0)
        loss, steps, _ = logged[-3:]
        ends = {step for step in (3, 5) if step < steps} | {int(steps)}
        assert loss == pytest.approx(sum(losses[step - 1] for step in ends) / len(ends))
        drawn.add(steps)
    assert drawn == {2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    ("estimator", "message"), [(JFB(Picard(6, 0)), "below 6"), (TBPTT(4, Picard(9, 0)), "states_at has 3")]
)
def test_losses_that_the_estimator_cannot_take_are_refused(estimator, message) -> None:
    model = EquilibriumReasoner(ConvolutionalCell(num_inputs=1, num_classes=2, num_hidden=4), loss_steps=[3, 6])
    data = PrefixSums(length=7, val_lengths=[7], test_lengths=[7], num_train=8, num_val=4, num_test=4)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, callbacks=[estimator], **quiet)
    with pytest.raises(UserError, match=message):
        trainer.fit(model, data)


def test_the_jacobian_penalty_is_part_of_the_loss() -> None:
    model, batch = reasoner(BPTT(Picard(max_steps=6, tol=0)), jacobian_penalty=0.5), batch_of()
    logged = {}
    model.log = lambda name, value, **kwargs: logged.update({name: float(torch.as_tensor(value).detach())})
    loss = model.training_step(batch, 0)
    assert float(loss.detach()) == pytest.approx(logged["train/loss"] + 0.5 * logged["train/jacobian_penalty"])
    update, state = model.cell.start(batch["inputs"])
    with torch.no_grad():
        for _ in range(6):
            state = update(state)
    jacobian = torch.autograd.functional.jacobian(lambda h: update(h).sum(0), state)  # of all samples
    mean = float(jacobian.square().sum() / state.numel())
    of_samples = jacobian.movedim(2, 0).reshape(len(state), state[0].numel(), -1)
    deviation = float((of_samples @ of_samples.mT).norm()) * (2 / 40) ** 0.5 / state.numel()  # of a mean of 40 draws
    drawn = []
    for _ in range(40):
        model.training_step(batch, 0)
        drawn.append(logged["train/jacobian_penalty"])
    assert sum(drawn) / 40 == pytest.approx(mean, abs=4 * deviation)
    first = model.cell.block.first.weight
    (through,) = torch.autograd.grad(model.training_step(batch, 0), first)
    model.jacobian_penalty = 0.0
    assert not torch.allclose(through, torch.autograd.grad(model.training_step(batch, 0), first)[0])


def test_the_residual_penalty_is_that_of_the_loop_by_hand() -> None:
    model, batch = reasoner(BPTT(Picard(max_steps=6, tol=0)), residual_penalty=0.5), batch_of()
    model.log = lambda *args, **kwargs: None
    loss = model.training_step(batch, 0)
    update, state = model.cell.start(batch["inputs"])
    for _ in range(6):
        state = update(state)
    expected = cross_entropy(model.cell.scores(state), batch["targets"])
    expected = expected + 0.5 * (update(state) - state).square().mean()
    weights = list(model.parameters())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights))


def test_steps_and_initial_state_are_random_in_training_only() -> None:
    model, batch = reasoner(random_steps=[2, 9], random_start=True), batch_of()
    logged = []
    model.log = lambda name, value, **kwargs: logged.append((name, float(torch.as_tensor(value).detach())))
    for _ in range(40):
        model.training_step(batch, 0)
    steps = [value for name, value in logged if name == "train/steps"]
    assert set(steps) == set(range(2, 10))
    losses = [value for name, value in logged if name == "train/loss"]
    assert len(set(losses)) == 40
    with torch.no_grad():
        torch.testing.assert_close(model(batch["inputs"]).state, model(batch["inputs"]).state, rtol=0, atol=0)


def test_ignored_positions_do_not_count() -> None:
    model, batch = reasoner(), batch_of()
    logged = {}
    model.log = lambda name, value, **kwargs: logged.update({name: float(torch.as_tensor(value).detach())})
    right = model.predict_step(batch, 0)
    batch["targets"] = right.clone()
    batch["targets"][:, 2:] = IGNORED
    model.test_step(batch, 0)
    assert logged["test/exact_7"] == logged["test/accuracy_7"] == 1
    batch["targets"][0, 0] = (right[0, 0] + 1) % 3
    model.test_step(batch, 0)
    assert logged["test/exact_7"] == 0.75
    assert logged["test/accuracy_7"] == pytest.approx(7 / 8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[EquilibriumReasoner, Trainer, PrefixSums]:
    """A reasoner trained on prefix sums of eight bits, with its Trainer and data."""
    seed_everything(0, verbose=False)
    data = PrefixSums(
        length=8, val_lengths=[8], test_lengths=[8, 32], num_train=200, num_val=20, num_test=20, batch_size=50
    )
    cell = ConvolutionalCell(num_inputs=1, num_classes=2, num_hidden=16)
    model = EquilibriumReasoner(cell, learning_rate=5e-3, eval_steps=[8, 80])
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=80,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        logger=TensorBoardLogger(tmp_path_factory.mktemp("trained")),
        callbacks=[NeumannRBP(2, solver=Picard(max_steps=10, tol=0)), FailurePolicy(truncation_tol=1.0)],
        **quiet,
    )
    trainer.fit(model, data)
    return model, trainer, data


def test_a_short_training_solves_longer_puzzles_with_more_steps(trained) -> None:
    model, trainer, data = trained
    short, long = trainer.test(model, data, verbose=False)
    assert short["test/exact_8"] == 1
    assert long["test/exact_32_after_8"] < 0.5
    assert long["test/exact_32"] == long["test/exact_32_after_80"] >= 0.8


def test_a_test_draws_its_results_by_size_and_by_steps(trained) -> None:
    model, trainer, data = trained
    metrics = {name: value for found in trainer.test(model, data, verbose=False) for name, value in found.items()}
    solved, residuals = (
        {size: [[metrics[f"test/{what}_{size}_after_{steps}"] for steps in (8, 80)]] for size in (8, 32)}
        for what in ("exact", "residual")
    )
    expected = curves([8, 80], solved, residuals)
    by_size, by_steps, residual_by_steps = expected.axes
    assert by_size.lines[0].get_xydata().tolist() == [[size, 100 * metrics[f"test/exact_{size}"]] for size in (8, 32)]
    for panel, values, factor in ((by_steps, solved, 100), (residual_by_steps, residuals, 1)):
        assert [line.get_ydata().tolist() for line in panel.lines] == [
            [factor * value for value in values[size][0]] for size in (8, 32)
        ]
    expected.savefig(drawn := io.BytesIO(), dpi="figure")
    event = read_events(trainer).Images("test/curves")[-1]
    for kept in (io.BytesIO(event.encoded_image_string), Path(trainer.log_dir) / "curves.png"):
        assert np.array_equal(pixels_of(kept), pixels_of(drawn))


def test_pictures_show_the_answer_after_each_step(trained) -> None:
    model, trainer, data = trained
    trainer.test(model, data, verbose=False)
    puzzle = {name: part[:1] for name, part in data.splits["test"][32].items()}
    with Image.open(f"{trainer.log_dir}/thinking_32.png") as picture:
        pixels = np.asarray(picture)
    with torch.no_grad():
        answers = [scores[0].argmax(0) for _, scores, _ in model.think(puzzle["inputs"], range(1, 81))]
    last = max(step for step in range(1, 80) if not torch.equal(answers[step], answers[step - 1]))
    assert last > 6  # information travels at most three positions per step
    right = puzzle["targets"][0]
    rows = [np.where((answer == right)[:, None], CLASSES[answer], WRONG) for answer in answers[: last + 1]]
    # The text is above and to the left of the enlarged answers.
    side = min(WIDTH // 32, HEIGHT // len(rows))
    height, width = len(rows) * side, 32 * side
    shown = pixels[-MARGIN - height : -MARGIN, -MARGIN - width : -MARGIN][side // 2 :: side, side // 2 :: side]
    assert np.array_equal(shown, np.stack(rows))


def test_pictures_of_a_grid_show_walls_and_what_is_wrong_at_each_step(tmp_path) -> None:
    seed_everything(0, verbose=False)
    data = Mazes(cells=4, val_cells=[4], test_cells=[4], num_train=1, num_val=1, num_test=2)
    model = EquilibriumReasoner(ConvolutionalCell(num_inputs=3, num_classes=2, num_hidden=8, dims=2), eval_steps=[30])
    trainer = make_trainer(NeumannRBP(0, Picard(30, 0)), logger=TensorBoardLogger(tmp_path))
    trainer.test(model, data, verbose=False)
    puzzle, right = (data.splits["test"][4][name][0] for name in ("inputs", "targets"))
    free = puzzle[0].bool()
    with torch.no_grad():
        answers = [scores[0].argmax(0) for _, scores, _ in model.think(puzzle[None], range(1, 31))]
    last = max(step for step in range(1, 30) if not torch.equal(answers[step], answers[step - 1]))
    assert last > PANELS
    expected = np.full((last + 1, 9, 9, 3), OUTSIDE)
    for frame, answer in zip(expected, answers, strict=False):
        frame[free] = CLASSES[answer[free]]
        frame[free & (answer != right)] = WRONG
    assert {WRONG.tobytes(), OUTSIDE.tobytes()} < {pixel.tobytes() for pixel in expected[-1].reshape(-1, 3)}

    with Image.open(f"{trainer.log_dir}/thinking_4.gif") as animation:
        shown = []
        for frame in ImageSequence.Iterator(animation):
            side = frame.height // 9
            # Equal frames are stored as one that lasts for longer; the last answer stays for a second.
            shown += [np.asarray(frame.convert("RGB"))[side // 2 :: side, side // 2 :: side]] * (
                frame.info["duration"] // 100
            )
    assert np.array_equal(shown, [*expected, *[expected[-1]] * 10])

    pixels = pixels_of(Path(trainer.log_dir) / "thinking_4.png")
    side = min(WIDTH // (11 * PANELS), HEIGHT // 11)  # a panel has 9 positions and a frame
    line = (len(pixels) - 11 * side) // 2  # of text, above and below
    strip = pixels[line : line + 11 * side, MARGIN : MARGIN + 11 * PANELS * side][side // 2 :: side, side // 2 :: side]
    panels = np.split(strip, PANELS, axis=1)
    chosen = np.linspace(0, last, PANELS, dtype=int)
    assert np.array_equal([panel[1:-1, 1:-1] for panel in panels], expected[chosen])
    (event,) = read_events(trainer).Images("test/thinking_4")
    assert np.array_equal(pixels_of(io.BytesIO(event.encoded_image_string)), pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"random_steps": [3]}, r"random_steps=\[3\] must be two numbers"),
        ({"random_steps": [5, 3]}, r"random_steps=\[5, 3\] must increase"),
        ({"eval_steps": []}, r"eval_steps=\[\] must be a list"),
        ({"eval_steps": [0, 1]}, "eval_steps=0"),
        ({"random_start": 1}, "random_start=1 is not of type bool"),
        ({"segments": 0}, "segments=0"),
        ({"loss_steps": [4, 2]}, r"loss_steps=\[4, 2\] must increase"),
        ({"loss_steps": [2, 9], "random_steps": [4, 9]}, r"loss_steps=\[2, 9\] must be below 9.* raise random_steps"),
        ({"jacobian_penalty": -1.0}, "jacobian_penalty=-1.0 must be"),
        ({"residual_penalty": -1.0}, "residual_penalty=-1.0 must be"),
    ],
)
def test_arguments_are_checked_at_once(arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        reasoner(**arguments)


def test_puzzles_of_the_wrong_size_are_refused() -> None:
    model, batch = reasoner(), batch_of()
    with pytest.raises(UserError, match=r"num_inputs=2.*\[4, 1, 7\]"):
        model(batch["inputs"][:, :1])
    with pytest.raises(UserError, match=r"\[4, 7\].* 3: set num_classes"):
        model._loss(torch.zeros(4, 3, 7), torch.full((4, 7), 3))
    with pytest.raises(UserError, match="dims=3 must be 1"):
        ConvolutionalCell(1, 2, dims=3)
    with pytest.raises(UserError, match="mask_channel=1 must be a whole number of at most 0"):
        ConvolutionalCell(1, 2, mask_channel=1)


SHARED = """
    import sys
    import torch
    from torch import distributed, multiprocessing
    from models import EquilibriumReasoner
    from models.equilibrium_reasoner.cell import ReasoningCell
    from rbp_lightning import NeumannRBP, Picard, agreeing

    class Shared(ReasoningCell):
        def start(self, inputs):
            def update(state):
                distributed.all_reduce(torch.ones(1))  # as one whose parameters are gathered
                return inputs * state + 1

            return update, torch.zeros_like(inputs)

        def scores(self, state):
            return torch.cat([state, -state], 1)

    def think(rank, store):
        distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
        reasoner = EquilibriumReasoner(Shared(1, 2, 1))
        reasoner.estimator = NeumannRBP(solver=Picard(100, 0))
        inputs = torch.full((1, 1, 1), (0.1, 0.8)[rank], dtype=torch.float64)
        with torch.no_grad(), agreeing(distributed.group.WORLD):
            answers = [float(scores[0, 0, 0]) for _, scores, _ in reasoner.think(inputs, [10, 20, 100, 200])]
        torch.save(answers, f"{rank}.pt")
        distributed.destroy_process_group()

    multiprocessing.start_processes(think, (sys.argv[1],), 2, start_method="fork")
"""


def test_processes_that_share_a_cell_think_for_as_long_as_the_slowest_puzzle_needs(zygote, tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SHARED))
    run = Run(zygote, tmp_path, [str(tmp_path / "store")], {}, script)
    assert run.end() == 0, run.error()[-3000:]
    for rank, rate in enumerate((0.1, 0.8)):
        expected = [(1 - rate**steps) / (1 - rate) for steps in (10, 20, 100, 100)]  # settled by then
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, rel=1e-9)
