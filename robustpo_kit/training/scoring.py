"""Log-probabilities of responses: as a module for a step, and of a data set under a policy."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from robustpo_kit.data import PreferenceSet
from robustpo_kit.policies import (
    Batch,
    Policy,
    TokenTable,
    flex_serves,
    sequence_logps,
    tokenize,
    unwrap,
)
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.forward import response_logps
from robustpo_kit.training.signals import Signals

log = logging.getLogger(__name__)


class Scorer(nn.Module):
    """The policy as a module that maps a batch to [B, K] log-probs: what accelerate wraps."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        # The layers that FSDP2 shards one by one.
        self._no_split_modules = getattr(unwrap(model), "_no_split_modules", None) or []
        self.tie_weights = unwrap(model).tie_weights  # accelerate ties them again once sharded

    def forward(self, batch: Batch) -> Tensor:
        """Log-probabilities [B, K]."""
        return sequence_logps(self.model, batch)


def layout_of(policy: Policy, config: TrainConfig) -> str:
    """The layout of batches: prompts are computed once where the architecture takes block masks."""
    return config.layout if policy.shared_prefix else "separate"


def kernel_of(policy: Policy, config: TrainConfig, device: torch.device | None = None) -> str:
    """The attention kernel of shared rows; FlexAttention on a GPU, where it has all they need.

    `device` is where the passes will be; default: where the policy is.
    """
    if config.kernel != "auto":
        return config.kernel
    kind = (device or policy.device).type
    return "flex" if kind == "cuda" and flex_serves(policy.model) else "sdpa"


def pass_settings(policy: Policy, config: TrainConfig) -> dict[str, Any]:
    """How `response_logps` takes its passes, as a config says."""
    return {
        "layout": layout_of(policy, config),
        "kernel": kernel_of(policy, config),
        "budget": config.tokens_per_pass,
    }


def tokens_of(
    policy: Policy, rows: PreferenceSet, config: TrainConfig, **options: bool
) -> TokenTable:
    """The rows as the policy reads them, as long as `config` says; options of `tokenize`."""
    own: Any = {"max_length": config.max_length, "max_response": config.max_response}
    own |= {"model": policy.model, **options}
    return tokenize(rows, policy.tokenizer, policy.template, **own)


def score(
    policy: Policy,
    dataset: PreferenceSet,
    config: TrainConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and lengths [N, K] of a preference set's responses under the policy.

    Args:
        policy: Scores with the template of its own.
        dataset: N rows of at most K responses.
        config: Its lengths, layout and kernel; default: those of `TrainConfig`.
    """
    config = config or TrainConfig()
    tokens = tokens_of(policy, dataset, config)
    if tokens.counts["cut_response"]:
        log.warning(
            "%d of %d responses are longer than the limit and scored up to it (TrainConfig's "
            "max_length %d, max_response %d)",
            tokens.counts["cut_response"],
            tokens.counts["responses"],
            config.max_length,
            config.max_response or config.max_length // 2,
        )
    return score_tokens(policy, tokens, config), Signals.of(dataset, tokens, None).lengths


def score_tokens(policy: Policy, tokens: TokenTable, config: TrainConfig | None = None) -> Tensor:
    """Log-probabilities [N, K] of responses that are tokens already, under the policy.

    Args:
        policy: Its mode is left as it was.
        tokens: N rows of at most K responses.
        config: Its layout and kernel; default: those of `TrainConfig`.
    """
    was_training = policy.model.training
    policy.model.eval()
    settings = pass_settings(policy, config or TrainConfig())
    logps = response_logps(policy.model, tokens, **settings)
    policy.model.train(was_training)
    return logps
