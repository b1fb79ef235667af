"""Every causal language model of transformers, made tiny: how the kit computes it, and if rightly.

`python tests/architectures.py --write` (`make architectures`) examines all of them in float32 and
bfloat16, holds each result against the model's own logits, and writes the committed table
data/results/engine/architectures.csv with its provenance, and docs/architectures.md; with names it
prints theirs. test_architectures.py examines the common ones, and by `make check-all` all of them.

A model is made from its configuration's own defaults with small sizes. Whatever moves logits or
attention is switched on and away from 1: scales, soft-caps, windows shorter than the texts.
"""

import dataclasses
import functools
import inspect
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from robustpo_kit import policies, records
from robustpo_kit.errors import KitError
from robustpo_kit.policies import probing
from robustpo_kit.policies.passes import no_cache

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "data" / "results" / "engine" / "architectures.csv"
PAGE = ROOT / "docs" / "architectures.md"
NAMES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 8_000_000  # parameters; a model that stays larger is not made
WINDOW = 6  # positions; every text below is longer
DTYPES = ("float32", "bfloat16")
SEEDS = 5

IDS = dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 1) | {
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOKENS = ("vocab_size", "vocab_size_per_layer_input")
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length")
WIDTHS = (
    "hidden_size",
    "d_model",
    "n_embd",
    "dim",
    "emb_dim",
    "embedding_size",
    "input_embedding_size",
    "output_embedding_size",
    "word_embed_proj_dim",
    "hidden_dim",
)
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
SIDE_LAYERS = ("decoder_layers", "encoder_layers", "num_decoder_layers", "num_encoder_layers")
HEADS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "decoder_attention_heads",
    "encoder_attention_heads",
    "num_decoder_attention_heads",
    "num_encoder_attention_heads",
    "num_experts",
    "n_routed_experts",
    "num_local_experts",
    "moe_num_experts",
    "linear_num_value_heads",
    "linear_num_heads",
    "mamba_dt_rank",
    "qk_rope_head_dim",
)
INNER = (
    "intermediate_size",
    "intermediate_size_mlp",
    "dense_intermediate_size",
    "ffn_dim",
    "decoder_ffn_dim",
    "encoder_ffn_dim",
    "ffn_hidden_size",
    "n_inner",
    "d_inner",
    "inner_dim",
    "dff",
    "dim_ff",
)
EXPERTS = (
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "shared_experts_intermediate_size",
    "shared_intermediate_size",
    "expert_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "q_lora_rank",
    "kv_lora_rank",
)
EIGHTS = (
    "head_dim",
    "rotary_dim",
    "qk_nope_head_dim",
    "index_head_dim",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_head_dim",
    "mamba_d_state",
    "mamba_n_heads",
    "mamba_d_head",
    "mamba_chunk_size",
    "mamba_num_heads",
    "mamba_head_dim",
    "ssm_state_size",
    "state_size",
    "hidden_size_per_layer_input",
    "query_pre_attn_scalar",
    "attention_chunk_size",
)
TWOS = (
    "num_key_value_heads",
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "index_n_heads",
    "linear_num_key_heads",
    "max_window_layers",
)
ONES = (
    "n_group",
    "n_groups",
    "topk_group",
    "num_expert_group",
    "n_shared_experts",
    "num_shared_experts",
    "first_k_dense_replace",
)
WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "window_size",
    "attention_window_size",
    "local_attention",
)
DROPOUTS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "resid_pdrop",
    "embd_pdrop",
    "dropout",
    "hidden_dropout_prob",
    "activation_dropout",
)
SMALL: dict[str, Any] = (
    IDS
    | dict.fromkeys(TOKENS, 64)
    | dict.fromkeys(POSITIONS, 128)
    | dict.fromkeys(WIDTHS, 32)
    | dict.fromkeys(LAYERS, 4)
    | dict.fromkeys(SIDE_LAYERS, 3)
    | dict.fromkeys(HEADS, 4)
    | dict.fromkeys(INNER, 48)
    | dict.fromkeys(EXPERTS, 16)
    | dict.fromkeys(EIGHTS, 8)
    | dict.fromkeys(TWOS, 2)
    | dict.fromkeys(ONES, 1)
    | dict.fromkeys(WINDOWS, WINDOW)
    | dict.fromkeys(DROPOUTS, 0.0)
    | {
        "v_head_dim": 6,
        "qk_head_dim": 12,
        "index_topk": 64,
        "time_step_rank": 4,
        "is_decoder": True,
        "use_sliding_window": True,
        "logits_scaling": 3.0,
        "logit_scale": 0.5,
        "lm_head_multiplier": 0.6,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.7,
        "final_logit_softcapping": 3.0,
        "logits_soft_cap": 3.0,
        "attn_logit_softcapping": 2.0,
    }
)
LATENT_TYPES = (
    "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
    "longcat_flash", "minicpm3", "youtu",
)  # fmt: skip
LATENT = {"head_dim": 4, "num_key_value_heads": 4}  # multi-head latent attention
HALF_LINEAR = {"layer_types": ["full_attention", "linear_attention"] * 2}
SWA_HEADS = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
NOTE = {"num_key_value_heads": 4, "head_dim": 12, "per_layer_config": {}}
VISION = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16} | dict.fromkeys(
    ("num_attention_heads", "num_heads"), 2
)
QSA = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 8,
    "ple_embed_dim": 16,
    "ngram_vocab_size_base": 64,
}
OWN: dict[str, dict[str, Any]] = {  # what single architectures need beside SMALL
    **dict.fromkeys(LATENT_TYPES, LATENT),
    "bailing_hybrid": HALF_LINEAR | {"num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE},
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    },
    "dbrx": {
        "rope_parameters": ROPE,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note": {"text_config": NOTE, "vision_config": VISION},
    "dots3_note_text": NOTE,
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 1},
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 1}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": HALF_LINEAR,
    "inkling2_text": SWA_HEADS | {"unpadded_vocab_size": 60},
    "inkling_text": SWA_HEADS,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": HALF_LINEAR | LATENT,
    "lfm2_moe": {"layer_types": ["full_attention", "conv"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "moshi": {"audio_vocab_size": 32},
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "phi4_multimodal": {
        "audio_config": {
            "ext_pw_out_channel": 16, "nemo_conv_channels": 16, "hidden_size": 16, "num_blocks": 1,
        },
        "vision_config": {"hidden_size": 16},
    },
    "qwen4_exp": {"text_config": QSA},
    "qwen4_exp_text": QSA,
    "reformer": {
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"] * 2,
        "num_hashes": 1,
        "lsh_attn_chunk_length": 4,
        "local_attn_chunk_length": 4,
        "num_buckets": 4,
    },
    "roc_bert": dict.fromkeys(("shape_embed_dim", "pronunciation_embed_dim"), 8)
    | dict.fromkeys(("shape_vocab_size", "pronunciation_vocab_size"), 64),
    "xlstm": {"chunk_size": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


class NotMade(Exception):
    """A tiny model of the architecture cannot be made, and why."""


def tiny_settings(kind: type[PreTrainedConfig], own: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a configuration class: SMALL as far as it knows the names, then `own`."""
    known = {*inspect.signature(kind.__init__).parameters, *getattr(kind, "attribute_map", {})}
    known |= set(getattr(kind, "__dataclass_fields__", {}))
    settings = {name: value for name, value in SMALL.items() if name in known}
    for name, part in (getattr(kind, "sub_configs", None) or {}).items():
        if part is AutoConfig:
            part = type(getattr(kind(), name, None))
        if issubclass(part, PreTrainedConfig):
            settings[name] = tiny_settings(part, own.get(name, {}))
    parts = set(getattr(kind, "sub_configs", None) or {})
    return settings | {name: value for name, value in own.items() if name not in parts}


def tiny_config(name: str) -> PreTrainedConfig:
    """A small configuration of a model type; raises NotMade."""
    kind = CONFIG_MAPPING[name]
    try:
        config = kind(**tiny_settings(kind, OWN.get(name, {})))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise NotMade(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}") from None
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > LARGEST:
        raise NotMade(f"stays large: {size / 1e6:.0f} million parameters")
    return config


def tiny_model(name: str, dtype: str = "float32", seed: int = 0) -> torch.nn.Module:
    """A random model in evaluation mode, its biases and norms moved off their trivial start."""
    config = tiny_config(name)
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(config).eval()
    except Exception as error:
        raise NotMade(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}") from None
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.to(getattr(torch, dtype))


# ---------------------------------------------------------------- right or not


SHAPES = ((7, (5, 2, 9)), (11, (4, 6)), (8, (3, 7, 5)), (13, (1, 8)), (9, (6, 4, 10)))


def ragged_rows() -> list[policies.TokenRow]:
    """Five prompts with two or three responses of different lengths, all longer than WINDOW."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for number, (prompt, sizes) in enumerate(SHAPES):
        drawn = [torch.randint(3, 60, (n,), generator=generator) for n in (prompt, *sizes)]
        tokens = [tuple(ids.tolist()) for ids in drawn]
        rows.append(policies.TokenRow(str(number), tokens[0], tuple(tokens[1:]), (0,) * len(sizes)))
    return rows


def by_hand(model: torch.nn.Module, rows: list[policies.TokenRow]) -> torch.Tensor:
    """[B, K] log-probs from the model's own logits, one plain text a pass; absent columns are 0."""
    found = [[torch.zeros(()) for _ in range(3)] for _ in rows]
    for b, row in enumerate(rows):
        for k, response in enumerate(row.responses):
            ids = torch.tensor([row.prompt + response])
            out = model(input_ids=ids, **no_cache(model)).logits
            logits = out[0, len(row.prompt) - 1 : -1].float()
            logps = torch.log_softmax(logits, -1)
            found[b][k] = logps[range(len(response)), list(response)].sum()
    return torch.stack([torch.stack(row) for row in found])


def with_gradients(
    model: torch.nn.Module, score: Callable[[], torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs, and gradients by parameter of a sum that weighs every response differently."""
    model.zero_grad()
    logps = score()
    (logps * torch.linspace(-1, 2, logps.numel()).view_as(logps)).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return logps.detach(), gradients


def gradient_error(found: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> float:
    """The relative difference of two gradients, over all parameters together."""
    apart = sum(
        float((found.get(n, torch.zeros_like(g)) - g).double().square().sum())
        for n, g in own.items()
    )
    return (apart / sum(float(g.double().square().sum()) for g in own.values())) ** 0.5


@dataclasses.dataclass(frozen=True)
class Finding:
    """How an architecture is computed in one precision, and how far that is from its own logits."""

    way: str  # shared | separate, with "own logits" where the kit does not project; refused
    reasons: str = ""
    nats: float = 0.0  # from its weights in float32: root mean square over responses
    gradient: float = 0.0  # the same, relative
    own_nats: float = 0.0  # the model itself in this precision, from itself in float32
    own_gradient: float = 0.0

    def wrong(self) -> bool:
        """Whether the kit is farther from float32 than twice what the model's own rounding is."""
        if self.way == "refused":
            return False
        values = self.nats > 1e-5 + 2 * self.own_nats
        return values or self.gradient > 1e-4 + 2 * self.own_gradient


def examined(name: str, dtype: str, seed: int = 0) -> Finding:
    """The kit on one tiny model, and the model itself, against the same weights in float32."""
    model = tiny_model(name, dtype, seed)
    try:
        fit = probing.fit_of(model)
    except KitError as error:
        reason = str(error).split("rightly: ")[-1].removesuffix("; choose another model")
        return Finding("refused", reason)
    rows = ragged_rows()
    layout = "shared" if fit.shared else "separate"
    batch = policies.collate(rows, layout=layout)
    found = with_gradients(model, lambda: policies.sequence_logps(model, batch))
    policies.sequence_logps(model.train(), batch)  # as in training, too
    truth = own_values(tiny_model(name, dtype, seed).float())
    own = own_values(tiny_model(name, dtype, seed))
    way = layout if fit.scale is not None else f"{layout}, own logits"
    return Finding(way, "; ".join(fit.reasons), *errors(found, truth), *errors(own, truth))


def own_values(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs and gradients from the logits of a model whose attention was routed nowhere."""
    return with_gradients(model, lambda: by_hand(model, ragged_rows()))


def errors(
    found: tuple[torch.Tensor, dict[str, torch.Tensor]],
    truth: tuple[torch.Tensor, dict[str, torch.Tensor]],
) -> tuple[float, float]:
    """Root mean square of log-probs' differences in nats; relative difference of gradients."""
    real = truth[0] != 0
    nats = (found[0] - truth[0])[real].double().square().mean().sqrt()
    return float(nats), gradient_error(found[1], truth[1])


@functools.cache
def findings(name: str) -> tuple[Finding, ...]:
    """What is found in every precision; raises NotMade.

    Two roundings of a few responses may differ by more than twice, by chance: what looks wrong is
    judged over SEEDS models. An error is there in all of them.
    """
    found = []
    for dtype in DTYPES:
        first = examined(name, dtype)
        if first.wrong():
            first = pooled([first, *(examined(name, dtype, seed) for seed in range(1, SEEDS))])
        found.append(first)
    return tuple(found)


def pooled(parts: list[Finding]) -> Finding:
    """One finding of several models: root mean squares of their errors."""
    names = ("nats", "gradient", "own_nats", "own_gradient")
    squares = {name: sum(getattr(p, name) ** 2 for p in parts) / len(parts) for name in names}
    errors = {name: square**0.5 for name, square in squares.items()}
    ways = sorted({part.way for part in parts})
    return dataclasses.replace(parts[0], way=" or ".join(ways), **errors)


# ---------------------------------------------------------------- the table


def table_row(name: str) -> dict[str, Any]:
    """A row of the committed table."""
    row: dict[str, Any] = {"model_type": name, "model": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]}
    try:
        found = findings(name)
    except NotMade as reason:
        return row | dict.fromkeys(DTYPES, "not made") | {"reason": str(reason)}
    except Exception as error:  # the sweep goes on, and ends in failure
        return row | dict.fromkeys(DTYPES, "fails") | {"reason": repr(error), "wrong": True}
    row |= {dtype: finding.way for dtype, finding in zip(DTYPES, found, strict=True)}
    reason, *others = [finding.reasons for finding in found]
    if found[1].way != found[0].way:
        reason = "; ".join(filter(None, [reason, *(f"{DTYPES[1]}: {other}" for other in others)]))
    return row | {"reason": reason, "wrong": any(f.wrong() for f in found)}


def main(arguments: list[str]) -> int:
    """Print rows of the table; with --write all of them, into the table."""
    logging.getLogger("robustpo_kit").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    started = time.time()
    names = [name for name in arguments if not name.startswith("-")] or list(NAMES)
    rows = []
    for name in names:
        row = table_row(name)
        rows.append(row)
        print(" | ".join(str(value) for value in row.values()), flush=True)
        shown = findings(name) if row["float32"] not in ("not made", "fails") else ()
        shown = shown if row.get("wrong") or len(names) < 9 else ()
        for dtype, finding in zip(DTYPES, shown, strict=False):
            print("   ", dtype, finding)
    wrong = [row["model_type"] for row in rows if row.get("wrong")]
    if wrong:
        print(f"wrong, so nothing is written: {', '.join(wrong)}")
    elif "--write" in arguments:
        write(pd.DataFrame(rows).drop(columns="wrong"), started)
    return int(bool(wrong))


def write(table: pd.DataFrame, started: float) -> None:
    """The table with its provenance, and the page."""
    config = {"parameters": LARGEST, "command": "python tests/architectures.py --write"}
    record = records.provenance(config, 0, started)
    records.write_table(TABLE, table, record)
    records.write_text(PAGE, page(table, record["versions"]))


INTRODUCTION = """# How each architecture is computed

Written by `make architectures`. When a model is loaded, the kit holds its log-probs and a gradient
against the model's own logits, and takes the fastest way that differs by no more than rounding.
Here is the way of every causal language model of transformers {transformers} (torch {torch}), made
tiny and random, in float32 and bfloat16; the same table with its origin is
[data/results/engine/architectures.csv](../data/results/engine/architectures.csv).

- **shared**: a prompt is computed once for all its responses.
- **separate**: each response is computed with its own copy of the prompt.
- **own logits**: the model's own head is asked, which keeps [tokens, vocabulary] in memory.
- **refused**: no way is right; loading the model says why.
- **not made**: no tiny model of it can be built here, and the check at load decides.

{counts}. No way differed from float32 by more than twice the model's own rounding.

| model type | model | float32 | bfloat16 | reason |
|---|---|---|---|---|
"""


def page(table: pd.DataFrame, versions: dict[str, str]) -> str:
    """docs/architectures.md."""
    ways = table["float32"].value_counts()
    counts = "; ".join(f"{count} {way}" for way, count in ways.items())
    lines = [
        "| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |"
        for row in table.fillna("").itertuples(index=False)
    ]
    head = INTRODUCTION.format(counts=f"In float32: {counts}", **versions)
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
