"""Policies from an asset, the Hub, a local folder, or a folder that `Policy.save` wrote."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from robustpo_kit import assets, paths
from robustpo_kit.data import Template
from robustpo_kit.errors import KitError
from robustpo_kit.policies.first_rank import join_ranks, of_first_rank, without_weights
from robustpo_kit.policies.lora import fold, fuse, quietly
from robustpo_kit.policies.passes import first_line
from robustpo_kit.policies.policy import RECORD, Policy, on_device, own_template, with_pad
from robustpo_kit.policies.probing import Fit, fit_of, take_fit
from robustpo_kit.policies.tiny import byte_tokenizer, tiny
from robustpo_kit.records import read_json


def load(
    source: str | Path,
    *,
    template: Template | None = None,
    dtype: str = "float32",
    device: str | torch.device | None = None,
) -> Policy:
    """A policy with its tokenizer and template, on its device.

    Under FSDP2 with `fsdp_cpu_ram_efficient_loading`, as in accelerate/fsdp2.yaml, all ranks call
    it, the first one reads the weights, and they stay on the CPU until they are sharded.

    Args:
        source: an asset name, a Hub id, a local Hugging Face folder, a folder that `Policy.save`
            wrote, or "tiny" (random weights).
        template: of prompts; default: the saved one, else the tokenizer's chat template, if any.
        dtype: a floating-point type of torch by name.
        device: default: this rank's GPU, or the CPU where there is none.

    Raises:
        KitError: for an unknown source or dtype, for weights that are missing, or for a model
            whose log-probs cannot be computed rightly (`fit_of`).
    """
    kind = floating_type(dtype)
    join_ranks()
    if str(source) == "tiny":
        return tiny(byte_tokenizer(), template=template, device=device)
    folder = assets.resolve(str(source))
    record: dict[str, Any] = {}
    if (folder / RECORD).exists():
        record = read_json(folder / RECORD)
    if template is None and record.get("template"):
        template = Template(**record["template"])
    if record.get("adapter"):
        base = load(record["source"], template=template, dtype=dtype, device=device)
        base.model = _with_adapter(base.model, folder)
        return dataclasses.replace(base, record=record)
    model = _model_of_rank(folder, kind, str(source), device)
    tokenizer = with_pad(_tokenizer(folder, str(source)))
    origin = record.get("origin", str(source))
    record = {**record, "source": str(source), "origin": origin, "dtype": dtype}
    record.pop("merged", None)  # the merged weights lie in this folder now
    return Policy(model, tokenizer, template or own_template(tokenizer), record)


def _tokenizer(folder: Path, source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, or of the base model where an adapter has none of its own."""
    if not (folder / "tokenizer_config.json").exists():
        folder = _base_folder(folder)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise KitError(
            f"{source}: no tokenizer can be read from {paths.show(folder)} ({first_line(error)}); "
            "save one there with `tokenizer.save_pretrained`"
        ) from None


def floating_type(name: str) -> torch.dtype:
    """torch's floating-point type of that name; raises KitError where there is none."""
    kind = getattr(torch, name, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise KitError(f"dtype: '{name}' is not a floating-point type; use float32 or bfloat16")
    return kind


def _model_of_rank(
    folder: Path, dtype: torch.dtype, source: str, device: str | torch.device | None
) -> torch.nn.Module:
    """The model on its device, examined, with weights where this rank reads them."""
    read: list[torch.nn.Module] = []

    def examined() -> Fit:
        read.append(on_device(_model(folder, dtype, source), device))
        return fit_of(read[0])

    fit = of_first_rank(examined)
    if read:
        return read[0]
    model = _without_weights(folder, dtype)
    take_fit(model, fit)
    return model


def _without_weights(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The same model on a rank that will be handed its shards."""
    config = AutoConfig.from_pretrained(_base_folder(folder))
    model: Any = without_weights(lambda: AutoModelForCausalLM.from_config(config, dtype=dtype))
    model.tie_weights()
    return model.eval()


def _model(folder: Path, dtype: torch.dtype, source: str) -> torch.nn.Module:
    """The model of a folder with all its weights; its attention is the architecture's choice.

    An adapter that peft wrote is folded into its base.
    """
    hf_logging.disable_progress_bar()
    options: Any = {"dtype": dtype, "output_loading_info": True}
    base = _base_folder(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(base, **options)
    except Exception as error:
        raise KitError(
            f"{source}: transformers loads no causal language model from it "
            f"({first_line(error)}); choose another model"
        ) from None
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        raise KitError(
            f"{source}: holds no weights for {missing[0]} ({len(missing)} such) of "
            f"{type(model).__name__}, which would stay random; choose a causal language model"
        )
    return model if base == folder else fold(_with_adapter(model, folder))


def _base_folder(folder: Path) -> Path:
    """Where the weights lie: the base model's folder, if `folder` holds an adapter alone."""
    named = folder / "adapter_config.json"
    if not named.exists() or (folder / "config.json").exists():
        return folder
    return assets.resolve(str(read_json(named)["base_model_name_or_path"]))


def _with_adapter(model: torch.nn.Module, folder: Path) -> Any:
    from peft import PeftModel

    with quietly():
        return fuse(PeftModel.from_pretrained(model, folder, is_trainable=True))
