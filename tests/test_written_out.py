"""What the notebooks write out needs numpy and torch alone, and is what the package computes."""

import ast
import functools
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jupytext
import numpy as np
import pandas as pd
import pytest
import torch

from robustpo_kit import analysis, calibration, losses, margins, objectives, policies, robust, toy
from robustpo_kit.losses import Scores, coupled, noise

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ROOT / "notebooks" / "text"
MARK = "# built here for the reader"


class Sealed(dict):
    """Builtins of a cell that may import nothing of the package."""

    def __init__(self) -> None:
        super().__init__(vars(__import__("builtins")))
        self["__import__"] = self._import

    def _import(self, name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == "robustpo_kit":
            raise ImportError(f"a cell that is written out imports {name}")
        return __import__(name, *rest, **named)


def definitions(source: str) -> bool:
    """Whether a cell is written out for the reader, and holds functions and nothing else."""
    body = ast.parse(source).body
    only = all(isinstance(statement, ast.FunctionDef) for statement in body)
    return source.startswith(MARK) and bool(body) and only


@functools.cache
def written_out(stem: str) -> dict[str, Any]:
    """The functions that a notebook's cells define, with numpy, torch and math about them."""
    names: dict[str, Any] = {"torch": torch, "np": np, "math": math, "__builtins__": Sealed()}
    for cell in jupytext.read(TEXTS / f"{stem}.py").cells:
        if cell.cell_type == "code" and definitions(cell.source):
            exec(compile(cell.source, stem, "exec"), names)
    return names


class Made:
    """Random scores of B prompts with K responses, and what the losses need beside them."""

    def __init__(self, seed: int, responses: int = 2, prompts: int = 16) -> None:
        draw = torch.Generator().manual_seed(seed)
        shape = (3, prompts, responses)
        self.s, self.s_ref, self.R = (
            6 * torch.randn(shape, dtype=torch.float64, generator=draw) - 25
        )
        self.n = torch.randint(1, 40, (prompts, responses), generator=draw)
        self.h = 3 * torch.rand(prompts, dtype=torch.float64, generator=draw)
        self.losses = 2 * torch.rand(prompts, dtype=torch.float64, generator=draw)
        self.other = 6 * torch.randn(2, prompts, dtype=torch.float64, generator=draw) - 25
        self.gaps = 4 * torch.randn(prompts, dtype=torch.float64, generator=draw)
        self.c = torch.rand(prompts, responses, dtype=torch.float64, generator=draw)
        rest = (self.R, None, *self.other)
        self.scores = Scores(self.s, self.s_ref, self.n, *rest)
        self.draw = draw


def moved(state: Any, values: torch.Tensor) -> Any:
    """A state after one step of these values."""
    state.update(values)
    return state


def ratio_gaps(m: Made) -> torch.Tensor:
    ratios = (m.s - m.s_ref) / m.n
    return ratios[:, 0] - ratios[:, 1]


def dpo_gaps(m: Made) -> torch.Tensor:
    return losses.dpo_gap(m.scores, beta=0.1)


def by_kind(kind: str, lam: float) -> Callable[[Made], torch.Tensor]:
    return lambda m: robust.aggregate(m.losses, m.h, kind=kind, lam=lam)


Pair = tuple[str, int, Callable[[Callable[..., Any], Made], Any], Callable[[Made], Any]]
# By name: the notebook, K, the notebook's function of made-up scores, the package's.
LOSSES: dict[str, Pair] = {
    "dpo": (
        "00_start_here", 2,
        lambda f, m: f(m.s, m.s_ref, 0.3),
        lambda m: losses.dpo(m.scores, beta=0.3),
    ),
    "dpo_pl": (
        "00_start_here", 5,
        lambda f, m: f(m.s, m.s_ref, m.R, 0.3),
        lambda m: losses.dpo_pl(m.scores, beta=0.3),
    ),
    "erm": ("00_start_here", 2, lambda f, m: f(m.losses), by_kind("erm", 1.0)),
    "reweight": ("00_start_here", 2, lambda f, m: f(m.losses, m.h), by_kind("reweight", 1.0)),
    "dro": ("00_start_here", 2, lambda f, m: f(m.losses, 0.7), by_kind("dro", 0.7)),
    "dora": ("00_start_here", 2, lambda f, m: f(m.losses, m.h, 0.7), by_kind("dora", 0.7)),
    "dr_dpo": ("08_pairwise_robust", 2, lambda f, m: f(m.losses, 0.7), by_kind("dr_dpo", 0.7)),
    "kldpo": ("11_phase_diagram", 2, lambda f, m: f(m.losses, 0.7), by_kind("kldpo", 0.7)),
    "rrhf": (
        "04b_train_dora", 4,
        lambda f, m: f(m.s, m.n, m.R, 0.5),
        lambda m: losses.rrhf(m.scores, alpha=0.5),
    ),
    "lire": (
        "04b_train_dora", 4,
        lambda f, m: f(m.s, m.R, 2.0),
        lambda m: losses.lire(m.scores, temperature=2.0),
    ),
    "simpo": (
        "06_train_gamma_po", 2,
        lambda f, m: f(m.s, m.n, 2.0, 0.8),
        lambda m: losses.simpo(m.scores, beta=2.0, gamma0=0.8),
    ),
    "r_dpo_length": (
        "08_pairwise_robust", 2,
        lambda f, m: f(m.s, m.s_ref, m.n, 0.1, 0.01),
        lambda m: losses.r_dpo_length(m.scores, beta=0.1, alpha=0.01),
    ),
    "exo": (
        "08_pairwise_robust", 2,
        lambda f, m: f(m.s, m.s_ref, 0.5, 1e-3),
        lambda m: losses.exo(m.scores, beta=0.5, epsilon=1e-3),
    ),
    "rdpo": (
        "08_pairwise_robust", 2,
        lambda f, m: f(m.s, m.s_ref, 0.1, 0.3),
        lambda m: losses.rdpo(m.scores, beta=0.1, epsilon=0.3),
    ),
    "sft": ("08_pairwise_robust", 2, lambda f, m: f(m.s, m.n), lambda m: losses.sft(m.scores)),
    "cpo": (
        "08_pairwise_robust", 2,
        lambda f, m: f(m.s, 0.1),
        lambda m: losses.cpo(m.scores, beta=0.1),
    ),
    "orpo": (
        "08_pairwise_robust", 2,
        lambda f, m: f(m.s, m.n, 0.1),
        lambda m: losses.orpo(m.scores, lam=0.1),
    ),
    "kto": (
        "08_pairwise_robust", 2,
        lambda f, m: f(m.s, m.s_ref, *m.other, 0.1),
        lambda m: losses.kto(m.scores, beta=0.1),
    ),
    "kto_pair": (
        "08_pairwise_robust", 2,
        lambda f, m: f(m.s, m.s_ref, 0.1),
        lambda m: losses.kto_pair(m.scores, beta=0.1),
    ),
    "beta_dpo": (
        "08_pairwise_robust", 2,
        lambda f, m: f(m.s, m.s_ref, 0.1, 0.6, moved(losses.BetaState(), dpo_gaps(m)).mean),
        lambda m: losses.beta_dpo(m.scores, beta=0.1, alpha=0.6, state=losses.BetaState()),
    ),
    "cdpo": (
        "09_label_noise", 2,
        lambda f, m: f(m.s, m.s_ref, 0.1, 0.3),
        lambda m: losses.cdpo(m.scores, beta=0.1, epsilon=0.3),
    ),
    "rsimpo": (
        "09_label_noise", 2,
        lambda f, m: f(m.s, m.n, 2.0, 0.8, 0.3),
        lambda m: noise.rsimpo(m.scores, beta=2.0, gamma0=0.8, epsilon=0.3),
    ),
    "ipo": (
        "09_label_noise", 2,
        lambda f, m: f(m.s, m.s_ref, 0.1),
        lambda m: losses.ipo(m.scores, tau=0.1),
    ),
    "ropo": (
        "09_label_noise", 2,
        lambda f, m: f(m.s, m.s_ref, 0.1, 6.0),
        lambda m: noise.ropo(m.scores, beta=0.1, alpha=6.0),
    ),
    "beta_simpo": (
        "09_label_noise", 2,
        lambda f, m: f(m.s, m.n, 2.0, 0.3, 0.8, 0.0),
        lambda m: coupled.beta_simpo(
            m.scores, beta=2.0, alpha=0.3, gamma0=0.8, state=losses.BetaState(), keep=1.0
        ),
    ),
    "alpha_dpo": (
        "09_label_noise", 2,
        lambda f, m: f(
            m.s, m.s_ref, m.n, 2.0, 0.1, 0.8, ratio_gaps(m).mean(), ratio_gaps(m).std()
        ),
        lambda m: coupled.alpha_dpo(
            m.scores, beta=2.0, alpha=0.1, gamma0=0.8, state=losses.AlphaState()
        ),
    ),
    "re_po": (
        "11_phase_diagram", 2,
        lambda f, m: f(m.s, m.s_ref, 0.1, 0.8),
        lambda m: noise.re_po(m.scores, beta=0.1, state=losses.EtaState(0.8)),
    ),
    "dpop": (
        "15_my_dpo_looks_wrong", 2,
        lambda f, m: f(m.s, m.s_ref, 0.1, 5.0),
        lambda m: losses.BASES["dpop"].loss(m.scores, beta=0.1, lam=5.0),
    ),
    "dpo_pro": (
        "11_phase_diagram", 2,
        lambda f, m: f(m.s, m.s_ref, m.R, 0.1, 0.5),
        lambda m: noise.dpo_pro(m.scores, beta=0.1, rho=0.5),
    ),
}  # fmt: skip
PARTS: dict[str, Pair] = {
    "target_margins": (
        "06_train_gamma_po", 2,
        lambda f, m: f(m.gaps, 3.0, 4.0),
        lambda m: margins.target_margins(m.gaps, gamma0=3.0, tau=4.0, solver="mirror_descent"),
    ),
    "exact_margins": (
        "07_gamma_vs_margin", 2,
        lambda f, m: f(m.gaps, 3.0, 1.0),
        lambda m: margins.target_margins(m.gaps, gamma0=3.0, tau=1.0),
    ),
    "calibration_factor": (
        "02_classifier_calibration", 4,
        lambda f, m: f(m.c, 0.25, 2.0),
        lambda m: calibration.calibration_factor(m.c, alpha=0.25, beta=0.25, imbalance=2.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*LOSSES, *PARTS])
def test_what_is_written_out_is_the_packages(name):
    stem, responses, ours, kits = (LOSSES | PARTS)[name]
    for seed in range(3):
        made = Made(seed, responses)
        torch.testing.assert_close(
            ours(written_out(stem)[name], made), kits(made), rtol=1e-6, atol=1e-8
        )


def used_names() -> set[str]:
    """Losses and aggregators of every spec that notebooks train or show, by their names."""
    specs = [*toy.study.LOSSES, *toy.study.METHODS.values()]
    for path in sorted((ROOT / "data" / "studies").glob("*.json")):
        methods = json.loads(path.read_text(encoding="utf-8"))["methods"]
        specs += [of["spec"] for of in methods.values() if isinstance(of, dict) and "spec" in of]
    for path in sorted(TEXTS.glob("*.py")):
        specs += re.findall(r'"([a-z_]+\([^"]*\))"', path.read_text(encoding="utf-8"))
    known = set(losses.BASES) | set(robust.AGGREGATORS)
    return {word for spec in specs for word in re.findall(r"[a-z_]+(?=[(,])", spec)} & known


def test_every_loss_and_aggregator_that_is_used_is_written_out():
    used = used_names()
    assert {"dpo", "dpo_pl", "rrhf", "lire", "simpo", "dora", "dr_dpo", "ropo"} <= used
    assert used <= set(LOSSES), f"no notebook writes out {sorted(used - set(LOSSES))}"


def test_a_cell_that_needs_the_package_is_found():
    names: dict[str, Any] = {"__builtins__": Sealed()}
    exec("import math", names)
    with pytest.raises(ImportError, match="imports robustpo_kit.losses"):
        exec("from robustpo_kit.losses import dpo", names)
    assert "robustpo_kit" in sys.modules
    assert not definitions("losses.dpo") and not definitions(f"{MARK}\nx = 1")


def test_the_slot_weights_written_out_are_the_packages():
    draw = np.random.default_rng(0)
    ratios = np.exp(np.where(draw.random(300) < 0.4, -1.0, 2.0) + draw.normal(0, 1, 300))
    ours, rate = written_out("02_classifier_calibration")["slot_weights"](ratios)
    kits = calibration.slot_weights(ratios)
    np.testing.assert_allclose(ours, kits.weights, atol=1e-6)
    assert rate == pytest.approx(kits.rate, abs=1e-6)


def test_the_bradley_terry_loss_written_out_is_that_of_its_probability():
    r = torch.randn(2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = written_out("03_reward_models")["bradley_terry"](*r)
    torch.testing.assert_close(found, -torch.log(1 / (1 + torch.exp(r[1] - r[0]))))


@pytest.mark.parametrize("seed", range(3))
def test_the_regression_written_out_is_the_packages(seed):
    draw = np.random.default_rng(seed)
    prompts, rows = 40, 240
    prompt = draw.integers(0, prompts, rows)
    reward, is_dora = draw.random(rows), draw.integers(0, 2, rows).astype(float)
    noise_ = draw.normal(0, 0.2, prompts)[prompt] + draw.normal(0, 0.1, rows)
    confidence = 0.2 + 0.4 * reward + 0.2 * reward * is_dora + noise_
    ours = written_out("05_reward_confidence")["slope_difference"]
    table = pd.DataFrame({"prompt_id": prompt, "reward": reward, "confidence": confidence})
    table["policy"] = np.where(is_dora == 1, "dora", "erm")
    kits = analysis.slope_difference(table, "erm", "dora").iloc[0]
    found = ours(reward, confidence, is_dora, prompt)
    np.testing.assert_allclose(found, [kits["difference"], kits["se"]], rtol=1e-8)


def test_rejection_sampling_written_out_follows_the_optimum():
    accept = written_out("12_self_training_and_rso")["accept"]
    draw = np.random.default_rng(0)
    reward, proposal, beta = np.array([0.0, 1.0]), np.array([0.7, 0.3]), 0.7
    drawn = draw.choice(2, size=(4000, 30), p=proposal)
    first = [row[accept(reward[row], 1, beta, draw)[0]] for row in drawn]
    optimum = proposal * np.exp(reward / beta)
    share = (optimum / optimum.sum())[1]
    assert np.mean(first) == pytest.approx(share, abs=4 * np.sqrt(0.25 / len(first)))
    assert accept(np.arange(5.0), 3, 1e-3, draw) == [2, 3, 4]


# ---------------------------------------------------------------- the two algorithms


def table_policy() -> torch.nn.Parameter:
    """A policy that is a table: the log-probability of every response of 48 prompts."""
    draw = torch.Generator().manual_seed(1)
    return torch.nn.Parameter(torch.randn(48, 4, dtype=torch.float64, generator=draw))


def trained_by_kit(spec: str, made: Made, batches: list[list[int]], h: torch.Tensor | None) -> Any:
    """The same table after the steps of an objective, and the losses on the way."""
    weight, objective, values = table_policy(), objectives.build(spec), []
    optimizer = torch.optim.AdamW([weight], lr=0.05, weight_decay=0.0)
    columns = 4 if objective.responses == "list" else 2
    for batch in batches:
        of_step = weight[batch, :columns]
        lengths, ref = made.n[batch][:, :columns], made.s_ref[batch][:, :columns]
        scores = Scores(of_step, ref, lengths, rewards=made.R[batch][:, :columns])
        step = objective.step_loss(scores, None if h is None else h[batch])
        optimizer.zero_grad()
        step.loss.backward()
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()
        values.append(step.loss.item())
    return weight, values


def test_algorithm_1_written_out_is_training_by_the_objective():
    made, weight = Made(3, 4, prompts=48), table_policy()
    batches = [np.random.default_rng(step).permutation(48)[:16].tolist() for step in range(10)]
    names, dpo_pl = written_out("04b_train_dora"), written_out("00_start_here")["dpo_pl"]

    def losses_of(batch: list[int]) -> torch.Tensor:
        return dpo_pl(weight[batch], made.s_ref[batch], made.R[batch], 0.1)

    values = names["algorithm_1"]([weight], losses_of, made.h, batches, 1.0, 0.05)
    kits, on_the_way = trained_by_kit("dora(dpo_pl(beta=0.1), lam=1.0)", made, batches, made.h)
    np.testing.assert_allclose(values, on_the_way, rtol=1e-9)
    torch.testing.assert_close(weight, kits)
    plain, _ = trained_by_kit("dpo_pl(beta=0.1)", made, batches, None)
    assert not torch.allclose(weight, plain)


def test_algorithm_2_written_out_is_training_by_the_objective():
    made, weight = Made(4, 2, prompts=48), table_policy()
    batches = [np.random.default_rng(step).permutation(48)[:16].tolist() for step in range(10)]
    names = written_out("06_train_gamma_po")

    def gaps_of(batch: list[int]) -> torch.Tensor:
        a = weight[batch, :2] / made.n[batch]
        return 2.5 * (a[:, 0] - a[:, 1])

    values = names["algorithm_2"]([weight], gaps_of, batches, 2.0, 2.0, 0.05, made.draw)
    spec = "gamma(simpo(beta=2.5), gamma0=2.0, tau=2.0)"
    kits, on_the_way = trained_by_kit(spec, made, batches, None)
    np.testing.assert_allclose(values, on_the_way, rtol=1e-7)
    torch.testing.assert_close(weight, kits, rtol=1e-6, atol=1e-8)
    constant, _ = trained_by_kit("simpo(beta=2.5, gamma0=2.0)", made, batches, None)
    assert not torch.allclose(weight, constant)


def test_a_step_in_parts_written_out_has_the_gradient_of_the_whole():
    a = (
        3 * torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    parts = [[0, 1, 2, 3, 4], [5], [6, 7, 8, 9, 10, 11]]
    written_out("15_my_dpo_looks_wrong")["exact_in_parts"](lambda part: a[part] ** 2, parts, 2.0)
    (whole,) = torch.autograd.grad(robust.aggregate(a**2, kind="dro", lam=2.0), a)
    torch.testing.assert_close(a.grad, whole)


@pytest.mark.parametrize("stem", ["04b_train_dora", "06_train_gamma_po"])
def test_log_probabilities_written_out_are_sums_over_a_responses_tokens(stem):
    words = policies.byte_tokenizer()
    policy = policies.tiny(words, hidden=16, seed=0)
    prompt, replies = words("Why?")["input_ids"], ("a reply", "another")
    ids = torch.tensor([[*prompt, *words(reply)["input_ids"]] for reply in replies])
    found = written_out(stem)["response_logps"](policy.model, ids, len(prompt))
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits.double().log_softmax(-1)
    places = range(len(prompt), ids.shape[1])
    by_token = [
        sum(float(logits[row, place - 1, ids[row, place]]) for place in places) for row in range(2)
    ]
    np.testing.assert_allclose(found.detach(), by_token, rtol=1e-5)
