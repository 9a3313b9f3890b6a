"""Options for a small run of a shipped config."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "hopfield.yaml"
TINY = [
    f"--config={CONFIG}",
    "--model.num_hidden=16",
    "--data.train_draws=2",
    "--data.eval_draws=1",
    "--trainer.max_epochs=2",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.callbacks.plot_every_n_steps=0",
]
RUN = Path("logs/hopfield/version_0")
