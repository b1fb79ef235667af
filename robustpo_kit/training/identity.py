"""What a run is: all that decides its weights, by name, so that a difference can be named."""

import dataclasses
import json
from typing import Any, NamedTuple

from torch import nn
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from robustpo_kit.policies import Policy, TokenTable
from robustpo_kit.records import digest
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.reference import model_config, reference_code
from robustpo_kit.training.signals import Signals
from robustpo_kit.training.step_objective import StepObjective

# Settings that decide no weight: where things are written, and what memory a step may take.
FREE = (
    "checkpoint",
    "checkpoint_every",
    "reference_cache",
    "gradient_checkpointing",
    "micro_batch_size",
    "tokens_per_pass",
)
DIGITS = 16  # of a digest
NAMED = 6  # differences that a message names

Identity = dict[str, Any]


class RunInputs(NamedTuple):
    """What a run is made of, before its first step."""

    policy: Policy  # trained in place
    tokens: TokenTable  # N rows
    signals: Signals  # what is known of the same rows
    objective: StepObjective  # with the state that it starts from
    config: TrainConfig
    arguments: TrainingArguments  # what transformers.Trainer is told


def run_identity(inputs: RunInputs) -> Identity:
    """All that decides the weights of a run, by name, as JSON knows it.

    Settings are there as they are, data and weights as digests. How a step is cut up does not count
    where its gradient is that of the one big batch; nor do reference log-probs, for which the code
    that scores them stands.
    """
    policy, tokens, signals, objective, config, arguments = inputs
    settings = dataclasses.asdict(config)
    for name in FREE:
        settings.pop(name)
    if config.window == "micro":
        settings["micro_batch_size"] = config.micro_batch_size
        settings["tokens_per_pass"] = config.tokens_per_pass
    parts = {
        "tokens": tokens.digest()[:DIGITS],
        "rewards": _digest_or_none(signals.rewards),
        "h": _digest_or_none(signals.h),
        "objective": objective.spec,
        "state of the objective": digest(objective.state_dict(), length=DIGITS),
        "optimizer": _optimizer(arguments),
        "weights": policy.fingerprint()[:DIGITS],
        "dtype": sorted({str(weight.dtype) for weight in policy.model.parameters()}),
        "model config": model_config(policy),
        "trained weights": _shapes(policy),
        "adapter": _adapter_settings(policy),
        "adapter weights": _adapter_weights(policy.model),
        **settings,
    }
    if objective.needs_reference:
        parts["code of the reference"] = reference_code()
    return json.loads(json.dumps(parts, default=_plain))


def differences(stored: Identity, own: Identity, within: str = "") -> list[str]:
    """What differs between a stored identity and one's own, in words.

    Args:
        stored: Read from a checkpoint.
        own: Of the run that would go on from it.
        within: Name of the entry that they are, with a colon, in the recursion.
    """
    found = []
    for name in dict.fromkeys((*own, *stored)):
        before, now = stored.get(name), own.get(name)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            found += differences(before, now, f"{within}{name}: ")
        elif _is_digest(before) or _is_digest(now):
            found.append(f"{within}other {name}")
        else:
            found.append(f"{within}{name} is {_shown(now)} and was {_shown(before)}")
    return found


def in_words(found: list[str]) -> str:
    """The first differences, as a phrase."""
    more = len(found) - NAMED
    return ", ".join(found[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _digest_or_none(value: Any) -> str | None:
    return None if value is None else digest(value, length=DIGITS)


def _optimizer(arguments: TrainingArguments) -> dict[str, Any]:
    return {
        "name": OptimizerNames(arguments.optim).value.removesuffix("_fused"),
        "betas": [arguments.adam_beta1, arguments.adam_beta2],
        "epsilon": arguments.adam_epsilon,
        "mixed precision": arguments.mixed_precision,
    }


def _shapes(policy: Policy) -> str:
    shapes = [(name, list(weight.shape), str(weight.dtype)) for name, weight in policy.trainable()]
    return digest(shapes, length=DIGITS)


def _adapter_settings(policy: Policy) -> dict[str, Any]:
    """peft's settings of every adapter, but for what they say of files and versions."""
    adapters = {}
    for name, settings in getattr(policy.model, "peft_config", {}).items():
        kept = dict(settings.to_dict())
        for aside in ("base_model_name_or_path", "revision", "peft_version", "inference_mode"):
            kept.pop(aside, None)
        adapters[name] = kept
    return adapters


def _adapter_weights(model: nn.Module) -> str | None:
    adapter = [(name, w.detach()) for name, w in model.named_parameters() if "lora_" in name]
    return digest(adapter, length=DIGITS) if adapter else None


def _plain(value: Any) -> Any:
    """Sets, enumerations and the like, of peft's and transformers' settings, as JSON knows them."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return str(value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == DIGITS and set(value) <= set("0123456789abcdef")


def _shown(value: Any) -> str:
    return json.dumps(value) if value is not None else "not there"
