"""A step that was not finite, kept so that one can look at it."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from robustpo_kit.data import PreferenceSet
from robustpo_kit.policies import TokenTable
from robustpo_kit.records import atomic_folder
from robustpo_kit.training.signals import Signals

ROWS, TENSORS = "rows.jsonl", "batch.safetensors"


def save_batch(
    folder: Path,
    dataset: PreferenceSet,
    tokens: TokenTable,
    signals: Signals,
    rows: list[int],
    logps: Tensor,
) -> Path:
    """Write the rows of a step, and what is known of them, to `folder`; whole or not at all.

    rows.jsonl holds the preferences, as `data.load` reads them; batch.safetensors
    holds `logps` [B, C] and what of the signals there is, in their order, and of row i the tokens
    `prompt i` and `response i k`.

    Args:
        folder: Is replaced.
        dataset: N rows.
        tokens: Of the same rows.
        signals: Of the same rows.
        rows: Numbers of the B rows of the step.
        logps: [B, C], as far as they are known.
    """
    tensors = {"logps": logps.detach().cpu().float().contiguous()}
    for name, value in signals._asdict().items():
        if value is not None:
            tensors[name] = value[rows].contiguous()
    for place, number in enumerate(rows):
        row = tokens.rows[number]
        tensors[f"prompt {place}"] = torch.tensor(row.prompt)
        for k, response in enumerate(row.responses):
            tensors[f"response {place} {k}"] = torch.tensor(response)
    with atomic_folder(folder) as temporary:
        dataset.select(rows).to_jsonl(temporary / ROWS)
        save_file(tensors, temporary / TENSORS)
    return folder
