"""What stands around a response: the prompt and its BOS before it, the end token behind it.

Training, scoring and sampling ask here, so that a model continues what it was taught to continue
and ends as it was taught to end. A chat template brings its own BOS, and the token that closes the
assistant's turn in it (`<|im_end|>`, `<end_of_turn>`, `<|eot_id|>`) ends a response; a plain text
begins with the tokenizer's BOS, where it adds one, and ends with its EOS.
"""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from robustpo_kit.data import Template
from robustpo_kit.errors import KitError

REPLY = "kvw"  # stands for a reply where a template is asked what it writes behind one


def prompt_tokens(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, template: Template
) -> list[list[int]]:
    """The tokens that the model reads before a response, BOS included.

    Args:
        prompts: the user's texts, or conversations.
        tokenizer: the model's.
        template: makes model input of a prompt.
    """
    texts = [template.render(prompt, tokenizer) for prompt in prompts]
    return rendered_tokens(texts, tokenizer, template)


def rendered_tokens(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, template: Template
) -> list[list[int]]:
    """Token ids of rendered texts, with the tokenizer's BOS under a plain template.

    The EOS that some tokenizers append is left out.
    """
    if not texts:
        return []
    special = template.kind != "chat"
    ids = tokenizer(texts, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    added = tokenizer("", add_special_tokens=special)["input_ids"]
    if not special or not added or added[-1] not in ends:
        return ids
    return [row[:-1] if row[-1] in ends else row for row in ids]


def turn_end(tokenizer: PreTrainedTokenizerBase, template: Template) -> int:
    """The token that ends a response: what the chat template closes a turn with, else the EOS.

    Raises:
        KitError: where there is neither.
    """
    end = tokenizer.eos_token_id
    if template.kind == "chat":
        closing = _closing_token(tokenizer)
        end = end if closing is None else closing
    if end is None:
        raise KitError(
            "tokenizer: it has no EOS token; set tokenizer.eos_token so that responses can end"
        )
    return int(end)


def end_tokens(
    tokenizer: PreTrainedTokenizerBase, template: Template, model: nn.Module | None = None
) -> frozenset[int]:
    """Every token that ends a response: the turn's, the EOS, those of the generation settings."""
    settings = getattr(model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    ends = {turn_end(tokenizer, template), tokenizer.eos_token_id, *listed} - {None}
    return frozenset(int(end) for end in ends)


def _closing_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token behind a reply in the chat template; None where it writes none there."""
    turns = [{"role": "user", "content": REPLY[::-1]}, {"role": "assistant", "content": REPLY}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # templates raise what they like at turns that they do not take
        return None
    behind = text[text.rfind(REPLY) + len(REPLY) :].lstrip()
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    return ids[0] if ids and ids[0] in special else None
