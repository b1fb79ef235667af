"""Profiles: one frozen dataclass, one place for defaults; every notebook runs the same code under each of them."""

import dataclasses
from typing import Any

from robustpo_kit.errors import KitError

LISTWISE = ("dpo_pl", "rrhf", "lire")
AGGREGATORS = ("erm", "dro", "reweight", "dora")


@dataclasses.dataclass(frozen=True)
class Profile:
    """The scale of a run. Counts are rows (prompts), lengths are tokens, times are left to be measured."""

    name: str
    # what is trained, on what
    task: str = "how_to"  # how_to | dialogue | summaries
    model: str = "smollm2-135m-instruct"  # an asset, a Hub id, a local folder, or "tiny"
    encoder: str = "minilm-l6"  # likewise
    dtype: str = "float32"  # of the policy
    # disjoint splits by prompt or conversation
    classifier_rows: int = 300
    reward_rows: int = 300
    judge_rows: int = 300
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
    reward_features: str = (
        "frozen"  # of the proxy that ranks the training set: cosine | frozen | fine_tuned
    )
    judge_features: str = (
        "fine_tuned"  # of the judge: another kind, so that it does not share the proxy's errors
    )
    reward_epochs: int = 2
    folds: int = 3
    # policies
    lora_targets: str = "attention"  # attention | all-linear
    lora_rank: int = 16
    sft_learning_rate: float = 1e-3
    sft_epochs: int = 1
    learning_rate: float = 5e-4  # pairwise and listwise preference training, LoRA
    epochs: int = 1
    batch_size: int = 16  # prompts an optimizer step: the robust objectives couple all of them
    micro_batch_size: int = 16
    lam: float = 1.0  # lambda of KL-DRO
    listwise: tuple[str, ...] = tuple(
        f"{loss} {a}" for loss in LISTWISE for a in AGGREGATORS
    )  # methods of notebook 04
    workers: int = 1  # training processes at once; 0 = one a core, each with one thread
    # generation and judging
    max_new_tokens: int = 48
    eval_batch: int = 64
    eval_samples: int = 1  # replies a prompt
    bootstrap: int = 2000


PROFILES = {
    "smoke": Profile(
        "smoke",
        model="tiny",
        encoder="tiny",
        classifier_rows=24,
        reward_rows=24,
        judge_rows=24,
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
    # 2 cores, at most 20 minutes for the series: every loss with and without DoRA, all four aggregators for one loss
    "cpu": Profile(
        "cpu",
        dtype="bfloat16",
        workers=0,  # processes of one thread each: threads that wait for one another lose on a busy machine
        classifier_rows=240,
        sft_rows=96,
        policy_rows=72,
        eval_rows=100,
        learning_rate=1e-3,
        batch_size=8,
        micro_batch_size=8,
        listwise=(
            "dpo_pl erm",
            "dpo_pl dro",
            "dpo_pl reweight",
            "dpo_pl dora",
            "rrhf erm",
            "rrhf dora",
            "lire erm",
            "lire dora",
        ),
        max_new_tokens=40,
        eval_batch=100,
    ),
    "gpu": Profile(
        "gpu",
        dtype="bfloat16",
        classifier_rows=300,
        reward_rows=300,
        judge_rows=300,
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
    # Papers: DoRA Table 8 and App. C.3 (batch 32, LoRA 2e-5 listwise for Mistral, 128 new tokens, 400 queries).
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
        judge_rows=20000,
        sft_rows=40000,
        policy_rows=40000,
        eval_rows=400,
        classifier_epochs=3,
        reward_epochs=1,
        lora_targets="all-linear",
        sft_learning_rate=5e-7,
        learning_rate=2e-5,
        batch_size=32,
        micro_batch_size=8,
        max_new_tokens=128,
        eval_batch=64,
    ),
}


def get(name: str, overrides: dict[str, Any] | None = None) -> Profile:
    """The profile `name` with `overrides`; raises KitError for an unknown profile, field or a value of another type."""
    if name not in PROFILES:
        raise KitError(f"profile: '{name}' is unknown; choose one of {', '.join(PROFILES)}")
    profile = PROFILES[name]
    fields = {field.name: field for field in dataclasses.fields(Profile)}
    for key, value in (overrides or {}).items():
        if key not in fields or key == "name":
            raise KitError(
                f"overrides: '{key}' is not a setting; choose among {', '.join(k for k in fields if k != 'name')}"
            )
        current = getattr(profile, key)
        if isinstance(current, float) and type(value) is int:
            value = float(value)
        if isinstance(current, tuple) and isinstance(value, list):
            value = tuple(value)
        if type(value) is not type(current):
            raise KitError(
                f"overrides: {key} = {value!r} should be of type {type(current).__name__}, like {current!r}"
            )
        profile = dataclasses.replace(profile, **{key: value})
    return profile
