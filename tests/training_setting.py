"""What the tests of training share: rows, a tiny policy, one step beside plain autograd."""

import dataclasses
import signal
from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from robustpo_kit import objectives, policies, training
from robustpo_kit.data import Preference, PreferenceSet, Template
from robustpo_kit.policies import collate, sequence_logps, tokenize
from robustpo_kit.training import ExactStep, TrainConfig
from robustpo_kit.training.identity import RunInputs
from robustpo_kit.training.launching import trainer_arguments
from robustpo_kit.training.signals import fitting_rows

ROWS = 8

LETTERS = "abcdefghijklmnop"

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


def preferences(k: int = 3, rows: int = ROWS, seed: int = 0) -> PreferenceSet:
    """Rows of random letters with rewards and h; prompts and responses of many lengths."""
    g = torch.Generator().manual_seed(seed)

    def text(low: int, high: int) -> str:
        n = int(torch.randint(low, high, (1,), generator=g))
        return "".join(LETTERS[i] for i in torch.randint(len(LETTERS), (n,), generator=g))

    return PreferenceSet(
        Preference(
            f"r{i}",
            f"g{i}",
            text(3, 15),
            tuple(text(2, 12) for _ in range(k)),
            tuple("xyz"[:k]),
            tuple(torch.randn(k, generator=g).tolist()),
            0,
            False,
            0.4 + 1.2 * float(torch.rand((), generator=g)),
        )
        for i in range(rows)
    )


def made_up_rows(count: int, seed: int, sources: tuple[str, ...], write) -> PreferenceSet:
    """`count` rows; write(rng, i) gives the name of row i's group, its prompt, its responses."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(count):
        group, prompt, responses = write(rng, i)
        rows.append(Preference(f"r{seed}-{i}", f"g{seed}-{group}", prompt, responses, sources))
    return PreferenceSet(rows, name="made up")


def made_up_word(rng, alphabet: str) -> str:
    """Four letters of the alphabet."""
    return "".join(rng.choice(list(alphabet), 4))


def sharded_config(folder: Path, **own) -> TrainConfig:
    """Of runs on several ranks, whose gradients are compared: one prompt a pass, no schedule."""
    shared = {"batch_size": 4, "micro_batch_size": 1, "schedule": "constant", "warmup": 0.0}
    shared |= {"learning_rate": 1e-3, "checkpoint": str(folder / "checkpoints")}
    return TrainConfig(**(shared | {"reference_cache": str(folder / "cache")} | own))


def dataset_for(objective, rows: int = ROWS) -> PreferenceSet:
    """Pairs or triples, as the objective takes them."""
    return preferences(3 if objective.responses == "list" else 2, rows)


def replaced(rows: PreferenceSet, place: int, **fields) -> PreferenceSet:
    return PreferenceSet(
        dataclasses.replace(row, **fields) if i == place else row for i, row in enumerate(rows)
    )


def tiny() -> policies.Policy:
    return policies.tiny(policies.byte_tokenizer(), template=Template("plain"), hidden=16)


class Step:
    """A trainer before its first step, with reference log-probs that are not the policy's own."""

    def __init__(self, spec: str, folder: Path, rows: int = ROWS, **settings):
        self.policy, self.objective = tiny(), objectives.build(spec)
        self.config = TrainConfig(batch_size=ROWS, **{"micro_batch_size": ROWS} | settings)
        self.rows = fitting_rows(dataset_for(self.objective, rows), self.objective)
        self.tokens = tokenize(
            self.rows,
            self.policy.tokenizer,
            self.policy.template,
            mismatched=self.objective.needs_kl,
        )
        self.reference = None
        if self.objective.needs_reference:
            own = training.response_logps(self.policy.model, self.tokens)
            self.reference = own + 4 * torch.randn(
                own.shape, generator=torch.Generator().manual_seed(1)
            )
        self.signals = training.Signals.of(self.rows, self.tokens, self.reference)
        arguments = trainer_arguments(self.config, str(folder), 1)
        data = (self.policy, self.tokens, self.signals)
        inputs = RunInputs(*data, self.objective, self.config, arguments)
        self.trainer = training.StepTrainer(inputs, {"a": "test"})
        self.trainer.create_optimizer_and_scheduler(1)

    def gradient(self, times: int = 2) -> torch.Tensor:
        """The gradient of the last of `times` steps on the same rows; queues have filled by it."""
        for _ in range(times):
            self.policy.model.zero_grad()
            self.trainer.take_step(self.trainer.model, 0)
        return flat(self.policy.model)

    def by_hand(self, groups: list[list[int]], times: int = 2) -> torch.Tensor:
        """The same by plain autograd: a mean over `groups` of rows, each one batch."""
        for _ in range(times):
            self.policy.model.zero_grad()
            for group in groups:
                logps = sequence_logps(
                    self.policy.model, collate([self.tokens.rows[i] for i in group])
                )
                scores, h = self.signals.scores(
                    logps, torch.tensor(group), mismatched=self.tokens.mismatched
                )
                (self.objective.step_loss(scores, h).loss / len(groups)).backward()
        return flat(self.policy.model)


def flat(model: torch.nn.Module) -> torch.Tensor:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat(
        [(g.full_tensor() if isinstance(g, DTensor) else g).flatten() for g in gradients]
    )


def weights(policy: policies.Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.trainable()}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error of a gradient."""
    assert float(expected.norm()) > 1e-4
    return float((found - expected).norm() / expected.norm())


def whole(step: Step) -> list[int]:
    """The rows of the one step, in the order of its plan."""
    return step.trainer.plan[0]


def starved(real, model, cut, places):
    """Log-probs on a device whose memory holds two prompts, three where no gradients are kept."""
    if len(places) > 3 or (len(places) > 2 and torch.is_grad_enabled()):
        raise torch.OutOfMemoryError("out of memory (injected)")
    return real(model, cut, places)


def counted(real, calls: list):
    """The function, noting every call."""
    return lambda *arguments: calls.append(1) or real(*arguments)


def assert_same(found: dict, expected: dict, tolerance: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        a, b = (torch.as_tensor(state[name]) for state in (found, expected))
        torch.testing.assert_close(
            a, b, atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def gpus_by_name() -> None:
    """accelerate takes FSDP2 for GPUs only: ranks on CPUs are called so."""
    from accelerate.state import DistributedType, PartialState

    real = PartialState.__init__

    def init(self, *arguments, **keywords):
        real(self, *arguments, **keywords)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init


def small_steps(folder: Path, **changed) -> TrainConfig:
    """Steps of four rows in two micro-batches, with a reference cache in the folder."""
    values = {"batch_size": 4, "micro_batch_size": 2, "reference_cache": str(folder / "cache")}
    return TrainConfig(**(values | changed))


def sigterm_at_second_step(monkeypatch) -> list[int]:
    """SIGTERM comes as the second step begins; returns a list that grows by one a step."""
    real, steps = ExactStep.take, []

    def take(self, model, cut):
        steps.append(1)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGTERM)
        return real(self, model, cut)

    monkeypatch.setattr(ExactStep, "take", take)
    return steps
