"""What is said at the end of a training."""

from lightning.pytorch import Trainer


def print_summary(trainer: Trainer) -> None:
    """Prints the last metrics, and where the logs and the best checkpoint are.

    Args:
        trainer: A Trainer that has fitted; its process 0 prints.
    """
    log_dir = trainer.log_dir  # every rank has to ask
    if not trainer.is_global_zero:
        return
    for name, value in sorted(trainer.callback_metrics.items()):
        print(f"{name}: {float(value):.4g}")
    print(f"Logs: {log_dir}")
    if best := getattr(trainer.checkpoint_callback, "best_model_path", None):
        print(f"Best checkpoint: {best}")
