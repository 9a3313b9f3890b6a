"""The kinds of failure of a fixed point or its gradient, and their remedies."""

from enum import Enum


class Failure(Enum):
    """A way in which a fixed point or its gradient can be wrong.

    Example:
        >>> Failure.NAN.policy, Failure.NAN.message[:55]
        ('diverged', 'the first step of the forward solve is not finite: look')
    """

    NOT_CONVERGED = "the forward solve did not converge"
    RANDOM = "the update is random"
    DIVERGED = "the forward solve diverged"
    NAN = "the first step of the forward solve is not finite"
    GRADIENT = "a parameter's gradient is not finite"
    PARAMETERS = "parameters are not finite"
    ADJOINT = "the adjoint solve did not converge"
    TRUNCATED = "the adjoint's Neumann series was truncated early"
    NOT_POSITIVE_DEFINITE = "I - J is not symmetric positive definite"
    NO_CONTRACTION = "the update is not known to be a contraction"
    SPECTRAL_RADIUS = "the spectral radius is at or above 1"
    COUPLED_SAMPLES = "the samples of a batch act on each other"
    REPLACED = "a parameter was assigned other data between the solve and its backward pass"

    @property
    def policy(self) -> str:
        """The argument of ``FailurePolicy`` that sets the reaction to it."""
        return _POLICIES[self]

    @property
    def message(self) -> str:
        """What the failure is and what to do about it, in one line."""
        return f"{self.value}: {_REMEDIES[self]}"


_POLICIES = {
    Failure.NOT_CONVERGED: "not_converged",
    Failure.RANDOM: "not_converged",
    Failure.DIVERGED: "diverged",
    Failure.NAN: "diverged",
    Failure.GRADIENT: "diverged",
    Failure.PARAMETERS: "diverged",
    Failure.ADJOINT: "adjoint",
    Failure.TRUNCATED: "adjoint",
    Failure.NOT_POSITIVE_DEFINITE: "adjoint",
    Failure.NO_CONTRACTION: "adjoint",
    Failure.SPECTRAL_RADIUS: "spectral_radius",
    Failure.COUPLED_SAMPLES: "coupled_samples",
    Failure.REPLACED: "adjoint",
}

_REMEDIES = {
    Failure.NOT_CONVERGED: "increase max_steps or loosen tol, or make the update a stronger contraction",
    Failure.RANDOM: "draw random numbers, such as dropout masks, once per solve: outside the update, or with "
    "rbp_lightning.nn.held",
    Failure.DIVERGED: "the update is not a contraction, so scale its weights down or damp it",
    Failure.NAN: "look for NaN in the inputs and the parameters, and lower the learning rate",
    Failure.GRADIENT: "look for NaN and infinities in the inputs, and lower the learning rate",
    Failure.PARAMETERS: "return to an earlier checkpoint, look for NaN in the inputs, and set the policy's diverged to "
    "skip or raise",
    Failure.ADJOINT: "increase steps or loosen tol, or make the update a stronger contraction (near spectral radius 1 "
    "no estimator is reliable)",
    Failure.TRUNCATED: "increase steps, use an estimator that solves to a tolerance (CGRBP, AdaptiveNeumann), or "
    "increase the policy's truncation_tol where truncation is intended",
    Failure.NOT_POSITIVE_DEFINITE: "use GMRES or NormalCG (CGRBP), which do not need symmetry",
    Failure.NO_CONTRACTION: "bound the norm of the weights (rbp_lightning.nn), or use CGRBP",
    Failure.SPECTRAL_RADIUS: "the Neumann series and RBP do not converge there: bound the norm of the weights "
    "(rbp_lightning.nn), add jacobian_penalty to the loss, or damp the update",
    Failure.COUPLED_SAMPLES: "pass batch_dims=0, or replace the layer that couples them, such as batch normalisation "
    "in training mode",
    Failure.REPLACED: "assign to parameter.data only before the solve or after backward()",
}
