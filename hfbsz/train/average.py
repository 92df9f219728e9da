"""The average of the weights over the training so far, which is evaluated and saved in place of the trained weights."""

from collections.abc import Mapping, Sequence

import torch


class WeightAverage:
    """A weighted mean over the weights after every step, in which those after E sequences count in proportion to E^γ.

    Its mean age is always the same fraction 1 ÷ (γ + 2) of the training so far (the power function average of Karras
    et al. 2024, arXiv 2312.02696, section 3.1, with sequences as the time). So it does not depend on the length of the
    run, and batches of different sizes average over the same sequences.
    """

    def __init__(self, weights: Sequence[torch.Tensor], age: float) -> None:
        """`age`: the mean age as a fraction of the training so far, above 0 and at most 1/2, the plain mean."""
        self.weights = [weight for weight in weights if weight.requires_grad]
        self._exponent = 1 / age - 1  # γ + 1
        self.means: list[torch.Tensor] = []  # of each weight; empty before the first step

    @torch.no_grad()
    def update(self, before: int, after: int) -> None:
        """Add the weights after a step, which began after `before` and ended after `after` sequences."""
        if self.means:
            share = 1 - (before / after) ** self._exponent
            torch._foreach_lerp_(self.means, self.weights, share)
        else:
            self.means = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights of the model with their means, if there are any."""
        for weight, mean in zip(self.weights, self.means, strict=False):
            trained = weight.detach().clone()
            weight.copy_(mean)
            mean.copy_(trained)

    def tensors(self, names: Mapping[int, str]) -> dict[str, torch.Tensor]:
        """The means by the names of their weights; `names` maps the id() of a weight to its name."""
        return {names[id(weight)]: mean for weight, mean in zip(self.weights, self.means, strict=False)}

    def load(self, means: Mapping[int, torch.Tensor]) -> None:
        """Restore the means, sharded as the weights, by the id() of the weights. Raises LookupError without one."""
        if missing := [weight for weight in self.weights if id(weight) not in means]:
            raise LookupError(f"the averages of {len(missing)} weights are missing")
        self.means = [means[id(weight)] for weight in self.weights]
