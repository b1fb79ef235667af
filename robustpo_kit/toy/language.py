"""Language models in the toy world: a tokenizer of its symbols, and policies enumerated exactly."""

from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from robustpo_kit import policies
from robustpo_kit.toy.world import LETTERS, World

SPECIAL = {
    "pad": "<pad>",
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
}


def tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A tokenizer of whole symbols, made in memory; it adds no special tokens by itself."""
    words = [
        *SPECIAL.values(),
        *sorted({word for prompt in world.prompts for word in prompt.split()}),
    ]
    words += LETTERS[: world.config.symbols]
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL["unk"])
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{k}_token": word for k, word in SPECIAL.items()}
    )


class Enumeration(NamedTuple):
    """The exact distribution of a language model over the responses of every prompt."""

    logps: Tensor  # [P, R] log-probabilities given that the response is one of the world's, nats
    mass: Tensor  # [P] probability of that: four symbols and the end


@torch.no_grad()
def policy_logps(policy: policies.Policy, world: World, *, prompts_at_once: int = 8) -> Enumeration:
    """Enumerate a causal language model: every prefix is computed once, children share their parent's key-value cache.

    Before normalisation an entry equals `logprobs.sequence_logps` of that response, end of sequence included.
    """
    model, words = policies.unwrap(policy.model), policy.tokenizer
    symbols = torch.tensor(
        words.convert_tokens_to_ids(list(LETTERS[: world.config.symbols])), device=policy.device
    )
    ids = torch.tensor(
        words([policy.template.render(prompt, words) for prompt in world.prompts])["input_ids"]
    )
    training, parts = model.training, []
    model.eval()
    for part in ids.to(policy.device).split(prompts_at_once):
        out = model(input_ids=part, use_cache=True)
        logps = torch.zeros(len(part), 1, dtype=torch.float64, device=policy.device)
        for _ in range(world.config.length):
            step = torch.log_softmax(out.logits[:, -1].double(), -1)[:, symbols]  # [nodes, symbols]
            logps = (logps.reshape(-1, 1) + step).reshape(len(part), -1)
            cache = out.past_key_values
            cache.batch_repeat_interleave(len(symbols))
            out = model(
                input_ids=symbols.repeat(len(step))[:, None], past_key_values=cache, use_cache=True
            )
        end = torch.log_softmax(out.logits[:, -1].double(), -1)[:, words.eos_token_id]
        parts.append((logps + end.view(len(part), -1)).cpu())
    model.train(training)
    total = torch.cat(parts)
    return Enumeration(torch.log_softmax(total, -1), total.logsumexp(-1).exp())
