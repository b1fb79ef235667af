"""The settings of one training run."""

import dataclasses
import inspect
import json
import math
import re
from typing import Any, cast

from robustpo_kit.errors import KitError

AT_LEAST_0 = ("learning_rate", "warmup", "weight_decay", "max_grad_norm")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run; sizes count prompts.

    `batch_size` is the whole step, over all micro-batches and ranks: however a step is cut up, its
    gradient is that of the one big batch.
    """

    batch_size: int = 16
    micro_batch_size: int = 16  # a forward pass on one rank; halved when memory runs out
    tokens_per_pass: int = 0  # at most, unless one prompt has more; 0: by micro_batch_size alone
    epochs: int = 1
    max_steps: int = 0  # 0: as many as the epochs need
    learning_rate: float = 5e-4
    schedule: str = "cosine"  # cosine | linear | constant
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    window: str = "step"  # what the objective sees: the step | micro: a micro-batch, as the authors
    layout: str = "shared"  # shared: a prompt is computed once | separate: once a response
    kernel: str = "auto"  # attention of shared rows: sdpa | flex (GPU) | auto
    max_length: int = 1024  # tokens of prompt + response
    max_response: int | None = None  # default: half of max_length
    master_weights: bool = True  # fp32 copies of 16-bit weights that are trained take their updates
    gradient_checkpointing: bool = False
    checkpoint: str | None = None  # folder; None: no checkpoints
    checkpoint_every: int = 20  # steps
    reference_cache: str | None = None  # folder of reference log-probs; None: the kit's cache

    def __post_init__(self) -> None:
        self._check_types()
        for name, allowed in (
            ("schedule", ("cosine", "linear", "constant")),
            ("window", ("step", "micro")),
            ("layout", ("shared", "separate")),
            ("kernel", ("auto", "sdpa", "flex")),
        ):
            if getattr(self, name) not in allowed:
                raise KitError(
                    f"{name}: {getattr(self, name)!r} should be one of {', '.join(allowed)}"
                )
        for name in ("batch_size", "micro_batch_size", "epochs", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise KitError(f"{name}: {getattr(self, name)} should be at least 1")
        if self.max_length < 2:
            raise KitError(f"max_length: {self.max_length} should be at least 2 tokens")
        for name in (*AT_LEAST_0, "max_steps", "tokens_per_pass"):
            if not 0 <= getattr(self, name) < math.inf:
                raise KitError(f"{name}: {getattr(self, name)} should be a number of at least 0")
        if self.warmup > 1:
            raise KitError(f"warmup: {self.warmup} should be a share of the steps, at most 1")

    def _check_types(self) -> None:
        """Refuse what came as text, such as the word False, which would count as true."""
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), cast(Any, field.type)
            fits = isinstance(value, kind | int if kind is float else kind)
            if not fits or (isinstance(value, bool) and kind is not bool):
                wanted = getattr(kind, "__name__", str(kind))
                raise KitError(f"{field.name}: {value!r} should be of type {wanted}")


def fields_in_words() -> str:
    """The fields of TrainConfig with their defaults and comments, a line each."""
    source = inspect.getsource(TrainConfig)
    lines = []
    for field in dataclasses.fields(TrainConfig):
        comment = re.search(rf"^    {field.name}: .*?  # (.*)$", source, re.MULTILINE)
        said = f"  {comment[1]}" if comment else ""
        lines.append(f"  {field.name} = {json.dumps(field.default)}{said}\n")
    return "".join(lines)
