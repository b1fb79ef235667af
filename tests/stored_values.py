"""Values that no move of code may change: presets' losses and gradients, runs, a toy run, caches.

`python tests/stored_values.py` measures them and writes stored_values.json, with `--check` it
compares bit for bit on the machine that wrote them; test_stored_values.py compares anywhere, up to
rounding. Floats are written as hexadecimal.
"""

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file

from robustpo_kit import (
    experiments,
    objectives,
    paths,
    policies,
    profiles,
    published,
    toy,
    training,
)
from robustpo_kit.data import Preference, PreferenceSet, Template
from robustpo_kit.losses import Scores

FILE = Path(__file__).with_suffix(".json")
SAMPLES = 6
AGGREGATORS = ("erm", "reweight", "dro", "dora", "dora_outside", "dr_dpo")
RUNS = {  # one a way of taking the step: separable, one pass, two passes, supervised
    "erm": "dpo_pl(beta=0.1)",
    "dora": "dora(dpo_pl(beta=0.1), lam=0.7)",
    "gamma": "gamma(simpo(beta=2), gamma_beta_ratio=0.4, tau=3, capacity=6, solve_size=4)",
    "beta_dpo": "beta_dpo(beta=0.1, alpha=0.5, keep=0.75)",
    "sft": "sft()",
}
SMALL = toy.setting.Setting(
    world=toy.world.WorldConfig(topics=3, tones=2, symbols=4, length=3),
    data=toy.data.DataConfig(rows=48, contamination=0.25),
    sft_epochs=4,
    classifier_rows=48,
    classifier_epochs=2,
    classifier_steps=10,
)


def hexadecimal(values: torch.Tensor) -> list[str]:
    """The flat values of a tensor, exactly."""
    return [value.hex() for value in values.detach().double().flatten().tolist()]


def fixed_scores(columns: int) -> tuple[Scores, torch.Tensor]:
    """Scores of SAMPLES prompts from sines, so that they depend on no generator; and h."""
    place = torch.arange(SAMPLES * columns, dtype=torch.float64).reshape(SAMPLES, columns)
    logps = -6 - 3 * torch.sin(place * 1.7)
    scores = Scores(
        logps.requires_grad_(True),
        -6 - 3 * torch.cos(place * 0.9),
        4 + (place % 5).long(),
        torch.sin(place * 2.3),
        None,
        -5 - torch.sin(place[:, 0]),
        -5 - torch.cos(place[:, 0]),
    )
    return scores, 0.3 + torch.cos(place[:, 0]).abs()


def objective_values(spec: str) -> dict[str, list[str]]:
    """Loss, per-sample losses, weights and gradient of one objective, two steps in a row."""
    objective = objectives.build(spec)
    columns = {"pair": 2, "list": 4, "one": 1}[objective.responses]
    found = {}
    for step in (1, 2):  # the second sees the state that the first one left
        scores, h = fixed_scores(columns)
        result = objective.step_loss(scores, h)
        (gradient,) = torch.autograd.grad(result.loss, scores.logps)
        parts = {
            "loss": result.loss,
            "per_sample": result.per_sample,
            "weights": result.weights,
            "gradient": gradient,
        }
        found |= {f"{name} {step}": hexadecimal(value) for name, value in parts.items()}
    return found


def objective_specs() -> dict[str, str]:
    """Every preset, and every aggregator over a pairwise, a listwise and a negative loss."""
    bases = ("dpo(beta=0.1)", "dpo_pl(beta=0.1)", "lire(temperature=2.0)")
    specs = {f"{a} {base}": f"{a}({base})" for a in AGGREGATORS for base in bases}
    specs |= {spec: spec for spec in RUNS.values()}
    specs |= {
        spec: spec
        for spec in ("kto(beta=0.1)", "kto_pair(beta=0.1)", "orpo(lam=0.1)", "ipo(tau=0.1)")
    }
    specs |= {
        spec: spec
        for spec in ("cdpo(beta=0.1, epsilon=0.1)", "rdpo(beta=0.1, epsilon=0.1)", "cpo(beta=0.1)")
    }
    return specs | {row.spec: row.spec for row in published.PRESETS.values()}


def preferences(columns: int) -> PreferenceSet:
    """Eight rows of words, with rewards and h."""
    words = ["so", "the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    rows = []
    for i in range(8):
        responses = tuple(
            " ".join(words[(i + k) % 5 : (i + k) % 5 + 2 + k]) for k in range(columns)
        )
        rewards = tuple(float((3 * i + 5 * k) % 7) for k in range(columns))
        prompt = " ".join(words[i : i + 3])
        rows.append(
            Preference(
                f"r{i}",
                f"g{i}",
                prompt,
                responses,
                ("x",) * columns,
                rewards,
                0,
                False,
                0.4 + i / 5,
            )
        )
    return PreferenceSet(rows, template=Template("chat"))


def training_values(spec: str) -> dict[str, list[str]]:
    """Trained weights, losses and cached reference log-probs of a run in micro-batches."""
    policy = policies.tiny(policies.byte_tokenizer()).add_lora("attention", 4, seed=3)
    columns = 2 if objectives.build(spec).responses == "pair" else 3
    with tempfile.TemporaryDirectory() as cache:
        config = training.TrainConfig(
            batch_size=4, micro_batch_size=2, epochs=2, seed=5, reference_cache=cache
        )
        record = training.train(policy, preferences(columns), objectives.build(spec), config)
        cached = [load_file(path)["logps"] for path in sorted(Path(cache).glob("*.safetensors"))]
    found = {name: hexadecimal(p) for name, p in policy.model.named_parameters() if p.requires_grad}
    found |= {"loss": [row["loss"].hex() for row in record.history]}
    return found | {f"reference cache {i}": hexadecimal(logps) for i, logps in enumerate(cached)}


def toy_row() -> dict[str, str]:
    """The row of one run in a small world, its seconds aside."""
    row = toy.runs.run(toy.runs.Run("dora(dpo_pl, beta=0.1, lam=1.0)", setting=SMALL, epochs=2))
    return {
        name: value.hex() if isinstance(value, float) else str(value) for name, value in row.items()
    }


def lab_values() -> dict[str, list[str]]:
    """What the smoke profile's lab keeps: classifier's c, h~ and rewards of its training set."""
    profile = profiles.get("smoke", {"classifier_features": "fine_tuned"})
    with tempfile.TemporaryDirectory() as runs, mock.patch.object(paths, "RUNS", Path(runs)):
        rows, mask = experiments.Lab(profile, 0).training_set()
        again, _ = experiments.Lab(profile, 0).training_set()  # from what was kept
    assert again.rows == rows.rows
    return {
        "h": [row.h.hex() for row in rows],
        "rewards": [value.hex() for row in rows for value in row.rewards],
        "contaminated": [str(bool(value)) for value in mask],
    }


def measure() -> dict[str, dict]:
    """Every stored value, by section and name."""
    torch.set_num_threads(1)
    return {
        "objectives": {name: objective_values(spec) for name, spec in objective_specs().items()},
        "training": {name: training_values(spec) for name, spec in RUNS.items()},
        "toy": {"row": toy_row()},
        "lab": {"smoke": lab_values()},
    }


if __name__ == "__main__":
    if "--check" in sys.argv:
        assert measure() == json.loads(FILE.read_text()), "not equal bit for bit"
        print("equal bit for bit")
    else:
        FILE.write_text(json.dumps(measure(), indent=0) + "\n")
