"""Models as folders of Hugging Face files: dequantised from a GGUF, or from the Hub."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from robustpo_kit.errors import KitError

HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def dequantise(folder: Path) -> None:
    """Turn the GGUF in a folder into config, tokenizer and float32 safetensors, and remove it."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    gguf = next(folder.glob("*.gguf"))
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=gguf.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    config = model.config
    if hasattr(config, "quantization_config"):
        # the saved model is a plain one: Trainer refuses quantised models
        del config.quantization_config
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    GenerationConfig(**ends).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    state.pop("lm_head.weight", None)  # tied to the embeddings
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    gguf.unlink()


def from_hub(name: str) -> Path:
    """The folder of a Hub id, downloaded where it is not cached.

    Raises:
        KitError: the Hub's refusal in one line.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KitError(
            f"asset '{name}': the Hub did not give it ({reason}); download it elsewhere and pass "
            "the local folder"
        ) from None


def from_hub_cache(name: str) -> Path | None:
    """The folder of a Hub id in the Hub's cache, if it has a configuration there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' own progress bars and advice while a model is read."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
