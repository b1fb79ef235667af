"""The record of a run, and the card a person reads."""

import dataclasses
from typing import Any

import numpy as np

from robustpo_kit.data import PreferenceSet, row_as_json
from robustpo_kit.records import RunRecord, digest, provenance
from robustpo_kit.training.identity import DIGITS
from robustpo_kit.training.ranks import world_size
from robustpo_kit.training.trainer import StepTrainer


def run_record(trainer: StepTrainer, rows: PreferenceSet, started: float) -> RunRecord:
    """The record of a run that is over.

    Args:
        trainer: After its last step.
        rows: That it was given.
        started: `time.time()` when the run began.

    Returns:
        Config, with a digest of the rows, versions, seed, time, the rows of all steps, and the
        means of their last tenth.
    """
    config, history = trainer.config, trainer.history
    origin = provenance(dataclasses.asdict(config), config.seed, started)
    content = digest([row_as_json(row) for row in rows], length=DIGITS)
    given = {"name": rows.name, "shape": rows.shape, "dropped": rows.dropped, "digest": content}
    return RunRecord(
        objective=trainer.objective.spec,
        config=origin["config"] | {"rows": given, "policy": trainer.policy.record},
        seed=config.seed,
        versions=origin["versions"],
        device=origin["device"],
        duration_s=origin["duration_s"],
        metrics=_sizes(trainer) | _last_means(history),
        history=history,
    )


def _sizes(trainer: StepTrainer) -> dict[str, Any]:
    """How large the run was, and how it was cut up."""
    prompts = sum(len(rows) for rows in trainer.plan)
    seconds = sum(row["seconds"] for row in trainer.history)
    return {
        "steps": len(trainer.history),
        "rows": len(trainer.tokens),
        "prompts_per_second": round(prompts / max(seconds, 1e-9), 3),
        "forward_passes": trainer.exact_step.forward_passes,
        "micro_batch_size": trainer.micro_limit,
        "layout": trainer.exact_step.layout,
        "world_size": world_size(),
        "logp": trainer.objective.logp,
        "strength": trainer.objective.strength,
        "tokens": trainer.tokens.counts,
    }


def _last_means(history: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the last tenth of the steps, of what their rows hold."""
    tail = history[-max(1, len(history) // 10) :]
    names = {"loss": "last_loss", "margin": "margin", "accuracy": "accuracy"}
    means = {}
    for column, name in names.items():
        if column in tail[-1]:
            means[name] = float(np.mean([row[column] for row in tail]))
    return means


def run_card(record: RunRecord) -> str:
    """The run in a few lines: objective, normalisation of log-probs, sizes, events, time."""
    metrics, config = record.metrics, record.config
    counts = {name: count for name, count in metrics["tokens"].items() if count}
    events = [f"{name} {counts[name]}" for name in counts if name not in ("rows", "responses")]
    strength = [f"   {name} = {value:.4g}" for name, value in metrics["strength"].items()]
    lines = (
        f"objective  {record.objective}   logp = {metrics['logp']}   window = {config['window']}"
        + "".join(strength),
        f"steps      {metrics['steps']} of {config['batch_size']} prompts, "
        f"micro-batch {metrics['micro_batch_size']}, {metrics['world_size']} rank(s), "
        f"layout {metrics['layout']}, lr {config['learning_rate']:g} ({config['schedule']})",
        f"data       {metrics['rows']} rows; {', '.join(events) or 'nothing cut or merged'}",
        f"time       {record.duration_s:.0f} s, {metrics['prompts_per_second']:.2f} prompts/s "
        f"on {record.device}",
    )
    return "\n".join(lines)
