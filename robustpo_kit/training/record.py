"""The record of a run, and the card a person reads."""

import copy
import dataclasses
from typing import Any

import numpy as np
import torch

from robustpo_kit.losses import Scores
from robustpo_kit.records import RunRecord, provenance
from robustpo_kit.training.ranks import world_size
from robustpo_kit.training.trainer import StepTrainer


def run_record(trainer: StepTrainer, started: float) -> RunRecord:
    """Config, versions, seed, time and the means of the last tenth of the steps."""
    tokens, objective, config = trainer.tokens, trainer.objective, trainer.config
    about = provenance(dataclasses.asdict(config), config.seed, started)
    history = trainer.history
    tail = history[-max(1, len(history) // 10) :]
    seconds = sum(row["seconds"] for row in history)
    metrics = {
        "steps": len(history),
        "rows": len(tokens),
        "last_loss": float(np.mean([row["loss"] for row in tail])),
        "prompts_per_second": round(
            sum(len(rows) for rows in trainer.plan) / max(seconds, 1e-9), 3
        ),
        "forward_passes": trainer.forward_passes,
        "micro_batch_size": trainer.micro_limit,
        "layout": trainer.layout,
        "world_size": world_size(),
        "logp": logp_kind(objective),
        "tokens": tokens.counts,
    }
    metrics |= {
        key: float(np.mean([row[key] for row in tail]))
        for key in ("margin", "accuracy")
        if key in tail[-1]
    }
    return RunRecord(
        objective=objective.spec,
        config=about["config"] | {"policy": trainer.policy.record},
        seed=config.seed,
        versions=about["versions"],
        device=about["device"],
        duration_s=about["duration_s"],
        metrics=metrics,
        history=history,
    )


def logp_kind(objective: Any) -> str:
    """ "mean" where the loss reads log-probs per token only, else "sum".

    Asked of the objective itself: twice the tokens at twice the log-prob leave a length-normalised loss as it was.
    """
    logps = torch.tensor([[-2.0, -9.0]], dtype=torch.float64)
    state = copy.deepcopy(objective.state_dict())
    values = []
    for scale in (1, 2):
        policy, reference = scale * logps, scale * (logps - torch.tensor([[0.5, 1.5]]))
        lengths = scale * torch.tensor([[2, 3]])
        scores = Scores(
            policy,
            reference,
            lengths,
            torch.tensor([[1.0, 0.0]]),
            None,
            policy[:, 1],
            reference[:, 1],
        )
        values.append(
            objective.step_loss(
                scores, torch.ones(1, dtype=torch.float64), training=False
            ).per_sample
        )
    objective.load_state_dict(state)
    return "mean" if torch.allclose(values[0], values[1], rtol=1e-9) else "sum"


def run_card(record: RunRecord) -> str:
    """The run in a few lines a person reads: objective, normalisation of log-probs, sizes, what tokenisation met."""
    m, c = record.metrics, record.config
    met = {
        key: value
        for key, value in m["tokens"].items()
        if value and key not in ("rows", "responses")
    }
    counts = ", ".join(f"{key} {value}" for key, value in met.items())
    return "\n".join(
        (
            f"objective  {record.objective}   logp = {m['logp']}   window = {c['window']}",
            f"steps      {m['steps']} of {c['batch_size']} prompts, micro-batch {m['micro_batch_size']}, "
            f"{m['world_size']} rank(s), layout {m['layout']}, lr {c['learning_rate']:g} ({c['schedule']})",
            f"data       {m['rows']} rows; {counts or 'nothing cut or merged'}",
            f"time       {record.duration_s:.0f} s, {m['prompts_per_second']:.2f} prompts/s on {record.device}",
        )
    )
