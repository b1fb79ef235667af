"""Encoders: the BERT that classifiers and reward models share, and its embeddings."""

import copy
import functools
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from robustpo_kit import assets
from robustpo_kit.errors import KitError
from robustpo_kit.records import digest, progress, stream_seed


@dataclass(eq=False)
class Encoder:
    """A BERT-like model with its tokenizer; embeddings are kept, so a text is encoded once."""

    name: str  # an asset, a Hub id, a local folder, or "tiny"
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype  # of inference and of autocast in fine-tuning; weights stay float32
    device: torch.device
    max_length: int = 256  # tokens
    seed: int = 0  # of the weights of "tiny"
    _cache: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def _inference_model(self) -> nn.Module:
        if self.dtype == torch.float32:
            return self.model
        model: nn.Module = copy.deepcopy(self.model)
        return model.to(self.dtype)

    def embed(self, texts: Sequence[str], *, batch_size: int = 32) -> Tensor:
        """[N, D] float32 embeddings of length 1 of N texts.

        The masked mean of the last hidden states, as MiniLM was trained.
        """
        missing = sorted(set(texts) - set(self._cache), key=lambda text: (len(text), text))
        batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
        if batches:
            for batch in progress(batches, f"embed with {self.name}"):
                self._cache.update(zip(batch, self._embed_batch(batch), strict=True))
        if not texts:
            return torch.empty(0, self.width)
        return torch.stack([self._cache[text] for text in texts])

    @torch.inference_mode()
    def _embed_batch(self, batch: list[str]) -> Tensor:
        tokens = self.tokenizer(
            batch, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.device)
        model = self._inference_model.eval()
        pooled = masked_mean(model(**tokens).last_hidden_state.float(), tokens["attention_mask"])
        return nn.functional.normalize(pooled, dim=-1).cpu()

    @torch.inference_mode()
    def token_states(self, text: str) -> Tensor:
        """[T, D] last hidden states of a text's tokens, of length 1, without the special ones."""
        tokens = self.tokenizer(
            text,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
            return_special_tokens_mask=True,
        )
        special = tokens.pop("special_tokens_mask")[0].bool()
        model = self._inference_model.eval()
        states = model(**tokens.to(self.device)).last_hidden_state[0].float().cpu()
        return nn.functional.normalize(states[~special], dim=-1)

    def about(self) -> dict[str, Any]:
        """What a stored scorer must know of its encoder; the fingerprint is of the weights."""
        return {
            "name": self.name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_length": self.max_length,
            "seed": self.seed,
            "fingerprint": self._fingerprint,
        }

    @functools.cached_property
    def _fingerprint(self) -> str:
        return digest(dict(self.model.state_dict()), length=16)

    @property
    def width(self) -> int:
        """D, the size of an embedding."""
        return self.model.config.hidden_size


def load(
    name: str = "minilm-l6",
    *,
    dtype: str = "auto",
    device: str | None = None,
    max_length: int = 256,
    seed: int = 0,
) -> Encoder:
    """The encoder `name`.

    Args:
        name: an asset, a Hub id, a local folder, or "tiny" (random weights, no files).
        dtype: of inference: "float32", "bfloat16", or "auto": bfloat16 where the machine computes
            it fast (on AVX-512-BF16 twice as fast as float32).
        device: default: the GPU, or the CPU where there is none.
        max_length: tokens of a text, at most what the model takes.
        seed: of the weights of "tiny".

    Raises:
        KitError: for an unknown asset or a folder that holds no encoder.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    model, tokenizer = _tiny(seed) if name == "tiny" else _from_folder(name)
    limit = min(max_length, getattr(model.config, "max_position_embeddings", max_length))
    module: nn.Module = model
    module.to(where)
    return Encoder(name, model, tokenizer, _dtype(dtype, name, where), where, limit, seed)


def _from_folder(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = assets.resolve(name)
    try:
        with assets.quiet_transformers():
            model = AutoModel.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="sdpa"
            )
            return model, AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise KitError(
            f"encoder '{name}': cannot be loaded ({reason}); a BERT folder is expected"
        ) from None


def _dtype(dtype: str, name: str, device: torch.device) -> torch.dtype:
    if dtype in ("float32", "bfloat16"):
        return getattr(torch, dtype)
    if dtype != "auto":
        raise ValueError(f"dtype = '{dtype}': 'auto', 'float32' or 'bfloat16' is expected")
    if name == "tiny":  # smoke runs are compared across machines
        return torch.float32
    fast = (
        device.type == "cuda"
        or torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
    )
    if fast:
        return torch.bfloat16
    return torch.float32


def _tiny(seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A two-layer random BERT over single characters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{c}" for c in characters)]
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.2,  # at 0.02 a random encoder maps all texts to nearly one point
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "tiny encoder"))
        return BertModel(config, add_pooling_layer=False).eval(), wrapped


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """[N, T, D], [N, T] -> [N, D], the mean over real tokens."""
    mask = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)
