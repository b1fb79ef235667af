"""Profiles: one frozen dataclass, one place for defaults; every notebook runs under each of them.

A profile names losses and aggregators without importing their tables, since it is read where torch
is not: by the command line, and by the process that runs the series.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from robustpo_kit import published
from robustpo_kit.errors import KitError


def _methods(losses: Iterable[str], aggregators: Iterable[str]) -> tuple[str, ...]:
    """Every loss under every aggregator, as `experiments.listwise_spec` reads them."""
    return tuple(" ".join(names) for names in itertools.product(losses, aggregators))


@dataclasses.dataclass(frozen=True)
class Profile:
    """The scale of a run. Counts are rows (prompts), lengths are tokens."""

    name: str
    # what is trained, on what
    task: str = "how_to"  # a name in `data.TASKS`, or what else `data.load` takes
    model: str = "smollm2-135m-instruct"  # an asset, a Hub id, a local folder, or "tiny"
    encoder: str = "minilm-l6"  # likewise
    dtype: str = "float32"  # of the policy
    # disjoint splits by prompt or conversation
    classifier_rows: int = 300
    reward_rows: int = 300
    gold_rows: int = 300
    sft_rows: int = 200
    policy_rows: int = 160
    eval_rows: int = 100
    # mixture response shift (Def. 2.1)
    contamination: float = 0.3  # share of samples whose golden slot holds a synthetic reply
    distance_rows: int = 500  # responses a source in the energy distances
    # classifiers and reward models
    classifier_kind: str = "per_source"  # of h~: per_source (Eq. 5) | shared (Sec. 4)
    classifier_features: str = "frozen"  # of h~: frozen | fine_tuned
    classifier_epochs: int = 2
    classifier_rate: float = 1e-4  # of fine-tuning: at 2e-5 MiniLM, a quarter of BERT, idles
    classifier_head_rate: float = 1e-3  # of its head, which starts at zero
    classifier_frozen: int = 3  # so many lower layers and the embeddings stay; 0 trains everything
    reward_features: str = "frozen"  # of a fitted reward model: cosine | frozen | fine_tuned
    gold_features: str = "frozen"  # of the gold reward's relevance
    kappa: float = 0.5  # of the gold reward: sds of relevance for a nat of log-odds of being human
    style_bias: float = 0.0  # of the proxy that ranks: sds for one sd of log length
    proxy_blindness: float = 0.0  # of the proxy: share of gold's kappa that it does not see
    proxy_noise: float = 0.5  # of the proxy: sd of its errors, in sds of relevance
    reward_epochs: int = 2
    folds: int = 3
    # policies
    lora_targets: str = "attention"  # attention | all-linear | none: full fine-tuning
    lora_rank: int = 16
    sft_learning_rate: float = 1e-3
    sft_epochs: int = 1
    learning_rate: float = 5e-4  # pairwise and listwise preference training, LoRA
    epochs: int = 1
    batch_size: int = 16  # prompts an optimizer step: the robust objectives couple all of them
    micro_batch_size: int = 16
    max_length: int = 1024  # tokens of prompt + response
    max_grad_norm: float = 1.0
    lam: float = 1.0  # lambda of KL-DRO
    # taken from the preset of the model, task and loss, where the papers have one (`published`)
    published: tuple[str, ...] = ()
    listwise: tuple[str, ...] = _methods(  # of notebook 04b: the losses of DoRA Table 8 in Table 4
        ("dpo_pl", "rrhf", "lire"), ("erm", "dro", "reweight", "dora")
    )
    workers: int = 1  # training processes at once; 0 = one a core, each with one thread
    # generation and judging
    max_new_tokens: int = 48
    eval_batch: int = 64
    eval_samples: int = 1  # replies a prompt
    repetition_penalty: float = 1.1
    bootstrap: int = 2000

    def of_method(self, loss: str) -> "Profile":
        """The profile as a method over `loss` takes it: with its preset's settings, if any."""
        row = published.find(self.model, self.task, loss)
        if row is None:
            return self
        run = {**row.settings, **row.chosen}
        if not row.lora:
            run["lora_targets"] = "none"
        if loss == "sft":
            run |= {"sft_learning_rate": run["learning_rate"], "sft_epochs": run["epochs"]}
        taken = {name: run[name] for name in self.published if name in run}
        return dataclasses.replace(self, **taken)


PROFILES = {
    "smoke": Profile(
        "smoke",
        model="tiny",
        encoder="tiny",
        classifier_rows=24,
        reward_rows=24,
        gold_rows=24,
        sft_rows=8,
        policy_rows=8,
        eval_rows=8,
        distance_rows=40,
        classifier_epochs=1,
        reward_epochs=1,
        folds=2,
        lora_rank=4,
        batch_size=4,
        micro_batch_size=2,
        max_new_tokens=8,
        eval_batch=8,
        bootstrap=200,
    ),
    # for a person in JupyterLab: the real models on few rows, two minutes a notebook on 2 cores
    "demo": Profile(
        "demo",
        dtype="bfloat16",
        classifier_rows=120,
        reward_rows=60,
        gold_rows=96,
        sft_rows=32,
        policy_rows=24,
        eval_rows=16,
        distance_rows=60,
        reward_epochs=1,
        folds=2,
        learning_rate=1e-3,
        batch_size=8,
        micro_batch_size=8,
        listwise=_methods(["dpo_pl"], ["erm", "dro", "reweight", "dora"]),
        max_new_tokens=24,
        eval_batch=16,
        bootstrap=500,
    ),
    # 2 cores, 20 minutes for the series: every loss with and without DoRA, all four for one loss
    "cpu": Profile(
        "cpu",
        dtype="bfloat16",
        workers=0,  # threads that wait for one another lose on a busy machine
        classifier_rows=240,
        sft_rows=96,
        policy_rows=72,
        eval_rows=100,
        learning_rate=1e-3,
        batch_size=8,
        micro_batch_size=8,
        listwise=(
            *_methods(["dpo_pl"], ["erm", "dro", "reweight", "dora"]),
            *_methods(["rrhf", "lire"], ["erm", "dora"]),
        ),
        max_new_tokens=40,
        eval_batch=100,
    ),
    "gpu": Profile(
        "gpu",
        dtype="bfloat16",
        classifier_rows=300,
        reward_rows=200,
        gold_rows=200,
        sft_rows=300,
        policy_rows=300,
        eval_rows=150,
        classifier_epochs=3,
        reward_epochs=3,
        lora_targets="all-linear",
        epochs=2,
        batch_size=32,
        micro_batch_size=32,
        eval_batch=256,
        eval_samples=4,
    ),
    # DoRA's setting, or by `model` and `task` any other of `published.PRESETS`; 400 queries (C.4).
    # What the papers leave open (rows, LoRA's targets and rank) stands here.
    "paper": Profile(
        "paper",
        classifier_kind="shared",
        classifier_features="fine_tuned",
        task="hh",
        model="mistralai/Mistral-7B-v0.1",
        encoder="google-bert/bert-base-uncased",
        dtype="bfloat16",
        classifier_rows=20000,
        reward_rows=20000,
        gold_rows=20000,
        sft_rows=40000,
        policy_rows=40000,
        eval_rows=400,
        contamination=0.0,  # C.1: two synthetic replies beside the pair, which stays
        classifier_epochs=published.CLASSIFIER["epochs"],
        classifier_rate=published.CLASSIFIER["learning_rate"],
        classifier_head_rate=published.CLASSIFIER["learning_rate"],
        classifier_frozen=0,
        reward_epochs=1,
        lora_targets="all-linear",
        learning_rate=2e-5,
        batch_size=32,
        micro_batch_size=8,
        eval_batch=64,
        repetition_penalty=1.0,  # C.3 lists none
        published=(
            "batch_size",
            "epochs",
            "learning_rate",
            "lora_targets",
            "max_grad_norm",
            "max_length",
            "max_new_tokens",
            "sft_epochs",
            "sft_learning_rate",
        ),
    ),
}


def get(name: str, overrides: Mapping[str, Any] | None = None) -> Profile:
    """The profile `name` with `overrides` in place of its settings, and of published ones.

    Raises KitError for an unknown profile or setting, or a value of another type.
    """
    if name not in PROFILES:
        raise KitError(f"profile: '{name}' is unknown; choose one of {', '.join(PROFILES)}")
    profile = PROFILES[name]
    changes = {key: _fitting(profile, key, value) for key, value in (overrides or {}).items()}
    kept = tuple(name for name in profile.published if name not in changes)
    if "max_new_tokens" in kept:
        task = changes.get("task", profile.task)
        changes["max_new_tokens"] = published.NEW_TOKENS.get(task, profile.max_new_tokens)
    return dataclasses.replace(profile, **{"published": kept, **changes})


def _fitting(profile: Profile, setting: str, value: Any) -> Any:
    """`value` in the type of the setting: whole numbers stand for floats, lists for tuples."""
    settings = [field.name for field in dataclasses.fields(Profile) if field.name != "name"]
    if setting not in settings:
        choices = ", ".join(settings)
        raise KitError(f"overrides: '{setting}' is not a setting; choose among {choices}")
    current = getattr(profile, setting)
    if isinstance(current, float) and type(value) is int:
        return float(value)
    if isinstance(current, tuple) and isinstance(value, list):
        return tuple(value)
    if type(value) is not type(current):
        raise KitError(
            f"overrides: {setting} = {value!r} should be of type {type(current).__name__}, "
            f"like {current!r}"
        )
    return value
