"""A stored batch of synthetic replies, sampled again."""

import dataclasses

import numpy as np

from robustpo_kit import data, mixture
from robustpo_kit.data import PreferenceSet
from robustpo_kit.policies import Policy, SamplingConfig
from robustpo_kit.records import read_json


def resample(
    policy: Policy, task: str, batch: int, *, max_new_tokens: int, at_most: int
) -> tuple[int, float]:
    """Sample a stored batch again: its prompts, and the share whose replies are the same.

    With another model than the stored replies' (the tiny one of smoke), or where a batch is more
    than `at_most` prompts, its first two are sampled twice: a part of a batch has other draws.

    Args:
        policy: samples the replies.
        task: whose store is read (`mixture.load_store`).
        batch: number of the stored batch.
        max_new_tokens: of a reply that is sampled twice.
        at_most: prompts that may be sampled at once.
    """
    settings = read_json(mixture.store_path(task).with_suffix(".json"))
    config = SamplingConfig(**settings["sampling"])
    stored = [entry for entry in mixture.load_store(task).values() if entry["batch"] == batch]
    again = policy.record["source"] == settings["model"] and len(stored) <= at_most
    if not again:
        stored = stored[:2]
        config = dataclasses.replace(config, max_new_tokens=max_new_tokens)
    task_rows = data.load(task)
    row_of = {row.row_id: row for row in task_rows}
    rows = PreferenceSet([row_of[entry["row_id"]] for entry in stored], template=task_rows.template)

    def draw() -> list[list[str]]:
        return mixture.draw(rows, policy, config, seed=settings["seed"], number=batch)

    before = [entry["replies"] for entry in stored] if again else draw()
    same = [new == old for new, old in zip(draw(), before, strict=True)]
    return len(rows), float(np.mean(same))
