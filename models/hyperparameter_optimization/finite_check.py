"""The check that an inner training and its outer loss are finite."""

from lightning.pytorch import Trainer
from torch import Tensor

from models.hyperparameter_optimization.inner_progress import InnerProgress
from models.inner_training import MomentumSGD
from rbp_lightning import Failure, FixedPoint, Status, UserError
from rbp_lightning.reporting import action, report


def check_finite(
    trainer: Trainer,
    sgd: MomentumSGD,
    progress: InnerProgress,
    fixed_point: FixedPoint,
    loss: Tensor,
) -> bool:
    """Checks whether an inner training and its outer loss were finite in all processes.

    If they were not, the outer step is skipped or an error is raised, according to the policy.

    Args:
        trainer: The Trainer.
        sgd: The step of the training.
        progress: The observer of the training. It is needed since a solver may replace a last state that is not finite.
        fixed_point: The result of the training.
        loss: The outer loss of this process's shard.

    Raises:
        UserError: If they were not, and the policy is not to skip.
    """
    outer_step = f"outer step {trainer.global_step + 1}"
    failed_at = progress.failed_at(trainer)
    if failed_at is not None or fixed_point.status is Status.NAN:
        rates = sgd.log_learning_rates.detach().exp()
        where = "at its end" if failed_at is None else f"from step {failed_at} of {progress.max_steps} on"
        what = (
            f"The inner training is not finite {where}, in {outer_step}, with learning rates of up to "
            f"{float(rates.max()):.3g} ({sgd.names[int(rates.argmax())]})"
        )
        remedy = "lower inner_learning_rate, or the outer learning rate that raised it"
    elif not trainer.strategy.reduce_boolean_decision(bool(loss.isfinite()), all=True):
        what = f"The outer loss is {float(loss.detach())} in {outer_step}, after an inner training that was finite"
        remedy = "lower inner_learning_rate, or check the images of the outer loss for NaN"
    else:
        return True
    if action(Failure.NAN) != "skip":
        raise UserError(f"{what}: {remedy}.")
    report(Failure.NAN, what)
    return False
