"""What taking each micro-batch for a batch of its own does to the gradient of a step."""

import dataclasses

import pandas as pd
import torch

from robustpo_kit import objectives, training
from robustpo_kit.data import PreferenceSet
from robustpo_kit.policies import Policy
from robustpo_kit.training import TrainConfig


def window_errors(
    policy: Policy, spec: str, dataset: PreferenceSet, config: TrainConfig
) -> pd.DataFrame:
    """The first step's gradient under `window="micro"` against the exact one, by micro-batch size.

    Args:
        policy: with its adapter; it stays as it is.
        spec: of the objective.
        dataset: the preference data.
        config: its `batch_size` is the whole step; micro-batches are the powers of two below.

    Returns:
        micro_batch (prompts), error (relative, Euclidean norm), cosine.
    """

    def gradient(window: str, size: int) -> torch.Tensor:
        cut = dataclasses.replace(config, window=window, micro_batch_size=size)
        return training.step_gradient(policy, dataset, objectives.build(spec, seed=cut.seed), cut)

    whole = gradient("step", config.batch_size)
    rows = []
    size = 1
    while size < config.batch_size:
        part = gradient("micro", size)
        rows.append(
            {
                "micro_batch": size,
                "error": float((part - whole).norm() / whole.norm()),
                "cosine": float(torch.cosine_similarity(part, whole, dim=0)),
            }
        )
        size *= 2
    return pd.DataFrame(rows)
