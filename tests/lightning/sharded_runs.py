"""What each process runs for test_sharded.py; it writes its results to a file."""

import faulthandler
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader

from models import AttentionCell, EquilibriumReasoner
from rbp_lightning import (
    BPTT,
    CGRBP,
    GMRES,
    RBP,
    SHINE,
    TBPTT,
    AdaptiveNeumann,
    Anderson,
    Auto,
    BiCGSTAB,
    Broyden,
    ConvergenceError,
    ConvergenceWarning,
    Dense,
    EquilibriumMonitor,
    ExactAdjoint,
    FailurePolicy,
    FixedPointLayer,
    GradientEstimator,
    Implicit,
    NeumannRBP,
    NewtonKrylov,
    Picard,
    ReducedRankExtrapolation,
    Status,
    StochasticNeumannSeries,
    UserError,
    WarmStart,
    agreeing,
)
from tests.training import PROCESSES, fit, make_trainer

SIZE = 2 * PROCESSES  # of which each process has as many
TIGHT: dict[str, Any] = {"max_steps": 400, "tol": 1e-9}
PICARD = Picard(**TIGHT)
TRAINED = [NeumannRBP(20, PICARD), BPTT(PICARD), Implicit(Auto(**TIGHT), Auto(**TIGHT))]
SOLVED = [
    Implicit(GMRES(60, tol=1e-9)),
    RBP(400, tol=1e-9, solver=ReducedRankExtrapolation(**TIGHT)),
    TBPTT(20, PICARD),
    AdaptiveNeumann(1e-9, solver=Auto(**TIGHT)),
    ExactAdjoint(solver=NewtonKrylov(**TIGHT)),
    Implicit(BiCGSTAB(60, 1e-9), Anderson(**TIGHT)),
    Implicit(Anderson(**TIGHT), PICARD),
    Implicit(Dense(), Auto(**TIGHT)),
    Implicit(StochasticNeumannSeries(20), PICARD),
    SHINE(60, 1e-9, solver=Broyden(**TIGHT)),
]


class Cell(nn.Module):
    """tanh(W tanh(V h) + x), whose Jacobian has a norm of at most 0.64, and a small one for large x."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(SIZE, SIZE).double(), nn.Linear(SIZE, SIZE).double()
        for linear in (self.inner, self.outer):
            nn.init.orthogonal_(linear.weight, gain=0.8)

    def forward(self, state: Tensor, inputs: Tensor) -> Tensor:
        return torch.tanh(self.outer(torch.tanh(self.inner(state))) + inputs)

    def shard(self, reshard_after_forward: bool, **options: Any) -> "Cell":
        for part in (self.inner, self.outer):
            fully_shard(part, reshard_after_forward=reshard_after_forward, **options)
        return self


def inputs_of(each: int = 4) -> Tensor:
    """Inputs of all processes in turn, ``each`` of one; those of the last process need many more steps."""
    inputs = torch.randn(each * PROCESSES, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return inputs * torch.tensor([3.0] * (PROCESSES - 1) + [0.01]).repeat(each)[:, None]


class Sharded(LightningModule):
    """A cell and a readout, sharded if the strategy has a device mesh; a batch holds inputs and growth rates."""

    def __init__(self, reshard_after_forward: bool = True) -> None:
        super().__init__()
        self.reshard_after_forward = reshard_after_forward
        self.cell = Cell()
        self.readout = nn.Linear(SIZE, SIZE).double()

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            options = {"mesh": self.device_mesh["data_parallel"]}
            self.cell.shard(self.reshard_after_forward, **options)
            fully_shard(self.readout, **options)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, growth = batch
        update = lambda h: self.cell(h, inputs) + growth[:, None] * h  # noqa: E731
        state = self.estimator(update, torch.zeros_like(inputs), batch_dims=1).state
        return self.readout(state).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.3)


def train(module: LightningModule, strategy: str, *callbacks: Any, batch: list[Tensor] | None = None) -> Any:
    inputs = inputs_of(8)
    tensors = [inputs, torch.zeros(len(inputs)).double()] if batch is None else batch
    data = DataLoader(list(zip(*tensors, strict=True)), batch_size=4)
    sharded = ModelParallelStrategy(PROCESSES, tensor_parallel_size=1, process_group_backend="gloo")
    return fit(module, data, *callbacks, devices=PROCESSES, strategy=sharded if strategy == "sharded" else strategy)


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float((whole(one) - other).abs().max() / other.abs().max()) for one, other in pairs)


def trained_weights() -> dict[str, float]:
    """Relative differences between the weights trained with a sharded cell and with DDP."""
    found = {}
    for estimator in TRAINED:
        torch.manual_seed(0)
        reference = Sharded()
        train(reference, "ddp", estimator)
        for reshard in (True, False) if isinstance(estimator, BPTT) else (True,):
            torch.manual_seed(0)
            module = Sharded(reshard)
            train(module, "sharded", estimator)
            expected = [parameter.detach() for parameter in reference.parameters()]
            found[f"{estimator!r}, {reshard}"] = difference(list(module.parameters()), expected)
    return found


def gradient_of(
    cell: nn.Module, solve: Callable[[nn.Module, Tensor], Tensor], inputs: Tensor, average: bool
) -> list[Tensor]:
    solve(cell, inputs).square().mean().backward()
    gradients = [parameter.grad for parameter in cell.parameters()]
    if average:
        for gradient in gradients:
            distributed.all_reduce(gradient)
            gradient /= PROCESSES
    return gradients


def solved_gradients(rank: int) -> dict[str, float]:
    """Relative differences between the gradients of a sharded cell and of a cell in each process."""
    found, inputs = {}, inputs_of()[rank::PROCESSES]
    for estimator in SOLVED:

        def closure(cell: nn.Module, inputs: Tensor, estimator: GradientEstimator = estimator) -> Tensor:
            with agreeing(cell):
                return estimator(lambda h: cell(h, inputs), torch.zeros_like(inputs), batch_dims=1).state

        expected = gradient_of(Cell(), closure, inputs, average=True)
        found[repr(estimator)] = difference(gradient_of(Cell().shard(True), closure, inputs, False), expected)
    found["layer"] = difference(
        gradient_of(Cell().shard(True), lambda cell, inputs: FixedPointLayer(cell, estimator)(inputs), inputs, False),
        expected,
    )
    return found


def warm_gradients(rank: int) -> dict[str, float]:
    """The same with warm starts, of which not all processes can use the last one."""
    cell, warm = Cell().shard(True), WarmStart()
    estimator = CGRBP(60, tol=1e-9, solver=PICARD)
    found = {}
    for index, count in enumerate((4, 4, 4 - rank)):
        inputs = inputs_of()[rank::PROCESSES][:count]

        def solve(cell: nn.Module, inputs: Tensor, warm: WarmStart | None = None) -> Tensor:
            with agreeing(cell):
                start = torch.zeros_like(inputs)
                return estimator(lambda h: cell(h, inputs), start, batch_dims=1, warm_start=warm).state

        expected = gradient_of(Cell(), solve, inputs, average=True)
        cell.zero_grad()
        gradients = gradient_of(cell, lambda cell, inputs: solve(cell, inputs, warm), inputs, average=False)
        found[f"{index}"] = difference(gradients, expected)
    return found


def tensor_parallel() -> dict[str, float]:
    """Relative differences of gradients under tensor parallelism, with replicated and with distributed states."""
    mesh, found, inputs = init_device_mesh("cpu", (PROCESSES,)), {}, inputs_of()
    for estimator in (NeumannRBP(20, PICARD), BPTT(PICARD), Implicit()):

        def plain(cell: nn.Module, inputs: Tensor, estimator: GradientEstimator = estimator) -> Tensor:
            with agreeing(cell):
                return estimator(lambda h: cell(h, inputs), torch.zeros_like(inputs), batch_dims=1).state

        expected = gradient_of(Cell(), plain, inputs, average=False)
        plan = {"inner": ColwiseParallel(), "outer": RowwiseParallel()}
        cell = parallelize_module(Cell(), mesh, plan)
        found[f"{estimator!r}"] = difference(gradient_of(cell, plain, inputs, average=False), expected)
        shards = [Shard(1)]
        plan = {
            "inner": ColwiseParallel(input_layouts=shards[0], use_local_output=False),
            "outer": RowwiseParallel(output_layouts=shards[0], use_local_output=False),
        }
        cell = parallelize_module(Cell(), mesh, plan)
        state = plain(cell, distribute_tensor(inputs, mesh, shards), estimator)
        assert state.placements == tuple(shards)
        state.full_tensor().square().mean().backward()
        gradients = [parameter.grad for parameter in cell.parameters()]
        found[f"distributed, {estimator!r}"] = difference(gradients, expected)
    return found


def two_dimensional(rank: int) -> dict[str, float]:
    """The same for four processes that combine tensor parallelism and sharding, in two pairs each."""
    if PROCESSES != 4:
        return {}
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    found, inputs = {}, inputs_of()[rank // 2 :: 2]
    for estimator in (NeumannRBP(20, PICARD), BPTT(PICARD), Implicit(Auto(**TIGHT), Auto(**TIGHT))):

        def solve(cell: nn.Module, inputs: Tensor, estimator: GradientEstimator = estimator) -> Tensor:
            with agreeing(cell):
                return estimator(lambda h: cell(h, inputs), torch.zeros_like(inputs), batch_dims=1).state

        plan = {"inner": ColwiseParallel(), "outer": RowwiseParallel()}
        cell = parallelize_module(Cell(), mesh["tensor"], plan).shard(True, mesh=mesh["data"])
        expected = gradient_of(Cell(), solve, inputs, average=True)
        found[repr(estimator)] = difference(gradient_of(cell, solve, inputs, average=False), expected)
    return found


def refusals(rank: int) -> dict[str, str]:
    """The errors for what would give wrong results in PyTorch, or differs between the processes."""
    inputs, found = inputs_of()[rank::PROCESSES], {}
    plan = {"inner": ColwiseParallel(), "outer": RowwiseParallel()}
    parallel = parallelize_module(Cell(), init_device_mesh("cpu", (PROCESSES,)), plan)
    cases: dict[str, Callable[[], Any]] = {
        "second": lambda: FixedPointLayer(Cell().shard(True), order=2)(inputs),
        "forward mode": lambda: FixedPointLayer(parallel, CGRBP())(inputs).sum().backward(),
        "sizes": lambda: FixedPointLayer(Cell().shard(True), Implicit(Dense()), 0)(inputs[rank:]).sum().backward(),
    }
    for name, case in cases.items():
        try:
            found[name] = f"nothing: {case()}"
        except UserError as error:
            found[name] = str(error)
    return found


def raised(callbacks: list[Any], batch: list[Tensor]) -> str:
    module = Sharded()
    before = [whole(parameter).clone() for parameter in module.parameters()]
    try:
        train(module, "sharded", *callbacks, batch=batch)
    except ConvergenceError as error:
        return str(error)
    return f"nothing, weights differ by {difference(list(module.parameters()), before)}"


def failures() -> dict[str, str]:
    """What a failure of a sample of the last process raises."""
    inputs = inputs_of(2)
    growth = torch.zeros(len(inputs)).double()
    growing, missing = growth.clone(), inputs.clone()
    growing[-1], missing[-1] = 3.0, float("nan")
    policies: dict[str, Any] = {
        "diverged": ([NeumannRBP(), FailurePolicy(diverged="raise")], [inputs, growing]),
        "nan": ([NeumannRBP(), FailurePolicy(diverged="raise")], [missing, growth]),
        "skipped": ([NeumannRBP(), FailurePolicy(diverged="skip")], [missing, growth]),
        "truncated": ([NeumannRBP(2), FailurePolicy(adjoint="raise", truncation_tol=1e-2)], [inputs, growth]),
        "steps": ([NeumannRBP(solver=Picard(15)), FailurePolicy(not_converged="raise")], [inputs, growth]),
    }
    return {name: raised(*policy) for name, policy in policies.items()}


def late() -> int:
    """Number of these samples that do not converge within 15 steps, counted in one process."""
    inputs, cell = inputs_of(2), Cell()
    solve = NeumannRBP(solver=Picard(15))(lambda h: cell(h, inputs), torch.zeros_like(inputs), batch_dims=1)
    return int(solve.samples(Status.MAX_STEPS).sum())


def monitored(rank: int) -> dict[str, Any]:
    """The monitor's metrics with a sharded cell and with DDP."""
    found = {}
    for strategy in ("sharded", "ddp"):
        trainer = train(Sharded(), strategy, NeumannRBP(20, PICARD), EquilibriumMonitor(1, 0))
        metrics = trainer.callback_metrics
        found[strategy] = {name: float(metrics[f"monitor/{name}"]) for name in ("spectral_radius", "adjoint_residual")}
    return found


class Reasoner(EquilibriumReasoner):
    """A reasoner whose cell is sharded."""

    def __init__(self) -> None:
        super().__init__(AttentionCell(1, 2, num_positions=4, num_hidden=8))

    def configure_model(self) -> None:
        for part in (self.cell.queries_keys_values, self.cell.mixed):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


def pictures() -> list[str]:
    """The pictures of an evaluation, for which the first puzzle of each process is solved once more."""
    puzzle = {"inputs": torch.ones(1, 4), "targets": torch.zeros(4, dtype=torch.int64), "size": 4}
    strategy = ModelParallelStrategy(PROCESSES, tensor_parallel_size=1, process_group_backend="gloo")
    options = {"devices": PROCESSES, "strategy": strategy, "logger": CSVLogger(".", "pictures", "")}
    trainer = make_trainer(NeumannRBP(0, Picard(4, tol=0)), **options)
    trainer.validate(Reasoner(), DataLoader([puzzle] * 2 * PROCESSES, batch_size=1), verbose=False)
    return sorted(path.name for path in Path("pictures").glob("*.png"))


class Failing(Sharded):
    """A module whose update raises in one process during a solve."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, steps = batch[0], 0

        def update(state: Tensor) -> Tensor:
            nonlocal steps
            steps += 1
            if self.global_rank == PROCESSES - 1 and steps == 5:
                raise ValueError("of the last process")
            return self.cell(state, inputs)

        return self.estimator(update, torch.zeros_like(inputs), batch_dims=1).state.square().mean()


def main() -> None:
    """Runs everything; the last run raises."""
    faulthandler.dump_traceback_later(int(os.environ.get("HANGS_AFTER", "280")), exit=True)  # shows where it hangs
    warnings.simplefilter("ignore", ConvergenceWarning)
    found: dict[str, Any] = {"weights": trained_weights()}
    rank = distributed.get_rank()
    found["gradients"] = solved_gradients(rank)
    found["warm"] = warm_gradients(rank)
    found["tensor_parallel"] = tensor_parallel()
    found["two_dimensional"] = two_dimensional(rank)
    found["refusals"] = refusals(rank)
    found["failures"] = failures()
    found["late"] = late()
    found["monitored"] = monitored(rank)
    found["pictures"] = pictures()
    Path(f"{rank}.json").write_text(json.dumps(found))
    train(Failing(), "sharded", NeumannRBP())


if __name__ == "__main__":
    main()
