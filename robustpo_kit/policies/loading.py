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
from robustpo_kit.policies.policy import RECORD, Policy, on_device, with_pad
from robustpo_kit.policies.tiny import byte_tokenizer, tiny
from robustpo_kit.records import read_json


def load(
    source: str | Path,
    *,
    template: Template | None = None,
    dtype: str = "float32",
    device: str | torch.device | None = None,
) -> Policy:
    """A policy from an asset name, a Hub id, a local Hugging Face folder, or a folder that `Policy.save` wrote.

    `template` defaults to the saved one, else to the tokenizer's chat template where it has one. Raises KitError for
    an unknown source or dtype.
    """
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise KitError(f"dtype: '{dtype}' is not a floating-point type; use float32 or bfloat16")
    if str(source) == "tiny":
        return tiny(byte_tokenizer(), template=template, device=device)
    folder = assets.resolve(str(source))
    record = read_json(folder / RECORD) if (folder / RECORD).exists() else {}
    if record.get("adapter"):
        return _load_adapter(folder, record, template, dtype, device)
    record = {**record, "source": str(source), "origin": record.get("origin", str(source))}
    record.pop("merged", None)
    hf_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if template is None:
        saved = record.get("template")
        template = (
            Template(**saved)
            if saved
            else Template(kind="chat" if tokenizer.chat_template else "plain")
        )
    return Policy(
        on_device(model, device), with_pad(tokenizer), template, {**record, "dtype": dtype}
    )


def _load_adapter(
    folder: Path, record: dict, template: Template | None, dtype: str, device: Any
) -> Policy:
    from peft import PeftModel

    base = load(
        record["source"],
        template=template or Template(**record["template"]),
        dtype=dtype,
        device=device,
    )
    base.model = fuse(PeftModel.from_pretrained(base.model, folder, is_trainable=True))
    return dataclasses.replace(base, record=record)
