"""What happens when an inner training or its outer loss is not finite."""

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
    """Tells whether an inner training and its outer loss were finite in all processes.

    Where they were not, the outer step is skipped if that is the policy.

    Args:
        trainer: The Trainer.
        sgd: The step of the training.
        progress: Followed the training. A solver may replace a last state that is not finite by an earlier one.
        fixed_point: Result of the training.
        loss: The outer loss of this process's shard.

    Raises:
        UserError: If they were not and the policy is not to skip.
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
        remedy = "lower inner_learning_rate, and look for NaN in the images of the outer loss"
    else:
        return True
    if action(Failure.NAN) != "skip":
        raise UserError(f"{what}: {remedy}.")
    report(Failure.NAN, what)
    return False
