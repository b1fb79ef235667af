"""Training weights of 16 bits: their updates are kept in fp32, or what would be lost is refused.

At the papers' rates for full fine-tuning (5e-7 to 6e-7) an update of Adam is far below the distance
between neighbouring bfloat16 numbers: added to the weight itself it vanishes, step after step. An
fp32 master copy collects the updates; the weight is its rounding.
"""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import AdamW, adamw
from transformers import TrainingArguments

from robustpo_kit.errors import KitError
from robustpo_kit.policies import of_first_rank
from robustpo_kit.training.config import TrainConfig

MASTER = "master"  # entry of the optimizer's state: a weight in fp32
MOST = 0.5  # share of weights whose updates may be lost


class MasterAdamW(AdamW):
    """AdamW in fp32 throughout: weights of 16 bits get a master copy, which takes the updates.

    Masters are made by the first step, of the weights as they are then, so that what shards the
    weights before (FSDP2) shards the masters alike. Of fp32 weights it is plain AdamW.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient; `closure` as torch's optimizers take it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state.update(_fresh_state(weight, fused=bool(group["fused"])))
        beta1, beta2 = group["betas"]
        master = state.get(MASTER, weight)
        adamw(
            [master],
            [weight.grad.float()],  # type: ignore[union-attr]  # `step` asked for it
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            fused=group["fused"],
        )
        if MASTER in state:
            weight.copy_(master)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, bit for bit: torch would round it to the weights."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        weights = chain.from_iterable(group["params"] for group in self.param_groups)
        for name, weight in zip(saved, weights, strict=True):
            for entry, value in state_dict["state"].get(name, {}).items():
                if isinstance(value, Tensor) and entry != "step":
                    self.state[weight][entry] = value.to(weight.device, copy=True)


def _fresh_state(weight: Tensor, *, fused: bool) -> dict[str, Tensor]:
    state = {
        "step": torch.zeros((), device=weight.device if fused else "cpu"),
        "exp_avg": torch.zeros_like(weight, dtype=torch.float32),
        "exp_avg_sq": torch.zeros_like(weight, dtype=torch.float32),
    }
    if weight.dtype != torch.float32:
        state[MASTER] = weight.detach().to(torch.float32, copy=True)
    return state


def optimizer_choice(
    weights: Iterable[Tensor], config: TrainConfig, arguments: TrainingArguments
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """The optimizer that a Trainer should make, as it takes one; None for its own AdamW.

    Args:
        weights: That training changes.
        config: Whether they get master copies, and the rate.
        arguments: AdamW's other settings.

    Raises:
        KitError: For float16, whose gradients would need a scaler, and where no master copies are
            kept and most updates would be lost.
    """
    short = [weight for weight in weights if weight.dtype in (torch.bfloat16, torch.float16)]
    if not short:
        return None
    if any(weight.dtype == torch.float16 for weight in short):
        raise KitError(
            "dtype: float16 weights cannot be trained here, their gradients underflow; use "
            "bfloat16 or float32, or a LoRA adapter"
        )
    if config.master_weights:
        betas = (arguments.adam_beta1, arguments.adam_beta2)
        settings: dict[str, Any] = {"lr": config.learning_rate, "betas": betas}
        settings |= {"eps": arguments.adam_epsilon, "fused": arguments.optim.endswith("fused")}
        return MasterAdamW, settings
    lost = of_first_rank(lambda: share_lost(short, config.learning_rate))
    if lost > MOST:
        raise KitError(
            f"master_weights: without them, updates at learning rate {config.learning_rate:g} are "
            f"below half a step of bfloat16 for {lost:.0%} of the trained weights, which would "
            "stay as they are; set master_weights=true, or train in float32"
        )
    return None


def share_lost(weights: Iterable[Tensor], rate: float) -> float:
    """Share of weights that `rate` added or subtracted leaves as they are, by rounding.

    Adam's update of a weight is about the learning rate; it is lost where it is below half the
    distance to the next number of the weight's precision, at |w| = m 2^e: eps 2^(e - 2), for
    1/2 <= m < 1.
    """
    lost = count = 0
    for weight in weights:
        exponent = torch.frexp(weight.detach().float()).exponent.float()
        half_distance = torch.finfo(weight.dtype).eps / 4 * torch.exp2(exponent)
        stays = (half_distance > rate) & (weight != 0)
        lost += int(stays.sum())
        count += weight.numel()
    return lost / max(count, 1)
