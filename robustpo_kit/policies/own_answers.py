"""A model's own answers to a few tokens, by its own forward: what the kit's are held against.

Rounding is measured and not guessed: the model answers again with the output of every layer moved
at random by up to one unit in the last place (Monte Carlo arithmetic; Parker, Pierce and Eggert
2000). What moves an answer as far as that does is rounding, of that model in that precision.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from robustpo_kit.policies.passes import no_cache
from robustpo_kit.policies.tokens import TokenRow

PROMPT, RESPONSES = 6, (3, 6)  # tokens; ragged, so that a separate row is padded
WINDOW = 4  # positions; the probe's texts are longer, whatever a model's own windows are
WINDOWS = ("window", "local_attention", "attention_chunk_size")  # in the names of their settings
LONGEST_CHUNK = 1024  # tokens; a text longer than a larger chunk takes too long to try
TF32_EPS = 2.0**-10


class Probe(NamedTuple):
    """A prompt with two responses, and the same with the number of its place for each token."""

    row: TokenRow
    places: TokenRow

    @classmethod
    def draw(cls, core: PreTrainedModel, seed: int) -> "Probe":
        """Random tokens that are not special in the model's configuration."""
        config = core.config.get_text_config(decoder=True)
        special = {*_special_tokens(core.config), *_special_tokens(config)}
        usual = [token for token in range(config.vocab_size) if token not in special]
        generator = torch.Generator().manual_seed(seed)
        count = PROMPT + sum(RESPONSES)
        order = torch.randperm(len(usual), generator=generator).tolist()
        tokens = [usual[order[place % len(order)]] for place in range(count)]
        return cls(_row(tokens), _row(list(range(count))))


def _special_tokens(config: Any) -> set[int]:
    found: set[int] = set()
    for name, value in vars(config).items():
        if name.endswith(("_token_id", "_token_index")):
            found |= {v for v in (value if isinstance(value, list) else [value]) if v is not None}
    return found


def _row(tokens: Sequence[int]) -> TokenRow:
    first, second = PROMPT, PROMPT + RESPONSES[0]
    responses = (tuple(tokens[first:second]), tuple(tokens[second:]))
    return TokenRow("probe", tuple(tokens[:first]), responses, (0, 0))


class Answer(NamedTuple):
    """Log-probs [N] of the probe's response tokens, and a gradient [P, D] by place.

    The gradient is that of the last response's log-prob in the embeddings of all P places; fp32.
    """

    logps: Tensor
    gradient: Tensor

    def distance(self, other: "Answer") -> Tensor:
        """[2]: root mean square over tokens in nats; relative difference of the gradients."""
        values = (self.logps - other.logps).square().mean().sqrt()
        size = other.gradient.norm().clamp_min(torch.finfo(torch.float32).tiny)
        return torch.stack([values, (self.gradient - other.gradient).norm() / size])


@dataclasses.dataclass
class Embedded:
    """What a model's embedding gave, cut off from the graph there, and the place of each vector."""

    places: Tensor  # [R, T] of the pass to come
    seen: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)

    def keep(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        """A forward hook of the embedding."""
        if output.shape[:-1] != self.places.shape:
            return output
        cut = output.detach().requires_grad_(True)
        self.seen.append((self.places, cut))
        return cut.clone()  # some architectures scale it in place

    def gradient(self, value: Tensor) -> Tensor:
        """d value / d embedding by place [P, D], fp32; the graph stays."""
        leaves = [leaf for _, leaf in self.seen]
        if not leaves:
            raise ValueError("its embedding is not called with the tokens")
        found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        out = torch.zeros(PROMPT + sum(RESPONSES), leaves[0].shape[-1], device=value.device)
        for (places, _), gradient in zip(self.seen, found, strict=True):
            if gradient is not None:
                out.index_add_(0, places.flatten(), gradient.float().flatten(0, -2))
        return out


@contextlib.contextmanager
def embedded(core: PreTrainedModel) -> Iterator[Embedded]:
    """While it lasts, gradients end at the embedding and are read there."""
    watch = Embedded(torch.empty(0))
    hook = core.get_input_embeddings().register_forward_hook(watch.keep)
    try:
        yield watch
    finally:
        hook.remove()


def own_answer(core: PreTrainedModel, probe: Probe) -> tuple[Answer, bool]:
    """The model's own answer, a text a pass; and whether a token's log-prob depends on later ones.

    Raises:
        ValueError: where the model has no logits of tokens.
    """
    device = next(core.parameters()).device
    parts = []
    with embedded(core) as watch:
        texts = [probe.row.prompt + response for response in probe.row.responses]
        places = [probe.places.prompt + response for response in probe.places.responses]
        for text, of_text in zip(texts, places, strict=True):
            watch.places = torch.tensor([of_text], device=device)
            ids = torch.tensor([text], device=device)
            logits = core(input_ids=ids, **no_cache(core)).logits
            if logits.shape[:2] != ids.shape:
                shape = list(logits.shape)
                raise ValueError(f"logits have the shape {shape} for {len(text)} tokens")
            logps = torch.log_softmax(logits[0, PROMPT - 1 : -1].float(), dim=-1)
            parts.append(logps.gather(1, ids[0, PROMPT:, None])[:, 0])
        gradient = watch.gradient(parts[-1].sum())
        first_token = watch.gradient(parts[-1][0])
    ahead = bool(first_token[list(probe.places.responses[-1])].any())
    return Answer(torch.cat(parts).detach(), gradient), ahead


def longer_than_a_chunk(core: PreTrainedModel, probe: Probe) -> None:
    """Pass a text of more than one chunk, where a model computes in chunks: other code runs then.

    Raises whatever the model's forward does.
    """
    settings = vars(core.config.get_text_config(decoder=True)).items()
    sizes = [v for name, v in settings if name.endswith("chunk_size") and isinstance(v, int)]
    longest = max((size for size in sizes if size <= LONGEST_CHUNK), default=0)
    if longest < PROMPT:
        return
    text = list(probe.row.prompt) * (longest // PROMPT + 1)
    ids = torch.tensor([text], device=next(core.parameters()).device)
    with torch.no_grad():
        core(input_ids=ids, **no_cache(core))


def rounding(core: PreTrainedModel, probe: Probe, own: Answer, draws: int) -> Tensor:
    """[2]: how far rounding moves the model's own answer, the largest of some draws.

    At least the last places of an fp32 log-prob.
    """
    last_places = 2 * torch.finfo(torch.float32).eps * own.logps.square().mean().sqrt()
    found = [torch.stack([last_places, torch.zeros_like(last_places)])]
    for seed in range(draws):
        with _moved_by_rounding(core, seed):
            found.append(own_answer(core, probe)[0].distance(own))
    return torch.stack(found).amax(0)


@contextlib.contextmanager
def _moved_by_rounding(core: PreTrainedModel, seed: int) -> Iterator[None]:
    """Every layer's output is moved at random by up to one unit in the last place."""
    device = next(core.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    tf32 = device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32

    def move(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        eps = max(torch.finfo(output.dtype).eps, TF32_EPS if tf32 else 0)
        share = 2 * torch.rand(output.shape, generator=generator, device=output.device) - 1
        return (output.float() * (1 + eps * share)).to(output.dtype)

    leaves = [module for module in core.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(move) for leaf in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def small_windows(core: PreTrainedModel) -> Iterator[None]:
    """While it lasts, attention windows are WINDOW positions, so that a short text shows them."""
    holders = [core.config, core.config.get_text_config(decoder=True), *core.modules()]
    changed: list[tuple[Any, str, int]] = []
    try:
        for holder in holders:
            for name, value in list(vars(holder).items()):
                is_size = isinstance(value, int) and not isinstance(value, bool) and value > WINDOW
                if is_size and any(part in name for part in WINDOWS):
                    changed.append((holder, name, value))
                    setattr(holder, name, WINDOW)
        yield
    finally:
        for holder, name, value in reversed(changed):
            setattr(holder, name, value)
