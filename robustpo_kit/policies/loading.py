"""Policies from an asset, the Hub, a local folder, or a folder that `Policy.save` wrote."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from robustpo_kit import assets
from robustpo_kit.data import Template
from robustpo_kit.errors import KitError
from robustpo_kit.policies.lora import fuse
from robustpo_kit.policies.policy import RECORD, Policy, on_device, own_template, with_pad
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

    Args:
        source: an asset name, a Hub id, a local Hugging Face folder, a folder that `Policy.save`
            wrote, or "tiny" (random weights).
        template: of prompts; default: the saved one, else the tokenizer's chat template, if any.
        dtype: a floating-point type of torch by name.
        device: default: this rank's GPU, or the CPU where there is none.

    Raises:
        KitError: for an unknown source or dtype.
    """
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise KitError(f"dtype: '{dtype}' is not a floating-point type; use float32 or bfloat16")
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
    hf_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, attn_implementation="sdpa")
    tokenizer = with_pad(AutoTokenizer.from_pretrained(folder))
    origin = record.get("origin", str(source))
    record = {**record, "source": str(source), "origin": origin, "dtype": dtype}
    record.pop("merged", None)  # the merged weights lie in this folder now
    return Policy(on_device(model, device), tokenizer, template or own_template(tokenizer), record)


def _with_adapter(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    from peft import PeftModel

    return fuse(PeftModel.from_pretrained(model, folder, is_trainable=True))
