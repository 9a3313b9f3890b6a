"""The inner training as an update, and its hypergradients against exact ones."""

import gc
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from experiments.hypergradient_error import PROBLEMS, Problem, relative_error
from models import ClassWeights, ExampleWeights, Hyperparameter, LabelSmoothing, WeightDecay
from models.inner_training import LOSSES, MLP, InnerObjective, Minibatches, MomentumSGD, SGDUpdate
from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    ConjugateGradient,
    GradientEstimator,
    Implicit,
    NeumannRBP,
    Nystrom,
    Picard,
    UserError,
)
from rbp_lightning.linear import JacobianOperator
from tests.cells import relative_error as relative_error_of

pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")

NUM_CLASSES, NUM_EXAMPLES = 3, 12


class Contrast(Hyperparameter):
    """A hyperparameter that scales the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(()))

    def inputs(self, inputs: Tensor, examples: Any) -> Tensor:
        return self.log_gain.exp() * inputs

    def values(self) -> dict[str, Tensor]:
        return {"contrast": self.log_gain.exp()}


class Training:
    """A small training in float64, with hyperparameters of every kind, moved away from their initial values."""

    def __init__(self, seed: int, loss: str = "cross_entropy", batch_size: int = 5) -> None:
        torch.manual_seed(seed)
        self.network = MLP([4, 3, NUM_CLASSES], log_scale=-0.5).double()
        named = dict(self.network.named_parameters())
        decay = WeightDecay(0.1)
        decay.bind(named)
        own = [decay, LabelSmoothing(0.2), ClassWeights(NUM_CLASSES), ExampleWeights(NUM_EXAMPLES), Contrast()]
        self.objective = InnerObjective(self.network.requires_grad_(False), own, loss).double()
        self.sgd = MomentumSGD(list(named), 0.3, 0.6).double()
        self.learned = [p for p in (*self.objective.parameters(), *self.sgd.parameters()) if p.requires_grad]
        with torch.no_grad():
            for parameter in self.learned:
                parameter.add_(0.3 * torch.randn_like(parameter))
        self.batch_size = batch_size
        self.examples, self.outer = (
            {
                "images": torch.randn(NUM_EXAMPLES, 1, 2, 2, dtype=torch.float64),
                "labels": torch.randint(NUM_CLASSES, (NUM_EXAMPLES,)),
                "index": torch.arange(NUM_EXAMPLES),
            }
            for _ in range(2)
        )

    def update(self, minibatch_steps: int | None = None, linearization_size: int | None = None) -> SGDUpdate:
        return SGDUpdate(
            self.objective, self.sgd, self.examples, self.batch_size, 0, minibatch_steps, linearization_size
        )

    def outer_loss(self, estimator: GradientEstimator) -> Tensor:
        update = self.update(estimator.solver.max_steps - 1)
        state = estimator(update, update.start(self.network)).state
        return self.objective.plain(state["parameters"], self.outer, NUM_EXAMPLES)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_equals_the_paper_s_formula(loss: str) -> None:
    training = Training(0, loss, batch_size=NUM_EXAMPLES)
    update = training.update()
    state = update.start(training.network)
    decay, smoothing, classes, weights, contrast = training.objective.hyperparameters
    images, labels = training.examples["images"].flatten(1), training.examples["labels"]
    expected, velocities = dict(state["parameters"]), dict(state["velocities"])
    for _ in range(3):
        state = update(state)
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in expected.items()}
        hidden = torch.tanh(contrast.log_gain.exp() * images @ leaves["1.weight"].T + leaves["1.bias"])
        outputs = hidden @ leaves["3.weight"].T + leaves["3.bias"]
        share = torch.sigmoid(smoothing.logit)
        targets = (1 - share) * torch.eye(NUM_CLASSES).double()[labels] + share / NUM_CLASSES
        if loss == "cross_entropy":
            losses = -(targets * torch.log_softmax(outputs, 1)).sum(1)
        else:
            losses = 0.5 * ((outputs - targets) ** 2).sum(1)
        total = (losses * classes.log_weights.exp()[labels] * 2 * torch.sigmoid(weights.logits)).mean()
        for coefficient, leaf in zip(decay.log_coefficients.exp(), leaves.values(), strict=True):
            total = total + 0.5 * coefficient * (leaf**2).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()))
        for number, (name, gradient) in enumerate(zip(leaves, gradients, strict=True)):
            momentum = torch.sigmoid(training.sgd.momentum_logits[number])
            velocities[name] = (momentum * velocities[name] - (1 - momentum) * gradient).detach()
            rate = training.sgd.log_learning_rates[number].exp()
            expected[name] = (expected[name] + rate * velocities[name]).detach()
    for name in expected:
        torch.testing.assert_close(state["parameters"][name].detach(), expected[name], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(state["velocities"][name].detach(), velocities[name], rtol=1e-12, atol=1e-14)


def test_steps_without_momentum_are_gradient_descent_with_a_symmetric_jacobian() -> None:
    training = Training(0, batch_size=NUM_EXAMPLES)
    training.sgd = MomentumSGD(training.sgd.names, 0.3, 0.0).double()
    update = training.update()
    state = update.start(training.network)
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in state["parameters"].items()}
    gradients = torch.autograd.grad(training.objective(leaves, training.examples, NUM_EXAMPLES), list(leaves.values()))
    following = update(state)
    assert list(state) == list(following) == ["parameters"]
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        torch.testing.assert_close(following["parameters"][name], leaf - 0.3 * gradient, rtol=1e-6, atol=1e-9)
    assert list(training.sgd.values()) == [f"learning_rate/{name}" for name in leaves]
    jacobian = JacobianOperator.at(update, state, batch_dims=0).dense()
    torch.testing.assert_close(jacobian, jacobian.mT)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**31), loss=st.sampled_from(list(LOSSES)), batch_size=st.sampled_from([1, 5, 12]))
def test_bptt_through_minibatches_matches_finite_differences(seed: int, loss: str, batch_size: int) -> None:
    """For every entry of every hyperparameter."""
    training, estimator, step = Training(seed, loss, batch_size), BPTT(Picard(5, tol=0)), 1e-6
    found = torch.autograd.grad(training.outer_loss(estimator), training.learned)
    slopes = [torch.zeros_like(parameter) for parameter in training.learned]
    with torch.no_grad():
        for parameter, slope in zip(training.learned, slopes, strict=True):
            for entry in range(parameter.numel()):
                ends = []
                for sign in (1, -1):
                    parameter.view(-1)[entry] += sign * step
                    ends.append(training.outer_loss(estimator))
                    parameter.view(-1)[entry] -= sign * step
                slope.view(-1)[entry] = (ends[0] - ends[1]) / (2 * step)
    for one, slope in zip(found, slopes, strict=True):
        torch.testing.assert_close(one, slope, rtol=1e-4, atol=1e-8)
    assert all(bool((slope != 0).any()) for slope in slopes)


@pytest.mark.slow
def test_estimators_agree_with_bptt_at_the_optimum_of_a_network() -> None:
    training = Training(0, batch_size=NUM_EXAMPLES)
    decay = training.objective.hyperparameters[0]
    with torch.no_grad():
        decay.log_coefficients.fill_(-0.5)  # gives the Jacobian a spectral radius of 0.84
        update = training.update()
        optimum = update.start(training.network)
        for _ in range(300):
            optimum = update(optimum)

    def hypergradient(estimator: GradientEstimator) -> list[Tensor]:
        parameters = estimator(training.update(), optimum).state["parameters"]
        in_loss = [parameter for parameter in training.objective.parameters() if parameter.requires_grad]
        return list(torch.autograd.grad(training.objective.plain(parameters, training.outer, NUM_EXAMPLES), in_loss))

    exact, at_the_optimum = hypergradient(BPTT(Picard(300, tol=0))), Picard(1, tol=0)
    for estimator in (
        TBPTT(200, Picard(200, tol=0)),
        RBP(200, tol=0, solver=at_the_optimum),
        NeumannRBP(200, solver=at_the_optimum),
        CGRBP(100, tol=0, solver=at_the_optimum),
    ):
        found = hypergradient(estimator)
        assert relative_error_of(found, exact) < 1e-8, type(estimator).__name__


def strongly_decayed(loss: str, momentum: float = 0.5) -> Problem:
    """A small problem with so much weight decay that its training converges in some hundred steps."""
    problem = Problem(loss, size=60, momentum=momentum)
    with torch.no_grad():
        problem.decay.log_coefficients.fill_(-2.3)
    return problem


@pytest.mark.parametrize("name", PROBLEMS)
def test_hypergradients_with_momentum_are_exact(name: str) -> None:
    problem, at_the_optimum = strongly_decayed(PROBLEMS[name]), Picard(1, tol=0)
    exact, optimum = problem.exact(), problem.optimum(400)
    errors = {}
    for estimator in (
        TBPTT(300, solver=Picard(300, tol=0)),
        RBP(300, tol=0, solver=at_the_optimum),
        NeumannRBP(300, solver=at_the_optimum),
        CGRBP(100, tol=0, solver=at_the_optimum),
    ):
        errors[type(estimator).__name__] = relative_error(problem.hypergradient(estimator, start=optimum)[0], exact)
    assert errors["CGRBP"] < 1e-12
    assert all(error < 1e-8 for error in errors.values()), errors


def test_hypergradients_without_momentum_are_exact() -> None:
    problem = strongly_decayed("cross_entropy", momentum=0.0)
    optimum, exact = problem.optimum(400), problem.exact()
    for linear_solver in (ConjugateGradient(100, 1e-12), Nystrom(170, 1e-9)):
        estimator = Implicit(linear_solver, Picard(1, tol=0))
        assert relative_error(problem.hypergradient(estimator, start=optimum)[0], exact) < 1e-6


def test_the_reference_hypergradient_of_ridge_regression_equals_its_closed_form() -> None:
    problem = Problem("squared_error", size=60)
    images = problem.training["images"].flatten(1)
    design = torch.cat([images, torch.ones(60, 1, dtype=images.dtype)], 1)
    targets = torch.eye(10, dtype=images.dtype)[problem.training["labels"]]
    weight, bias = problem.decay.log_coefficients.exp().unbind()
    penalty = torch.cat([weight.expand(16), bias.expand(1)]).diag()
    # The minimum of |XW - Y|^2 / 2n + sum of c w^2 / 2.
    normal = torch.linalg.cholesky(design.T @ design / 60 + penalty)
    solution = torch.cholesky_solve(design.T @ targets / 60, normal)
    held_out = torch.cat([problem.validation["images"].flatten(1), torch.ones(60, 1, dtype=images.dtype)], 1)
    loss = ((held_out @ solution - torch.eye(10, dtype=images.dtype)[problem.validation["labels"]]) ** 2).sum() / 120
    exact = torch.autograd.grad(loss, problem.decay.log_coefficients)[0]
    assert relative_error(problem.exact(), exact) < 1e-12


def test_implicit_hypergradients_of_learning_rates_stay_biased_in_long_trainings() -> None:
    problem = strongly_decayed("squared_error")
    for length, decay_error in ((20, 0.5), (160, 1e-4)):
        solver = Picard(length, tol=0)
        true_decay, true_rate = problem.hypergradient(BPTT(solver))
        decay, rate = problem.hypergradient(CGRBP(100, tol=0, solver=solver))
        assert relative_error(decay, true_decay) < decay_error
        assert relative_error(rate, true_rate) > 0.3


@pytest.mark.parametrize("taped", [True, False])
@pytest.mark.parametrize(
    "estimator", [NeumannRBP(3, Picard(6, tol=0)), TBPTT(3, Picard(6, tol=0))], ids=["implicit", "tape"]
)
def test_the_last_step_uses_linearization_size_examples(estimator: GradientEstimator, taped: bool) -> None:
    training, seen = Training(0), []
    training.objective.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[1]["labels"])))
    for size, last in ((10, 10), (NUM_EXAMPLES, NUM_EXAMPLES), (None, NUM_EXAMPLES), (100, NUM_EXAMPLES)):
        seen.clear()
        update = training.update(5, size)
        with torch.set_grad_enabled(taped):
            estimator(update, update.start(training.network))
        assert seen == [5, 5, 2, 5, 5, last]
    seen.clear()
    update = training.update()
    estimator(update, update.start(training.network))
    assert seen == [5, 5, 2, 5, 5, 2]


def test_the_update_is_fixed_after_the_minibatch_steps() -> None:
    training = Training(0)
    update = training.update(3, 7)
    state = update.start(training.network)
    minibatches = [tree_leaves(update(state)) for _ in range(3)]
    results = []
    for taped in (True, False, True):
        with torch.set_grad_enabled(taped):
            results.append(tree_leaves(update(state)))
    assert not torch.equal(minibatches[0][0], minibatches[1][0])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_minibatches_do_not_depend_on_grad_mode() -> None:
    """Also if a solver tapes its first application."""
    training, orders = Training(0), []
    for modes in ((False,) * 8, (True, False, False, True, False, True, True, True)):
        update, seen = training.update(6, 7), []
        indices = update.minibatches.next_indices
        update.minibatches.next_indices = lambda: seen.append(indices()) or seen[-1]  # noqa: B023
        state = update.start(training.network)
        for taped in modes:
            with torch.set_grad_enabled(taped):
                update(state)
        orders.append([part.tolist() for part in seen])
    assert orders[0] == orders[1]


def test_frozen_tensors_are_not_in_the_state_but_available_to_penalties() -> None:
    training = Training(0)

    class Distance(Hyperparameter):
        """A penalty on the distance of a layer to a frozen one."""

        def __init__(self) -> None:
            super().__init__()
            self.log_strength = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def penalty(self, parameters: Any) -> Tensor:
            return self.log_strength.exp() * (parameters["1.weight"].sum() - parameters["3.weight"].sum()) ** 2

        def values(self) -> dict[str, Tensor]:
            return {"strength": self.log_strength.exp()}

    trained = ["3.weight", "3.bias"]
    objective = InnerObjective(training.network, [Distance()], "cross_entropy")
    update = SGDUpdate(objective, MomentumSGD(trained, 0.01, 0.5).double(), training.examples, 5, 0)
    state = update(update.start(training.network))
    assert list(state["parameters"]) == list(state["velocities"]) == trained
    target = float(training.network[1].weight.detach().sum())
    sums = [float(state["parameters"]["3.weight"].detach().sum())]
    for _ in range(20):
        state = update(state)
    sums.append(float(state["parameters"]["3.weight"].detach().sum()))
    assert abs(sums[1] - target) < 0.3 * abs(sums[0] - target)


def test_the_plain_loss_restores_the_mode_of_each_layer() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, NUM_CLASSES), nn.Dropout(0.5)).double()
    network[1].eval()
    InnerObjective(network, [], "cross_entropy").plain({}, Training(0).examples, NUM_EXAMPLES)
    assert [layer.training for layer in network] == [True, False, True, True]
    assert network.training


def test_weight_decay_skips_frozen_tensors() -> None:
    network = MLP([4, 3, 2])
    network[1].requires_grad_(False)
    decay = WeightDecay(0.5)
    named = dict(network.named_parameters())
    decay.bind(named)
    assert list(decay.values()) == ["weight_decay/3.weight", "weight_decay/3.bias"]
    trained = network[3].weight.square().sum() + network[3].bias.square().sum()
    torch.testing.assert_close(decay.penalty(named), trained / 4)


def test_forward_mode_and_double_vjp_give_the_same_products() -> None:
    training = Training(0)
    update = training.update(0)
    state = update.start(training.network)
    operator = JacobianOperator.at(update, state, batch_dims=0)
    tangent = [torch.randn_like(leaf) for leaf in tree_leaves(state)]
    torch.testing.assert_close(operator._jvp_forward_mode(tangent), operator._jvp_from_graph()(tangent))


def test_minibatches_shuffle_all_examples_by_the_seed() -> None:
    def epochs(seed: int) -> list[list[int]]:
        minibatches = Minibatches(NUM_EXAMPLES, 5, seed)
        return [[int(index) for _ in range(3) for index in minibatches.next_indices()] for _ in range(2)]

    first, second = epochs(0)
    assert sorted(first) == sorted(second) == list(range(NUM_EXAMPLES))
    assert first != second
    assert epochs(0) == [first, second]
    assert epochs(1)[0] != first


def bytes_in_the_last_step(kind: type, steps: int) -> int:
    """Bytes of the tensors created by an inner training that are alive in its last step."""
    gc.freeze()  # leaves out the objects of other tests
    training, found = Training(0), []
    update = training.update(steps - 1)

    def look(step: int, loss: Tensor, state: Any) -> None:
        if step == steps:
            gc.collect()
            found.append(sum(kept.nbytes for kept in gc.get_objects() if type(kept) in (Tensor, nn.Parameter)))

    update.on_step = look
    state = kind(5, solver=Picard(steps, tol=0))(update, update.start(training.network)).state
    state["parameters"]["1.weight"].sum().backward()
    gc.unfreeze()
    assert update.steps == steps
    return found[0]


# An epoch has three steps; all these numbers of steps end at the same step of an epoch.
@pytest.mark.parametrize(("kind", "steps"), [(RBP, 250), (NeumannRBP, 400), (CGRBP, 250), (TBPTT, 250)])
def test_memory_does_not_grow_with_the_inner_steps(kind: type, steps: int) -> None:
    # Each of the few convergence checks may store a residual.
    assert 0 < bytes_in_the_last_step(kind, steps) < 1.02 * bytes_in_the_last_step(kind, 100)


def test_memory_of_bptt_grows_with_the_inner_steps() -> None:
    nodes_of = []
    for steps in (10, 20):
        nodes, seen = [Training(0).outer_loss(BPTT(Picard(steps, tol=0))).grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is not None and node not in seen:
                seen.add(node)
                nodes += [following for following, _ in node.next_functions]
        nodes_of.append(len(seen))
    assert nodes_of[1] > 1.8 * nodes_of[0]


def test_examples_that_do_not_fit_are_refused() -> None:
    examples = {"labels": torch.tensor([0, 3]), "index": torch.arange(2)}
    with pytest.raises(UserError, match=r"num_classes=3.*set num_classes to 4"):
        ClassWeights(3).check(examples)
    with pytest.raises(UserError, match=r"num_examples=5.*set num_examples to 2"):
        ExampleWeights(5).check(examples)
    with pytest.raises(UserError, match=r"9 pixels.*sizes starts with 4"):
        MLP([4, 2])(torch.zeros(1, 3, 3))
    objective = InnerObjective(nn.Identity(), [], "cross_entropy")
    with pytest.raises(UserError, match=r"\(1, 2, 2\).*\[batch, num_classes\]"):
        objective.plain({}, {"images": torch.zeros(1, 2, 2), "labels": torch.tensor([0])}, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP([4]), r"sizes=\[4\] must list at least two layers"),
        (lambda: MLP([4, 0]), "sizes=0 must be a whole number of at least 1"),
        (lambda: MLP([4, 2], log_scale=float("nan")), "log_scale=nan must be a number"),
        (lambda: MomentumSGD(["a"], 0.0, 0.5), r"learning_rate=0.0 must be a number in \(0, "),
        (lambda: MomentumSGD(["a"], 0.1, 1.0), "momentum=1.0 must be below 1"),
        (lambda: MomentumSGD(["a"], 0.1, -0.5), "momentum=-0.5 must be a number"),
        (lambda: WeightDecay(0.0), "initial=0.0 must be a number"),
        (lambda: LabelSmoothing(1.0), "initial=1.0 must be below 1"),
        (lambda: ClassWeights(1), "num_classes=1 must be a whole number of at least 2"),
        (lambda: ExampleWeights(0), "num_examples=0 must be a whole number of at least 1"),
    ],
)
def test_invalid_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
