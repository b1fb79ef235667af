"""TRL's DPOTrainer with the kit's objectives: the gradient is the kit's own, under accumulation."""

import warnings

import pytest
import torch
from training_setting import LETTERS, error, flat
from transformers import TrainerCallback

from robustpo_kit import objectives, policies
from robustpo_kit.data import Template
from robustpo_kit.errors import KitError
from robustpo_kit.losses import Scores
from robustpo_kit.policies import TokenRow, TokenTable
from robustpo_kit.training import ExactStep, Exchange, Scorer, Signals, WholeStep

pytest.importorskip("trl", reason="TRL is an optional peer")

ROWS, MICRO = 5, 2  # micro-batches of 2, 2 and 1
DRO, DORA = "dro(dpo(beta=0.5), lam=0.3)", "dora(dpo(beta=0.5), lam=0.3)"
GAMMA = "gamma(dpo(beta=0.5), gamma0=1.0, tau=0.2)"
BOTH = "dora(gamma(simpo(beta=2.0), gamma0=1.0, tau=0.5), lam=0.5)"
slow = pytest.mark.slow
SPECS = [
    DORA,
    GAMMA,
    pytest.param(DRO, marks=slow),
    pytest.param(BOTH, marks=slow),
    pytest.param("rdpo(beta=0.5, epsilon=0.2)", marks=slow),
]


def tiny(seed: int = 0) -> policies.Policy:
    return policies.tiny(
        policies.byte_tokenizer(), template=Template("plain"), hidden=16, seed=seed
    )


def rows(*left_out: str) -> list[dict]:
    """Pairs of random letters, no two of one length, with a factor h."""
    g = torch.Generator().manual_seed(0)

    def text(length: int) -> str:
        return "".join(LETTERS[i] for i in torch.randint(len(LETTERS), (length,), generator=g))

    made = [
        {"prompt": text(3 + i), "chosen": text(2 + i), "rejected": text(9 - i), "h": 0.3 + 0.4 * i}
        for i in range(ROWS)
    ]
    return [{name: row[name] for name in row if name not in left_out} for row in made]


class Gradients(TrainerCallback):
    """Notes the gradient of every step before the optimizer takes it."""

    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, *, model, **_):
        self.found.append(flat(model).clone())


def trainer(folder, spec: str, data=None, mixin=WholeStep, **settings):
    """A trainer of one step an epoch, whose weights stay: the learning rate is 0."""
    from datasets import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's just-in-time compiler
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

    own = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": MICRO,
        "gradient_accumulation_steps": 3,
    }
    own |= {"learning_rate": 0.0, "max_grad_norm": 0.0, "save_strategy": "no", "seed": 3}
    own |= {"use_cpu": True, "bf16": False, "report_to": "none"}
    own |= {"disable_tqdm": True, "logging_steps": 1}
    options = {"objective": objectives.build(spec)} if mixin else {}
    bases = (mixin, DPOTrainer) if mixin else (DPOTrainer,)
    made = type("Trainer", bases, {})(
        model=tiny().model,
        ref_model=tiny(seed=1).model,
        args=DPOConfig(output_dir=str(folder), **(own | settings)),
        train_dataset=Dataset.from_list(data or rows()),
        processing_class=policies.byte_tokenizer(),
        **options,
    )
    made.gradients = Gradients()
    made.add_callback(made.gradients)
    return made


def kit_gradients(made, spec: str, micro: int, window: str = "step") -> list[torch.Tensor]:
    """Of the same tokens, two steps of the kit's own, in micro-batches of `micro`."""
    policy, reference, objective = tiny(), tiny(seed=1), objectives.build(spec)
    table = TokenTable([token_row(i, row) for i, row in enumerate(made.train_dataset)], {})
    width = [row.lengths() for row in table.rows]
    h = torch.tensor([row["h"] for row in rows()])
    signals = Signals(None, None, torch.tensor(width), None, None, h)
    step = ExactStep(
        table,
        signals,
        objective,
        Exchange(torch.device("cpu")),
        layout="separate",
        pad=policy.tokenizer.pad_token_id,
        window=window,
    )
    cut = step.cut(list(range(ROWS)), micro)
    with torch.no_grad():
        scored = step.logps(Scorer(reference.model), step.cut(cut.rows, ROWS), cut.rows)
    step.signals = signals.with_reference(scored)
    found = []
    for _ in range(2):
        policy.model.zero_grad()
        step.take(Scorer(policy.model), cut)
        found.append(flat(policy.model).clone())
    return found


def token_row(number: int, row: dict) -> TokenRow:
    responses = (tuple(row["chosen_ids"]), tuple(row["rejected_ids"]))
    return TokenRow(f"r{number}", tuple(row["prompt_ids"]), responses, (0, 0))


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_under_accumulation_are_the_kits(tmp_path, spec):
    """The second step, too, whose margins know the gaps of the first."""
    made = trainer(tmp_path, spec)
    made.train()
    expected = kit_gradients(made, spec, micro=MICRO)
    assert len(made.gradients.found) == 2
    for found, own in zip(made.gradients.found, expected, strict=True):
        assert error(found, own) < 1e-5


def test_a_micro_batch_at_a_time_would_be_another_gradient(tmp_path):
    """What the test above can tell apart: the authors' window, and TRL's own mean of means."""
    made = trainer(tmp_path, DRO)
    made.train()
    found = made.gradients.found[0]
    assert error(found, kit_gradients(made, DRO, MICRO, window="micro")[0]) > 0.05
    plain = trainer(tmp_path, "", mixin=None, beta=0.5)
    plain.train()
    whole = kit_gradients(made, "dpo(beta=0.5)", ROWS)[0]
    assert error(plain.gradients.found[0], whole) > 0.01  # three means of 2, 2 and 1 pairs


@slow
def test_loss_and_metrics_that_are_logged_are_the_steps(tmp_path):
    made = trainer(tmp_path, DORA)
    made.train()
    logged = made.state.log_history[0]
    assert logged["objective/ess"] > 1 and 0 <= logged["rewards/accuracies"] <= 1
    again = objectives.build(DORA)
    table = kit_loss(made, again)
    assert logged["loss"] == pytest.approx(table, rel=1e-3)  # logged to four digits


def kit_loss(made, objective) -> float:
    """The objective's value on all rows, from the model's log-probs by TRL's own tokens."""
    batch = made.data_collator([made.train_dataset[i] for i in range(ROWS)])
    parts = made._scored(batch)
    return float(objective.step_loss(Scores(*parts[:3]), parts[3]).loss)


@slow
def test_precomputed_references_and_evaluation(tmp_path):
    from datasets import Dataset

    made = trainer(tmp_path, DORA, precompute_ref_log_probs=True)
    made.train()
    expected = kit_gradients(made, DORA, micro=MICRO)
    assert error(made.gradients.found[0], expected[0]) < 1e-5
    plain = trainer(tmp_path, DORA)
    assert plain.evaluate(plain.train_dataset)["eval_loss"] > 0
    assert plain.evaluate(Dataset.from_list(rows("h")))["eval_loss"] > 0


@slow
def test_a_resumed_run_has_the_gaps_of_before(tmp_path):
    """Three steps in one go, and the third from the checkpoint of the second."""
    spec, steps = GAMMA, {"gradient_accumulation_steps": 1, "num_train_epochs": 1}
    steps["train_sampling_strategy"] = "sequential"
    whole = trainer(tmp_path / "whole", spec, save_strategy="steps", save_steps=2, **steps)
    whole.train()
    resumed = trainer(tmp_path / "resumed", spec, **steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    (found,) = resumed.gradients.found
    assert error(found, whole.gradients.found[2]) < 1e-6
    alone = trainer(tmp_path / "alone", spec, data=rows()[4:], **steps)
    alone.train()
    assert error(alone.gradients.found[0], found) > 1e-3  # the same row without those gaps


@pytest.mark.parametrize(
    ("spec", "settings", "left_out", "words"),
    [
        ("dora(dpo_pl(beta=0.1), lam=1.0)", {}, (), "pairs"),
        (DORA, {}, ("h",), "column h"),
        (DRO, {"loss_type": ["ipo"]}, (), "loss_type"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, spec, settings, left_out, words):
    with pytest.raises(KitError, match=words):
        trainer(tmp_path, spec, data=rows(*left_out), **settings)
