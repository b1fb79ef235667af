"""A language model and the log-probabilities of K responses a prompt, the prompt computed once."""

from robustpo_kit.policies.batches import Batch, collate
from robustpo_kit.policies.decoding import SamplingConfig
from robustpo_kit.policies.first_rank import first_rank_loads, of_first_rank
from robustpo_kit.policies.loading import floating_type, load
from robustpo_kit.policies.logprobs import scored_tokens, sequence_logps
from robustpo_kit.policies.lora import FusedLinear, fuse, merged_adapter
from robustpo_kit.policies.policy import Policy, own_template
from robustpo_kit.policies.probing import Fit, fit_of, flex_serves, use_block_attention
from robustpo_kit.policies.projection import CHUNK_BYTES, LogitScale, token_logps, unwrap
from robustpo_kit.policies.sampling import (
    Reply,
    cut_to_sentence,
    drawn_tokens,
    sample,
    sample_batch,
)
from robustpo_kit.policies.tiny import byte_tokenizer, tiny
from robustpo_kit.policies.tokens import TokenRow, TokenTable, tokenize
from robustpo_kit.policies.weightless import kept_by_forward, shortened, weightless

__all__ = [
    "Batch",
    "CHUNK_BYTES",
    "Fit",
    "FusedLinear",
    "LogitScale",
    "Policy",
    "Reply",
    "SamplingConfig",
    "TokenRow",
    "TokenTable",
    "byte_tokenizer",
    "collate",
    "cut_to_sentence",
    "drawn_tokens",
    "first_rank_loads",
    "fit_of",
    "flex_serves",
    "floating_type",
    "fuse",
    "kept_by_forward",
    "load",
    "merged_adapter",
    "of_first_rank",
    "own_template",
    "sample",
    "sample_batch",
    "scored_tokens",
    "sequence_logps",
    "tiny",
    "shortened",
    "token_logps",
    "tokenize",
    "unwrap",
    "use_block_attention",
    "weightless",
]
