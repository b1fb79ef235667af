"""Language models in the toy world: a tokenizer of its symbols, and policies enumerated exactly."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from robustpo_kit import policies
from robustpo_kit.toy.truth import Enumeration
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
    prompt_words = set(" ".join(world.prompts).split())
    words = [*SPECIAL.values(), *sorted(prompt_words), *LETTERS[: world.config.symbols]]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk"]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {f"{role}_token": word for role, word in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@torch.no_grad()
def policy_logps(policy: policies.Policy, world: World, *, prompts_at_once: int = 8) -> Enumeration:
    """Enumerate a causal language model: every prefix is computed once.

    Children share their parent's key-value cache. Before normalisation an entry equals
    `policies.sequence_logps` of that response, end of sequence included. Texts that the world does
    not have are computed, too, and left out.
    """
    words = policy.tokenizer
    letters = list(LETTERS[: world.config.symbols])
    symbols = torch.tensor(words.convert_tokens_to_ids(letters), device=policy.device)
    texts = [policy.template.render(prompt, words) for prompt in world.prompts]
    ids = torch.tensor(words(texts)["input_ids"], device=policy.device)
    model = policies.unwrap(policy.model)
    training = model.training
    model.eval()
    parts = [
        _response_logps(model, prompts, symbols, world.config.length, words.eos_token_id)
        for prompts in ids.split(prompts_at_once)
    ]
    model.train(training)
    total = torch.cat(parts)[:, world.places]
    return Enumeration(torch.log_softmax(total, -1), total.logsumexp(-1).exp())


def _response_logps(
    model: nn.Module, prompts: Tensor, symbols: Tensor, length: int, end: int
) -> Tensor:
    """[P, R] log-probabilities of all texts of `length` symbols and the token `end`, nats."""
    out = model(input_ids=prompts, use_cache=True)
    logps = torch.zeros(len(prompts), 1, dtype=torch.float64, device=prompts.device)
    for _ in range(length):
        step = torch.log_softmax(out.logits[:, -1].double(), -1)[:, symbols]  # [nodes, symbols]
        logps = (logps.reshape(-1, 1) + step).reshape(len(prompts), -1)
        cache = out.past_key_values
        cache.batch_repeat_interleave(len(symbols))
        children = symbols.repeat(len(step))[:, None]
        out = model(input_ids=children, past_key_values=cache, use_cache=True)
    ends = torch.log_softmax(out.logits[:, -1].double(), -1)[:, end]
    return (logps + ends.view(len(prompts), -1)).cpu()
