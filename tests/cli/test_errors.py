"""Errors in the input are reported in one line; errors in a user's code keep their traceback."""

import importlib.util
import io
import re
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule

from datamodules import ImagePatterns
from models import MLP, ContractiveCell, ExampleWeights, HopfieldMemory, LinearClassifier
from rbp_lightning import RBP, ConvergenceError, NeumannRBP, Picard, UserError
from rbp_lightning.cli.config_file import load_yaml
from rbp_lightning.cli.errors import one_line_errors
from rbp_lightning.cli.mistakes import find_mistake
from rbp_lightning.cli.trainer import check_trainer
from tests.cli.options import CONFIG, TINY
from tests.cli.own import OPTIONS
from tests.cli.runs import Run

OWN = ["--model=tests.cli.own.Net", "--data=tests.cli.own.Inputs", "--trainer.logger=false", *OPTIONS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--estimator.step=3"], "CGRBP has no option 'step'. Did you mean 'steps'?"),
        (["--estimator=BPTT", "--estimator.steps=3"], "BPTT has no option 'steps'"),
        (["--estimator.solver.toll=3"], "Picard has no option 'toll'. Did you mean 'tol'?"),
        (["--data.level_=3"], "ImagePatterns has no option 'level_'. Did you mean 'level'?"),
        (["--trainer.max_epoch=3"], "--trainer.max_epoch=3. Did you mean '--trainer.max_epochs'?"),
        (["--estimatr=RBP"], "Did you mean '--estimator'?"),
        (["--nonsense=3"], "--nonsense=3. See --help"),
        (["--seed=3"], "Did you mean '--seed_everything'?"),
        (["--epochs=3"], "Did you mean '--trainer.max_epochs' or '--trainer.min_epochs'?"),
        (["--devices=1"], "Did you mean '--trainer.devices'?"),
        (["--lr=0.1"], "Did you mean '--lr_scheduler'?"),
        (["--config=misspelt.yaml"], "option 'trainer.max_epoch'. Did you mean '--trainer.max_epochs'?"),
        (["--config=broken.yaml"], "did not find expected node content"),
        (["--estimator.steps=-1"], "steps=-1 must be a whole number of at least 1"),
        (["--estimator.steps=many"], "--estimator.steps: expected int"),
        (["--estimator.solver.tol=-1"], "Picard: tol=-1.0 must be a number in [0, "),
        (["--estimator.solver.max_steps=0"], "Picard: max_steps=0 must be a whole number of at least 1"),
        (["--model.gain=0"], "gain=0.0 must be a number in (0, "),
        (["--data.source=cifar"], "'digits', 'mnist', 'folder'"),
        (["--data.source=mnist", "--data.data_dir=nowhere"], "into nowhere/mnist/raw"),
        (["--model.num_pixels=100"], "set num_pixels to 64"),
        (["--checkpoint.mode=most"], "'min', 'max'"),
        (["--checkpoint.monitor=val/los"], "val/los"),
        (["--trainer.accelerator=foo"], "foo"),
        (["--trainer.strategy=foo"], "foo"),
        (["--trainer.logger.save_dir=/proc/x"], "cannot write to /proc/x/hopfield"),
        (["--data.source=mnist", "--data.data_dir=/proc/x"], "into /proc/x/mnist/raw"),
        (["--optimizer=Adam", "--optimizer.lr=-1"], "learning rate: -1.0"),
        (["--lr_scheduler=StepLR", "--lr_scheduler.step_size=3"], "without --optimizer"),
        (["--trainer.max_epochs=-1"], "set max_epochs or max_steps"),
        (["--ckpt_path=none.ckpt"], "ckpt_path='none.ckpt' is not a file"),
        (["--config=none.yaml"], "none.yaml"),
        (["--trainer.devices=abc"], "devices"),
        (["--trainer.val_check_interval=1000"], "val_check_interval"),
        (["--trainer.num_nodes=1000000"], "--trainer.num_nodes=1000000"),
        (["--seed_everything=4294967296"], "--seed_everything"),
        (["--model.learning_rate=1e38"], "learning_rate"),
        (["--optimizer=Adam", "--optimizer.lr=1e38"], "overflow"),
        ([f"--estimator.steps={10**30}"], "at most"),
        ([f"--data.train_draws={10**12}"], "train_draws"),
        (["--data.size={a: 1, a: 2}"], "size"),
    ],
)
def test_an_invalid_option_gives_one_clear_error(cli, arguments, message) -> None:
    Path("misspelt.yaml").write_text("trainer:\n  max_epoch: 3\n")
    Path("broken.yaml").write_text("model: [\n")
    status, _, err = cli("fit", *TINY, *arguments)
    assert status in (1, 2)
    (told,) = [line for line in err.splitlines() if "error: " in line]
    assert message in told
    assert "Traceback" not in err
    assert not list(Path().rglob("*.ckpt"))


@pytest.mark.parametrize("solver", [".max_steps=3", "=FixedPointSolver"])
def test_an_option_of_a_solver_without_its_class_names_the_solvers(cli, solver: str) -> None:
    status, _, err = cli("fit", *OWN, "--estimator=NeumannRBP", f"--estimator.solver{solver}")
    assert status == 2
    (told,) = [line for line in err.splitlines() if "error: " in line]
    assert re.search(r"--estimator\.solver: .* Known: Anderson, Auto, .*Picard", told)


def test_an_unknown_command_is_refused_with_a_suggestion(cli) -> None:
    status, _, err = cli("ft", *TINY)
    assert status == 2
    assert "'ft'. Did you mean 'fit'?" in err
    assert {"sweep", "fit", "validate", "test", "predict", "audit"} <= set(re.findall(r"\w+", err))


def test_a_missing_cell_is_reported_with_the_known_ones(cli) -> None:
    for name in ("EquilibriumReasoner", "models.EquilibriumReasoner"):
        status, _, err = cli("fit", f"--model={name}", "--data=PrefixSums")
        assert status == 2
        (told,) = err.splitlines()
        assert all(cell in told for cell in ("--model.cell", "AttentionCell", "ConvolutionalCell", "TwoLevelCell"))


def test_missing_data_are_reported_with_the_option(cli) -> None:
    status, _, err = cli("fit", "--model=HopfieldMemory")
    assert status == 1
    (told,) = err.splitlines()
    assert "HopfieldMemory" in told
    assert "--data=NAME" in told
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("logger", "module"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow"), ("CometLogger", "comet_ml")]
)
def test_a_missing_package_of_a_logger_is_one_line(cli, logger, module) -> None:
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    status, _, err = cli("fit", *TINY, f"--trainer.logger={logger}")
    assert status == 1
    (told,) = [line for line in err.splitlines() if "error: " in line]
    assert logger in told
    assert "pip install" in told


def error_of(cli, config: bytes | str, *arguments: str) -> str:
    """The one line of error that a config file causes."""
    Path("own.yaml").write_bytes(config if isinstance(config, bytes) else config.encode())
    status, _, err = cli("fit", "--config=own.yaml", *arguments)
    assert status in (1, 2)
    (told,) = [line for line in err.splitlines() if "error: " in line]
    assert "Traceback" not in err
    return told


@pytest.mark.parametrize("value", ["", "3", "true", "[]", "[1, 2]"])
@pytest.mark.parametrize("section", ["trainer", "policy", "checkpoint"])
def test_a_section_must_be_a_mapping(section, value) -> None:
    with pytest.raises(yaml.YAMLError, match=rf"own.yaml: {section}"):
        load_yaml(f"model: HopfieldMemory\n{section}: {value}\n", "own.yaml")


@pytest.mark.parametrize("text", ["", "3", "[1, 2]", "!!int a: 3", "policy:"])
def test_a_config_must_be_a_mapping_of_options(cli, text) -> None:
    assert "config" in error_of(cli, text)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("data: ImagePatterns\nmodel: HopfieldMemory\ndata: MNISTSplits\n", "data"),
        ("model:\n  class_path: HopfieldMemory\n  init_args:\n    gain: 1.0\n    gain: 1.0\n", "gain"),
        ("trainer: {max_epochs: 1, 'max_epochs': 2}\n", "max_epochs"),
        ("trainer:\n  callbacks:\n    - class_path: EquilibriumMonitor\n      class_path: Timer\n", "class_path"),
    ],
)
def test_duplicate_keys_are_named_with_file_and_line(text, key) -> None:
    with pytest.raises(yaml.YAMLError, match=rf"(?s){key!r}.*own.yaml.*line \d+"):
        load_yaml(text, "own.yaml")


def test_keys_that_override_a_merge_are_not_duplicates() -> None:
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\nc: [*a, *a]\n"
    assert load_yaml(text)["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize(
    "text",
    [
        "policy: &a {truncation_tol: *a}",
        "model: &a [*a]",
        "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]),
        "trainer: " + "[" * 5000 + "]" * 5000,
    ],
)
def test_recursive_aliases_and_deep_nesting_are_refused(text) -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml(text, "own.yaml")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_config_that_is_not_utf_8_is_named(cli, encoding) -> None:
    assert "own.yaml" in error_of(cli, "# caf\u00e9\nmodel: HopfieldMemory\n".encode(encoding))


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: HopfieldMemory(gain=1e-300), "gain"),
        (lambda: HopfieldMemory(num_hidden=10**6), "num_hidden"),
        (lambda: MLP([10**6, 10**6, 10]), "sizes"),
        (lambda: ContractiveCell(10, 3, num_hidden=10**5), "num_hidden"),
        (lambda: ContractiveCell(10, 3, bound=1e-300), "bound"),
        (lambda: LinearClassifier(10**9, 10**9), "num_features"),
        (lambda: ExampleWeights(10**12), "num_examples"),
        (lambda: ImagePatterns(train_draws=10**12), "train_draws"),
        (lambda: ImagePatterns(eval_draws=10**8), "eval_draws"),
        (lambda: ImagePatterns(source="folder", data_dir=".", size=10**6), "size"),
        (lambda: ImagePatterns(corruption_seed=2**32), "corruption_seed"),
        (lambda: RBP(seed=2**32), "seed"),
        (lambda: NeumannRBP(steps=10**5000), "steps"),
        (lambda: Picard(tol=1e31), "tol"),
        (lambda: check_trainer(Namespace(devices="1" + "0" * 30)), "devices"),
        (lambda: check_trainer(Namespace(num_nodes=10**6)), "num_nodes"),
        (lambda: check_trainer(Namespace(accumulate_grad_batches=0)), "accumulate_grad_batches"),
        (lambda: check_trainer(Namespace(check_val_every_n_epoch=0)), "check_val_every_n_epoch"),
    ],
)
def test_absurd_sizes_are_refused_with_name_and_limit(make, argument) -> None:
    with pytest.raises(UserError, match=rf"{argument}.*\d"):
        make()


KINDS = {"hopfield": "HopfieldMemory", "hypergrad": "HyperparameterOptimizer", "cora": "CitationGNN"}
GRAPH = ["--data=CitationGraph", "--data.dataset=torch_geometric.datasets.KarateClub", "--data.split=per_class"]
GRAPH += ["--data.per_class=2", "--data.num_val=6", "--data.num_test=10"]


@pytest.mark.parametrize(
    ("subcommand", "config", "data"),
    [
        *((subcommand, "hopfield", ["--data=MNISTSplits"]) for subcommand in ("fit", "validate", "test", "audit")),
        ("predict", "hopfield", GRAPH),
        ("fit", "hypergrad", GRAPH),
        ("test", "hypergrad", GRAPH),
        ("fit", "cora", ["--data=ImagePatterns"]),
        ("predict", "cora", ["--data=MNISTSplits"]),
    ],
)
def test_data_that_do_not_fit_the_model_are_refused_with_both_names(cli, subcommand, config, data) -> None:
    options = ["--trainer.accelerator=cpu", "--trainer.callbacks=null", "--trainer.logger=false"]
    status, _, err = cli(subcommand, f"--config={CONFIG.with_name(config)}.yaml", *data, *options)
    assert status == 1
    assert "Traceback" not in err
    told = err.splitlines()[-1]
    assert KINDS[config] in told
    assert data[0].removeprefix("--data=") in told


@pytest.mark.parametrize("option", ["--trainer.max_steps=0", "--trainer.log_every_n_steps=0"])
def test_a_run_without_steps_or_logs_succeeds(cli, option) -> None:
    status, _, err = cli("fit", *TINY, option)
    assert status == 0, err


@pytest.mark.parametrize(
    ("modules", "one_line"),
    [
        (["rbp_lightning.cli.main", "lightning.pytorch.trainer"], True),
        (["rbp_lightning.cli.main", "jsonargparse._core", "codecs"], True),
        (["lightning.pytorch.trainer", "torch.optim.adam"], True),
        (["lightning.pytorch.trainer", "rbp_lightning.layer"], False),
        (["rbp_lightning.cli.main", "pathlib"], False),
        (["lightning.pytorch.trainer", "own.network", "torch.nn.functional"], False),
        (["own.network"], False),
    ],
)
def test_errors_from_libraries_are_one_line_unless_user_code_is_involved(modules, one_line) -> None:
    function = None
    for module in reversed(modules):
        namespace = {"__name__": module, "inner": function}
        text = "def outer():\n    if inner is None:\n        raise RuntimeError('no such value')\n    inner()"
        exec(compile(text, "outer.py", "exec"), namespace)
        function = namespace["outer"]
    with pytest.raises(RuntimeError) as raised:
        function()
    error = raised.value.with_traceback(raised.value.__traceback__.tb_next)  # drops the frame of this test
    assert find_mistake(error) is (error if one_line else None)


@pytest.mark.parametrize(
    ("arguments", "meant", "known"),
    [
        (["--estimator=Neuman"], "NeumannRBP", "AdaptiveNeumann, BPTT, CGRBP, ExactAdjoint, NeumannRBP, RBP, TBPTT"),
        (["--estimator=models.HopfieldMemory"], None, "NeumannRBP"),
        (["--estimator=nowhere.NeumannRBP"], "NeumannRBP", "NeumannRBP"),
        (["--estimator.solver=Picart"], "Picard", "Picard"),
        (["--estimator.solver=models.Foo"], None, "Picard"),
        (["--model=Hopfield"], "HopfieldMemory", "CitationGNN, HopfieldMemory, HyperparameterOptimizer"),
        (["--data=Images"], None, "CitationGraph, ImagePatterns, MNISTSplits"),
        (["--optimizer=Adan"], "Adam", "Adam, SGD"),
        (["--model=CitationGNN", "--model.cell=PageRank"], "PageRankCell", "ContractiveCell, PageRankCell"),
        (
            ["--model=HyperparameterOptimizer", "--model.hyperparameters=[Weights]"],
            "ClassWeights",
            "ClassWeights, ExampleWeights, LabelSmoothing, WeightDecay",
        ),
    ],
)
def test_an_unknown_class_is_answered_with_the_known_ones(cli, arguments, meant, known) -> None:
    status, _, err = cli("fit", f"--config={CONFIG}", *arguments)
    assert status == 2
    assert "Traceback" not in err
    told = err.splitlines()[-1]
    assert (f"Did you mean {meant!r}?" in told) == (meant is not None)
    # Other tests in this process may define so many classes that the help is named instead.
    if ".help lists" in told:
        return
    named = told.partition("Known: ")[2].removesuffix(".").split(", ")
    assert set(known.split(", ")) <= set(named)
    assert named == sorted(named)


def test_a_long_list_of_classes_refers_to_the_help(cli) -> None:
    status, _, err = cli("fit", f"--config={CONFIG}", "--trainer.callbacks=[EquilibriumMonitr]")
    assert status == 2
    assert "Did you mean 'EquilibriumMonitor'? --trainer.callbacks.help" in err


def test_a_command_without_a_config_suggests_one(cli) -> None:
    status, _, err = cli("fit")
    assert status == 2
    assert "--config configs/hopfield.yaml" in err.splitlines()[-1]


def test_a_mistake_in_an_update_is_reported_with_the_line_of_its_solve(cli) -> None:
    status, _, err = cli(
        "fit", "--model=tests.cli.own.Net", "--data=tests.cli.own.Inputs", *OPTIONS, "--model.fail=update"
    )
    assert status == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    found = re.search(r"in place.* \((.*own\.py):(\d+)\)$", line)
    assert found is not None, line
    assert "self.estimator(update" in Path(found[1]).read_text().splitlines()[int(found[2]) - 1]


@pytest.mark.parametrize(
    ("option", "kind", "place"),
    [
        ("--model.fail=value", ValueError, "__init__"),
        ("--model.fail=file", FileNotFoundError, "__init__"),
        ("--model.fail=type", TypeError, "__init__"),
        ("--model.fail=hook", FileNotFoundError, "training_step"),
        ("--data.fail=true", OSError, "__init__"),
    ],
)
def test_errors_in_user_code_keep_their_traceback(cli, option, kind, place) -> None:
    with pytest.raises(kind) as raised:
        cli("fit", *OWN, option)
    places = [(entry.path.name, entry.name) for entry in raised.traceback]
    assert ("own.py", place) in places


@pytest.mark.parametrize(
    "text", ["import not_there_either", "x = = 3", "int('x')", "None.attribute", "import broken_b"]
)
def test_a_module_that_cannot_be_imported_keeps_its_traceback(cli, text, monkeypatch) -> None:
    Path("broken_a.py").write_text(text)
    Path("broken_b.py").write_text("int('x')")
    for module in ("broken_a", "broken_b"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises((ImportError, SyntaxError, ValueError, AttributeError)) as raised:
        cli("fit", "--model=broken_a.Net", *OWN[1:])
    shown = str(raised.getrepr(style="native"))
    assert "broken_a.py" in shown
    assert "Union" not in shown


@pytest.mark.parametrize("how", ["option", "variable"])
def test_debug_shows_the_traceback_of_every_error(cli, how, monkeypatch) -> None:
    if how == "variable":
        monkeypatch.setenv("RBP_DEBUG", "1")
    with pytest.raises(UserError, match="steps=-1"):
        cli("fit", *TINY, "--estimator.steps=-1", *(["--debug"] if how == "option" else []))
    monkeypatch.setenv("RBP_DEBUG", "0")
    assert cli("fit", *TINY, "--estimator.steps=-1")[0] == 1


def test_a_bug_in_a_shipped_model_keeps_its_traceback(cli, monkeypatch) -> None:
    def broken(self: HopfieldMemory, *_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(HopfieldMemory, "training_step", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli("fit", *TINY)


def test_an_input_error_is_found_among_the_causes_of_an_error() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert find_mistake(first) is None
    second.__cause__ = third = ConvergenceError("third")
    assert find_mistake(first) is third
    third.__cause__ = first
    assert find_mistake(first) is third


def test_an_error_while_handling_an_input_error_keeps_its_traceback() -> None:
    error = KeyError("a bug of the handler")
    error.__context__ = UserError("caught")
    exec(compile("def fail(error): raise error", "handler.py", "exec"), namespace := {"__name__": "own"})
    with pytest.raises(KeyError), one_line_errors():
        namespace["fail"](error)


class Misused(LightningModule):
    """A module that Lightning rejects."""

    def configure_optimizers(self) -> int:
        return 3


def test_errors_of_lightning_are_one_line(cli) -> None:
    status, _, err = cli("fit", "--model=tests.cli.test_errors.Misused", *OWN[1:])
    assert status == 1
    assert err.splitlines()[-1].startswith("error: ")


def test_the_exit_status_and_traceback_of_a_process(zygote, tmp_path) -> None:
    """With a user's package named ``models``, which takes precedence over this project's."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("from models.own import Inputs, Net\n")
    (tmp_path / "models" / "own.py").write_text(Path(__file__).with_name("own.py").read_text())
    program = tmp_path / "python_m.py"
    program.write_text(
        "import runpy, sys\n"
        "for name in [name for name in sys.modules if name.partition('.')[0] in ('models', 'datamodules')]:\n"
        "    del sys.modules[name]  # which the process was forked with\n"
        "sys.path.insert(0, '')  # as python -m does\n"
        "runpy.run_module('rbp_lightning', run_name='__main__', alter_sys=True)\n"
    )
    options = ["fit", "--model=models.Net", "--data=models.Inputs", *OPTIONS, "--model.fail=hook"]
    run = Run(zygote, tmp_path, options, {}, program)
    assert run.end() == 1
    assert re.search(r'models/own.py", line \d+, in training_step', run.error())
    assert run.error().splitlines()[-1].startswith("FileNotFoundError")


def test_an_empty_standard_input_is_reported(cli, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    status, _, err = cli("fit", "--model", "-")
    assert status == 2
    (told,) = err.splitlines()
    assert "--model" in told
