"""Programs for inference: torch.export, ONNX and torch.jit.trace take the steps of the layer."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from rbp_lightning import Damped, FixedPointLayer, FixedPointSolver, Picard, UserError, WarmStart, ignoring
from tests.deployment.networks import SOLVERS, inputs, layer, name

EVERY_SOLVER = pytest.mark.parametrize("solver", SOLVERS, ids=name)
PLAIN_SOLVERS = SOLVERS[:3]
"""Solvers without acceleration."""

TRACER = [
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated"),
    # The tracer warns of comparisons of shapes; other batch sizes are tested here.
    pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning"),
]


@pytest.fixture(autouse=True)
def _ignore_failures() -> Iterator[None]:
    with ignoring():  # a few steps do not converge
        yield


def assert_same_program(program: nn.Module, module: FixedPointLayer) -> None:
    """Checks that a program and the layer give the same states, for several batch sizes."""
    for batch in (2, 3, 7):
        with torch.no_grad():
            torch.testing.assert_close(program(inputs(batch)), module(inputs(batch)), rtol=1e-10, atol=1e-10)


def exported(module: nn.Module) -> torch.export.ExportedProgram:
    """The exported program of a layer, for any batch size."""
    return torch.export.export(module, (inputs(3),), dynamic_shapes={"inputs": ({0: torch.export.Dim("batch")},)})


@pytest.mark.parametrize(
    "solver", [*PLAIN_SOLVERS, *(pytest.param(one, marks=pytest.mark.slow) for one in SOLVERS[3:])], ids=name
)
def test_torch_export_gives_the_same_program(solver: FixedPointSolver) -> None:
    module, file = layer(solver), io.BytesIO()
    torch.export.save(exported(module), file)
    file.seek(0)
    assert_same_program(torch.export.load(file).module(), module)


def test_an_exported_program_without_unused_nodes_holds_only_the_steps() -> None:
    program = exported(layer(Picard(4, tol=0))).run_decompositions()
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum("tanh" in target for target in targets) == 4
    assert not any("norm" in target for target in targets)


@EVERY_SOLVER
@TRACER[0]
@TRACER[1]
def test_torch_jit_trace_gives_the_same_program(solver: FixedPointSolver) -> None:
    module, file = layer(solver), io.BytesIO()
    torch.jit.save(torch.jit.trace(module, (inputs(3),)), file)
    file.seek(0)
    assert_same_program(torch.jit.load(file), module)


@pytest.mark.filterwarnings("ignore")  # warnings of the exporter's dependencies
@pytest.mark.parametrize("runner", ["onnx.reference", "onnxruntime"])
def test_onnx_gives_the_same_states(runner: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    run = pytest.importorskip(runner)
    module = layer(Damped(Picard(4, tol=0), damping=0.7))
    program = torch.onnx.export(
        module,
        (inputs(3),),
        input_names=["x"],
        dynamic_shapes={"inputs": ({0: torch.export.Dim("batch")},)},
        dynamo=True,
        verbose=False,
    )
    program.save(path := str(tmp_path / "layer.onnx"))
    session = run.ReferenceEvaluator(path) if runner == "onnx.reference" else run.InferenceSession(path)
    for batch in (3, 7):
        (found,) = session.run(None, {"x": inputs(batch).numpy()})
        with torch.no_grad():
            # ONNX stores Python numbers, such as the damping, in float32.
            torch.testing.assert_close(torch.from_numpy(found), module(inputs(batch)), rtol=1e-6, atol=1e-6)


REFUSED = "need a number of steps that does not depend on the data: give Picard tol=0"


def test_torch_export_refuses_a_tolerance() -> None:
    with pytest.raises(UserError, match=REFUSED):
        exported(layer(Picard(4, tol=1e-3)))


@TRACER[0]
@TRACER[1]
def test_a_trace_refuses_a_tolerance_and_a_warm_start() -> None:
    with pytest.raises(UserError, match=REFUSED):
        torch.jit.trace(layer(Picard(4, tol=1e-3)), (inputs(3),))
    estimator, warm_start = layer(Picard(4, tol=0)).estimator, WarmStart()
    with pytest.raises(UserError, match="neither warm_start"):
        torch.jit.trace(lambda x: estimator(torch.cos, x, warm_start=warm_start).state, (inputs(3),))
