"""Specs, presets, compositions, coupling, state and refusals of the objectives."""

import json
import math
import re
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustpo_kit import losses, margins, robust
from robustpo_kit.errors import KitError
from robustpo_kit.losses import Scores
from robustpo_kit.objectives import SpecError, aggregation, build
from robustpo_kit.records import torch_stream


def toy(batch=6, count=2, seed=0):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    logps = -30 * draw(batch, count) - 1
    lengths = torch.randint(1, 20, (batch, count), generator=g)
    kl = -10 * draw(batch)
    return Scores(
        logps,
        logps + 4 * draw(batch, count) - 2,
        lengths,
        draw(batch, count),
        None,
        kl,
        kl - draw(batch),
    )


def factors(batch=6, seed=1):
    return 2 * torch.rand(batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(objective, scores, h=None):
    leaf = scores.logps.clone().requires_grad_()
    step = objective.step_loss(scores._replace(logps=leaf), h)
    return torch.autograd.grad(step.loss, leaf)[0]


COUPLING = {  # spec: whether a sample's gradient depends on the other samples of the step
    "dpo(beta=0.1)": "separable",
    "cdpo(beta=0.1, epsilon=0.1)": "separable",
    "rdpo(beta=0.1, epsilon=0.1)": "separable",
    "r_dpo_length(beta=0.1, alpha=0.01)": "separable",
    "ipo(tau=0.1)": "separable",
    "exo(beta=0.5)": "separable",
    "simpo(beta=2.0, gamma0=0.8)": "separable",
    "cpo(beta=0.1)": "separable",
    "orpo()": "separable",
    "kto(beta=0.1)": "step",
    "kto_pair(beta=0.1)": "step",
    "beta_dpo(beta=0.1, alpha=0.5)": "step",
    "rsimpo(beta=2.0, gamma0=0.8, epsilon=0.1)": "separable",
    "beta_simpo(beta=2.0, gamma0=0.8, alpha=0.5, keep=1.0)": "step",
    "alpha_dpo(beta=2.0, gamma0=0.8, alpha=0.2)": "step",
    "re_po(beta=0.1)": "separable",
    "ropo(beta=0.1)": "separable",
    "dpo_pro(beta=0.1, rho=0.1)": "separable",
    "chi_po(beta=0.05, reward_bound=5.0)": "separable",
    "dpop(beta=0.1)": "separable",
    "hinge(beta=0.1)": "separable",
    "slic(beta=0.1, lam=0.5)": "separable",
    "simper()": "separable",
    "sppo(beta=0.1)": "separable",
    "aot(beta=0.1)": "step",
    "infonca(beta=0.1, temperature=0.5)": "separable",
    "nca(beta=0.1, temperature=0.5)": "separable",
    "dpo_pl(beta=0.1)": "separable",
    "rrhf(alpha=0.5)": "separable",
    "lire(temperature=2.0)": "separable",
    "sft()": "separable",
    "reweight(dpo, beta=0.1)": "separable",
    "reweight(dpo, beta=0.1, normalise_h='mean_one')": "step",
    "erm(dpo, beta=0.1, loss_shift=0.5)": "separable",
    "dro(dpo, beta=0.1)": "log_sum_exp",
    "dora(dpo_pl, beta=0.1, lam=1.0)": "log_sum_exp",
    "dora_outside(lire, temperature=2.0)": "step",
    "dr_dpo(dpo, beta=0.1)": "log_sum_exp",
    "kldpo(dpo, beta=0.1)": "step",
    "gamma(simpo, beta=10, gamma_beta_ratio=0.4, tau=10)": "step",
    "gamma(dpo, beta=0.1, gamma0=0.5, tau=1.0)": "step",
    "dora(gamma(cdpo, beta=0.1, epsilon=0.1, gamma0=0.5, tau=1.0), lam=2.0)": "step",
    "gamma(r_dpo_length, beta=0.1, alpha=0.01, gamma0=0.5, tau=1.0)": "step",
    "gamma(rdpo, beta=0.1, epsilon=0.1, gamma0=0.5, tau=1.0)": "step",
    "gamma(rsimpo, beta=2.0, epsilon=0.1, gamma0=0.5, tau=1.0)": "step",
}


def columns(objective):
    return 4 if objective.responses == "list" else 2


@pytest.mark.parametrize("spec", COUPLING)
def test_coupling_is_what_the_gradients_say(spec):
    """Move sample 5: in the gradients of samples 0-4, only coupled objectives must notice."""
    objective = build(spec)
    scores = toy(count=columns(objective))
    # KL estimates above their clamp at 0
    scores = scores._replace(
        ref_logps=scores.ref_logps - 4.0, kl_ref_logps=scores.kl_ref_logps - 1.0
    )
    other_logps, other_kl, other_h = scores.logps.clone(), scores.kl_logps.clone(), factors()
    other_logps[5] -= torch.linspace(0, 9, columns(objective), dtype=torch.float64)
    other_kl[5] += 3.0
    other_h[5] += 1.0
    before = gradient(build(spec), scores, factors())[:5]
    after = gradient(build(spec), scores._replace(logps=other_logps, kl_logps=other_kl), other_h)[
        :5
    ]
    assert objective.coupling == COUPLING[spec]
    assert torch.equal(before, after) == (objective.coupling == "separable")


@pytest.mark.parametrize("spec", [spec for spec, kind in COUPLING.items() if kind == "separable"])
def test_micro_batches_of_separable_objectives_add_up(spec):
    objective = build(spec)
    scores, h = toy(count=columns(objective)), factors()
    whole = gradient(objective, scores, h)
    parts = []
    for rows in (slice(0, 2), slice(2, 6)):
        part = Scores(*(x if x is None else x[rows] for x in scores))
        parts.append(gradient(build(spec), part, h[rows]) * len(part.logps) / 6)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("spec", [spec for spec, kind in COUPLING.items() if kind == "log_sum_exp"])
def test_parts_of_a_log_sum_exp_add_up_by_their_mass(spec):
    objective = build(spec)
    scores, h = toy(count=columns(objective)), factors()
    whole = gradient(objective, scores, h)
    parts, masses = [], []
    for rows in (slice(0, 1), slice(1, 6)):
        part = Scores(*(x if x is None else x[rows] for x in scores))
        parts.append(gradient(objective, part, h[rows]))
        masses.append(objective.log_mass(objective.step_loss(part, h[rows]).loss, len(part.logps)))
    shares = torch.softmax(torch.stack(masses), dim=0)
    found = torch.cat([part * share for part, share in zip(parts, shares, strict=True)])
    torch.testing.assert_close(found, whole, rtol=1e-11, atol=1e-14)
    assert (
        float((torch.cat(parts) / 2 - whole).abs().max()) > 1e-3
    )  # a plain mean of the parts is something else


def test_only_a_log_mean_exp_has_a_mass():
    for spec in ("dpo(beta=0.1)", "dora_outside(lire, temperature=2.0)"):
        with pytest.raises(ValueError, match="kind: .* log-mean-exp"):
            build(spec).log_mass(torch.tensor(1.0), 2)


@pytest.mark.parametrize("spec", COUPLING)
def test_canonical_spec_and_step(spec):
    objective = build(spec)
    again = build(objective.spec)
    assert again.spec == objective.spec
    scores, h = toy(count=columns(objective)), factors()
    step = objective.step_loss(scores, h)
    torch.testing.assert_close(again.step_loss(scores, h).loss, step.loss, rtol=0, atol=0)
    assert step.per_sample.shape == step.weights.shape == (6,)
    assert not step.weights.requires_grad
    expected = robust.aggregate(
        step.per_sample,
        h if objective.needs_h else None,
        kind=objective.aggregator,
        **objective.aggregation,
    )
    torch.testing.assert_close(step.loss, expected)
    assert all(torch.isfinite(value) and value.dim() == 0 for value in step.metrics.values())
    assert 1 - 1e-9 <= float(step.metrics["ess"]) <= 6 + 1e-9


def test_flat_and_nested_specs_are_one():
    same = [
        ("erm(dpo, beta=0.1)", "dpo(beta=0.1)"),
        ("dora(dpo_pl, beta=0.1, lam=2.0)", "dora(dpo_pl(beta=0.1), lam=2.0)"),
        (
            "dora(gamma(simpo), beta=10, gamma0=4, tau=10, lam=1.0)",
            "dora(gamma(simpo(beta=10), gamma0=4, tau=10), lam=1.0)",
        ),
        ("gamma(simpo(beta=10, gamma0=4), tau=10)", "gamma(simpo(beta=10), gamma0=4, tau=10)"),
        (" dora ( dpo , beta = 0.1 ) ", "dora(dpo(beta=0.1))"),
        ("sft", "sft()"),
    ]
    for one, two in same:
        assert build(one).spec == build(two).spec
    both = build("dora(cpo(beta=0.1, lam=0.5), lam=2.0)")
    assert both.options["lam"] == 0.5
    assert both.aggregation["lam"] == 2.0


def test_needs():
    found = {
        spec: (o.needs_reference, o.needs_rewards, o.needs_h, o.needs_kl, o.responses)
        for spec, o in ((spec, build(spec)) for spec in COUPLING)
    }
    assert found["dpo(beta=0.1)"] == (True, False, False, False, "pair")
    assert found["simpo(beta=2.0, gamma0=0.8)"] == (False, False, False, False, "pair")
    assert found["kto(beta=0.1)"] == (True, False, False, True, "pair")
    assert found["sft()"] == (False, False, False, False, "one")
    assert found["dora(dpo_pl, beta=0.1, lam=1.0)"] == (True, True, True, False, "list")
    assert found["dora_outside(lire, temperature=2.0)"] == (False, True, True, False, "list")


@pytest.mark.parametrize("spec", COUPLING)
def test_an_objective_asks_for_nothing_more_than_it_says(spec):
    objective = build(spec)
    scores = toy(count=columns(objective))
    if objective.responses == "one":
        scores = Scores(
            *(x[:, :1] if x.dim() == 2 else x for x in scores if x is not None)
        )._replace(mask=None)
    lean = Scores(
        scores.logps,
        scores.ref_logps if objective.needs_reference else None,
        scores.lengths,
        scores.rewards if objective.needs_rewards else None,
        None,
        scores.kl_logps if objective.needs_kl else None,
        scores.kl_ref_logps if objective.needs_kl else None,
    )
    assert torch.isfinite(objective.step_loss(lean, factors() if objective.needs_h else None).loss)
    for field in ("ref_logps", "rewards", "kl_logps", "kl_ref_logps"):
        if getattr(lean, field) is not None:
            with pytest.raises(ValueError, match=field):
                build(spec).step_loss(lean._replace(**{field: None}), factors())
    if objective.needs_h:
        with pytest.raises(ValueError, match=r"^h:"):
            objective.step_loss(lean)


@pytest.mark.parametrize(
    "spec",
    [
        *COUPLING,
        "ipo(tau=0.1, reduction='mean')",
        "sft(reduction='sum')",
        "rrhf(reduction='sum')",
        "cpo(beta=0.1, reduction='mean')",
        "dpo_pl(beta=0.1, reduction='mean')",
    ],
)
def test_the_table_says_how_log_probs_are_normalised(spec):
    """Twice the tokens at twice the log-prob change no length-normalised loss, and all others."""
    values = []
    for scale in (1, 2):
        scores = toy(count=4 if build(spec).responses == "list" else 2)
        scaled = scores._replace(
            logps=scale * scores.logps,
            ref_logps=scale * scores.ref_logps,
            lengths=scale * scores.lengths,
        )
        values.append(build(spec).step_loss(scaled, factors(), training=False).per_sample)
    per_token = torch.allclose(values[0], values[1], rtol=1e-9)
    assert build(spec).logp == ("mean" if per_token else "sum")


# --- the dynamic margin ---


def test_gamma_simpo_replaces_the_constant():
    objective = build("gamma(simpo, beta=10, gamma_beta_ratio=0.4, tau=10)")
    scores = toy()
    step = objective.step_loss(scores)
    gaps = losses.simpo_gap(scores, beta=10)
    gamma = margins.target_margins(gaps, gamma0=4.0, tau=10)
    torch.testing.assert_close(step.per_sample, torch.nn.functional.softplus(gamma - gaps))
    assert float(step.metrics["margin_mean"]) == pytest.approx(4.0)
    assert float(step.metrics["gamma_min"]) == pytest.approx(float(gamma.min()))
    assert float(step.metrics["gamma_max"]) == pytest.approx(float(gamma.max()))


def test_gamma_dpo_is_centred_by_default():
    scores = toy()
    gaps = losses.dpo_gap(scores, beta=0.1)
    gamma = margins.target_margins(gaps, gamma0=0.5, tau=1)
    centred = build("gamma(dpo, beta=0.1, gamma0=0.5, tau=1)").step_loss(scores)
    torch.testing.assert_close(centred.per_sample, torch.nn.functional.softplus(gamma - 0.5 - gaps))
    assert float(centred.metrics["margin_mean"]) == pytest.approx(0.5)
    full = build("gamma(dpo, beta=0.1, gamma0=0.5, tau=1, center=False)").step_loss(scores)
    torch.testing.assert_close(full.per_sample, torch.nn.functional.softplus(gamma - gaps))


def test_large_tau_is_simpo():
    scores = toy()
    step = build("gamma(simpo, beta=2.0, gamma0=0.8, tau=1e9)").step_loss(scores)
    torch.testing.assert_close(
        step.loss, build("simpo(beta=2.0, gamma0=0.8)").step_loss(scores).loss, rtol=1e-8, atol=0
    )


def test_no_gradient_flows_through_the_margins():
    scores = toy()
    objective = build("gamma(simpo, beta=10, gamma_beta_ratio=0.4, tau=10)")
    fixed = margins.target_margins(losses.simpo_gap(scores, beta=10), gamma0=4.0, tau=10)
    leaf = scores.logps.clone().requires_grad_()
    expected = losses.simpo(scores._replace(logps=leaf), beta=10, margin=fixed).mean()
    torch.testing.assert_close(gradient(objective, scores), torch.autograd.grad(expected, leaf)[0])


def test_official_parity_starts_with_eight_normals_and_nineteen_updates():
    objective = build(
        "gamma(simpo, beta=10, gamma_beta_ratio=0.4, tau=10, parity='official', seed=3)"
    )
    queue = margins.GapQueue(generator=torch_stream(3, "gap queue"), parity="official")
    assert torch.equal(objective.state_dict()["queue.gaps"], queue.state_dict()["gaps"])
    scores = toy()
    gaps = losses.simpo_gap(scores, beta=10)
    pool = torch.cat([gaps, queue.sample(250)])
    expected = margins.target_margins(pool, gamma0=4.0, tau=10, solver="mirror_descent", steps=19)[
        :6
    ]
    step = objective.step_loss(scores)
    torch.testing.assert_close(step.metrics["gamma_max"], expected.max(), rtol=1e-7, atol=0)


# --- state ---

DRAWING = (
    "gamma(simpo, beta=10, gamma_beta_ratio=0.4, tau=10, capacity=20, solve_size=12)",
    "beta_dpo(beta=0.1, alpha=0.5, keep=0.5)",
    "beta_simpo(beta=1, gamma0=0.4, alpha=0.5, keep=0.5)",
)
STATEFUL = (
    *DRAWING,
    "alpha_dpo(beta=10, gamma_beta_ratio=0.4, alpha=0.2)",
    "re_po(beta=0.1, momentum=0.5)",
)


def stepped(spec, steps):
    """The objective after so many steps."""
    objective = build(spec)
    for step in range(steps):
        objective.step_loss(toy(seed=step))
    return objective


@pytest.mark.parametrize("spec", STATEFUL)
def test_resume_is_bit_for_bit(spec):
    straight, first = stepped(spec, 4), stepped(spec, 4)
    as_json = json.dumps(
        {k: v.tolist() if torch.is_tensor(v) else v for k, v in first.state_dict().items()}
    )
    resumed = build(spec)
    resumed.load_state_dict(json.loads(as_json))
    for step in range(4, 8):
        assert torch.equal(
            straight.step_loss(toy(seed=step)).loss, resumed.step_loss(toy(seed=step)).loss
        )


@pytest.mark.parametrize("spec", DRAWING)
def test_the_runs_seed_reaches_what_the_objective_draws(spec):
    """Every seed of a run had the draws of seed 0; a seed of the spec itself still wins."""

    def values(objective):
        return [float(objective.step_loss(toy(seed=step)).loss) for step in range(5)]

    plain, first, second = (values(build(spec, seed=seed)) for seed in (0, 1, 2))
    assert plain == values(build(spec)) and len({*map(tuple, (plain, first, second))}) == 3
    built = build(spec, seed=1)
    assert "seed=1" in built.spec and values(build(built.spec)) == first
    assert values(build(built.spec, seed=2)) == first
    assert build(spec).spec == build(spec, seed=0).spec


def test_an_objective_that_draws_nothing_has_no_seed():
    assert build("dora(dpo, beta=0.1)", seed=3).spec == build("dora(dpo, beta=0.1)").spec


@pytest.mark.parametrize("spec", STATEFUL)
def test_evaluation_changes_nothing(spec):
    for steps in (1, 2, 3):
        objective, twin = stepped(spec, steps), stepped(spec, steps)
        one = objective.step_loss(toy(seed=99), training=False).loss
        assert torch.equal(one, objective.step_loss(toy(seed=99), training=False).loss)
        assert torch.equal(objective.step_loss(toy(seed=7)).loss, twin.step_loss(toy(seed=7)).loss)
    assert objective.state_dict()


def test_stateless_objectives_have_no_state():
    objective = build("dora(dpo, beta=0.1)")
    assert objective.state_dict() == {}
    objective.load_state_dict({})
    with pytest.raises(ValueError, match=r"queue\.gaps"):
        objective.load_state_dict(build(STATEFUL[0]).state_dict())
    with pytest.raises(ValueError, match=r"queue\.gaps"):
        build(STATEFUL[0]).load_state_dict({})


# --- metrics ---


def test_metrics_of_a_known_step():
    scores = Scores(
        torch.tensor([[-1.0, -2.0], [-5.0, -3.0]], dtype=torch.float64),
        torch.tensor([[-1.5, -1.0], [-4.0, -4.0]], dtype=torch.float64),
        torch.ones(2, 2, dtype=torch.long),
    )
    h = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = build("reweight(dpo, beta=1.0)").step_loss(scores, h).metrics
    expected = {
        "ess": 16 / 10,
        "max_weight": 0.75,
        "weight_sum": 2.0,
        "logps_chosen": -3.0,
        "chosen_shift": -0.25,
        "accuracy": 0.5,
        "gap_mean": -0.25,
        "h_mean": 2.0,
        "corr_h_weight": 1.0,
        "loss_mean": (math.log1p(math.exp(-1.5)) + math.log1p(math.exp(2.0))) / 2,
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)


def test_list_accuracy_ignores_padding():
    scores = toy(2, 3)._replace(
        logps=torch.tensor([[-1.0, -9.0, math.nan], [-9.0, -1.0, -5.0]], dtype=torch.float64),
        ref_logps=torch.zeros(2, 3, dtype=torch.float64),
        rewards=torch.tensor([[1.0, 0.0, math.nan], [1.0, 0.0, 0.5]], dtype=torch.float64),
        mask=torch.tensor([[True, True, False], [True, True, True]]),
    )
    assert float(build("dpo_pl(beta=0.1)").step_loss(scores).metrics["accuracy"]) == 0.5


def test_dora_on_lire_reports_the_turned_correlation():
    """Losses in (-1, 0): without a shift larger h gets a smaller exponential weight."""
    scores, h = toy(16, 4, seed=3), torch.linspace(0.1, 3.0, 16, dtype=torch.float64)
    spec = "dora(lire, temperature=200.0, reward_transform='softmax', lam=0.02{})"
    plain = build(spec.format("")).step_loss(scores, h)
    shifted = build(spec.format(", loss_shift=1.0")).step_loss(scores, h)
    assert float(plain.metrics["corr_h_weight"]) < 0 < float(shifted.metrics["corr_h_weight"])


def test_the_specs_of_the_differences_are_understood():
    """docs/differences.md gives a spec for most of its rows; only those with ... are no specs."""
    text = (Path(__file__).parents[1] / "docs" / "differences.md").read_text()
    heads = "|".join((*losses.BASES, *robust.AGGREGATORS, "gamma"))
    specs = [spec for spec in re.findall(rf"`((?:{heads})\(.*?\))`", text) if "..." not in spec]
    assert len(specs) == 10
    for spec in specs:
        build(spec)


# --- one function and one row ---


def halved(scores, *, scale, generator, state, training=True):
    """A loss of nobody: coupled, with a state and draws."""
    if training:
        state.update(scores.logps[:, 0])
        torch.rand(1, generator=generator)
    return scale * losses.mean_logps(scores)[:, 0].square() + state.mean


def test_a_loss_is_one_function_and_one_row(monkeypatch):
    row = losses.Base(
        halved,
        "pair",
        needs_reference=False,
        logp="mean",
        coupled=True,
        state=losses.BetaState,
        bounded=True,
    )
    monkeypatch.setitem(losses.BASES, "halved", row)
    objective = build("dro(halved, scale=0.5, momentum=0.5, seed=3, lam=2.0)")
    assert objective.options == {"scale": 0.5, "momentum": 0.5, "seed": 3}
    assert (objective.logp, objective.coupling, objective.needs_reference) == (
        "mean",
        "step",
        False,
    )
    before = objective.state_dict()
    assert set(before) == {"loss.momentum", "loss.mean", "loss.std", "loss.generator"}
    objective.step_loss(toy())
    assert objective.state_dict()["loss.mean"] != before["loss.mean"]
    for spec, refusal in (
        ("halved()", "halved needs scale"),
        ("dr_dpo(halved, scale=0.5)", "soft minimum"),
        ("gamma(halved, scale=0.5, gamma0=1, tau=1)", "no target margin"),
    ):
        with pytest.raises(SpecError, match=refusal):
            build(spec)


def tail_mean(losses, *, share):
    """The mean of the largest losses: conditional value at risk."""
    tail = torch.zeros_like(losses)
    tail[losses.topk(max(1, int(share * len(losses)))).indices] = 1.0
    weights = tail / tail.sum()
    return robust.Aggregate((weights * losses).sum(), weights)


def test_an_aggregator_is_one_function_and_one_row(monkeypatch):
    monkeypatch.setitem(robust.AGGREGATORS, "tail", robust.Aggregator(tail_mean, "step"))
    objective = build("tail(dpo, beta=0.1, share=0.5)")
    assert objective.spec == "tail(dpo(beta=0.1), share=0.5)"
    assert (objective.coupling, objective.needs_h) == ("step", False)
    step = objective.step_loss(toy())
    worst = step.per_sample.topk(3).values
    torch.testing.assert_close(step.loss, worst.mean())
    assert float(step.weights.sum()) == pytest.approx(1.0)
    with pytest.raises(SpecError, match="unknown argument 'lam'"):
        build("tail(dpo, beta=0.1, share=0.5, lam=1.0)")
    with pytest.raises(ValueError, match=r"^share: 'dro' takes lam, loss_shift"):
        robust.aggregate(step.per_sample, kind="dro", share=0.5)


def test_the_default_of_lam_stands_in_one_place(monkeypatch):
    """Edit that one line: value, weights and the mass of a part follow."""
    source = Path(robust.__file__).read_text()
    assert source.count("DEFAULT_LAM = 1.0") == 1
    edited = types.ModuleType("edited_robust")
    exec(source.replace("DEFAULT_LAM = 1.0", "DEFAULT_LAM = 3.0"), edited.__dict__)
    monkeypatch.setattr(aggregation, "robust", edited)
    scores, h = toy(), factors()
    implicit, explicit = build("dora(dpo, beta=0.1)"), build("dora(dpo, beta=0.1, lam=3.0)")
    one, two = implicit.step_loss(scores, h), explicit.step_loss(scores, h)
    assert torch.equal(one.loss, two.loss)
    assert torch.equal(one.weights, two.weights)
    assert torch.equal(implicit.log_mass(one.loss, 6), explicit.log_mass(two.loss, 6))
    usual = build("dora(dpo, beta=0.1, lam=1.0)").step_loss(scores, h)
    assert not torch.equal(one.loss, usual.loss)


# --- refusals ---

REFUSED = {
    "": "expected a spec",
    "dpo(": "not a spec",
    "dpo": "needs beta",
    "dpoo(beta=0.1)": "did you mean dpo",
    "dpo(0.1)": "keywords only",
    "dpo(beta=0.1, gamma=2)": "unknown argument 'gamma'",
    "dpo(beta=0.1, beta=0.2)": "given once",
    "dpo(**{'beta': 0.1})": "given once",
    "dora": "needs a base loss",
    "dora(dpo, simpo, beta=0.1)": "takes one loss",
    "dora(dro(dpo, beta=0.1))": "one aggregator",
    "gamma(gamma(dpo, beta=0.1, gamma0=1, tau=1))": "one dynamic margin",
    "gamma(dora(simpo, beta=2), gamma0=1, tau=1)": r"write dora\(gamma\(simpo",
    "gamma(dpo, beta=0.1, gamma0=1)": "needs tau",
    "erm(dpo(beta=0.1), beta=0.2)": "'beta' of dpo is given twice",
    "gamma(simpo(beta=2, gamma0=1), gamma0=2, tau=1)": "'gamma0' of gamma is given twice",
    "dora(dpo, beta=0.1, rho=1)": "accepted here: beta, ess, lam, loss_shift, micro_batch, ",
    "gamma(ipo, tau=0.1, gamma0=1)": "no target margin",
    "gamma(dpo_pl, beta=0.1, gamma0=1, tau=1)": "no target margin",
    "gamma(kto, beta=0.1, gamma0=1, tau=1)": "no target margin",
    "dora(cpo, beta=0.1, lam=1.0)": "'lam' is an argument of dora and cpo",
    "dro(beta_dpo, beta=0.1, alpha=0.1, keep=0.5)": "filter",
    "dr_dpo(kto, beta=0.1)": "soft minimum",
    "dr_dpo(simper)": "soft minimum",
    "gamma(alpha_dpo, beta=2, alpha=0.1, gamma0=1, tau=1)": "no target margin",
    "dpo(beta=__import__('os').getpid())": "must be a number",
    "__import__('os').system('true')": "expected a name",
    "dpo(beta=[0.1])": "must be a number",
    "(lambda: 1)()": "expected a name",
}
BAD_VALUES = {
    "dpo(beta=-0.1)": "beta",
    "dpo(beta='much')": "beta",
    "dpo(beta=True)": "beta",
    "dora(dpo, beta=0.1, lam=-1)": "lam",
    "dora(dpo, beta=0.1, normalise_h='no')": "normalise_h",
    "simpo(beta=2)": "gamma0, gamma_beta_ratio",
    "simpo(beta=2, gamma0=1, gamma_beta_ratio=0.5)": "gamma0, gamma_beta_ratio",
    "gamma(simpo, beta=2, gamma0=1, gamma_beta_ratio=0.5, tau=1)": "gamma0, gamma_beta_ratio",
    "gamma(dpo, beta=0.1, gamma0=1, tau=-1)": "tau",
    "gamma(dpo, beta=0.1, gamma0=1, tau=1, seed=0.5)": "seed",
    "gamma(dpo, beta=0.1, gamma0=1, tau=1, center=2)": "center",
    "gamma(dpo, beta=0.1, gamma0=1, tau=1, capacity=0)": "capacity",
    "gamma(dpo, beta=0.1, gamma0=1, tau=1, parity='paper')": "parity",
    "gamma(dpo, beta=0.1, gamma0=1, tau=1, solver='newton')": "solver",
    "beta_dpo(beta=0.1, alpha=0.1, momentum=2)": "momentum",
    "beta_dpo(beta=0.1, alpha=0.1, keep=0)": "keep",
    "dro(beta_dpo, beta=0.1, alpha=0.1, keep='all')": "keep",
    "beta_dpo(beta=0.1, alpha=0.1, seed=True)": "seed",
    "re_po(beta=0.1, eta=1)": "eta",
    "re_po(beta=0.1, momentum=1)": "momentum",
    "alpha_dpo(beta=2, alpha=0.1)": "gamma0, gamma_beta_ratio",
    "beta_simpo(beta=2, alpha=0.1, gamma0=1, keep=2)": "keep",
    "rsimpo(beta=2, gamma0=1, epsilon=0.1, debiased=1)": "debiased",
}
BAD_OPTIONS = {
    "dora(dpo(beta=0.1), parity=authors)": "has the losses dpo_pl, lire, rrhf, not dpo",
    "dora(dpo_pl(beta=0.1), parity=mine)": "parity: expected 'authors', got 'mine'",
    "dora(dpo_pl(beta=0.1, reduction=sum), parity=authors)": "reduction: .* means 'mean'",
    "dora(lire(temperature=2, reward_transform=none), parity=authors)": "reward_transform: .* mean",
    "dora(dpo_pl(beta=0.1), parity=authors, loss_shift=1)": "loss_shift: the authors' script has",
    "dora(dpo_pl(beta=0.1), parity=authors, micro_batch=0)": "micro_batch: must be at least 1",
    "dora(dpo_pl(beta=0.1), micro_batch=2)": "micro_batch: goes with parity",
    "dro(dpo_pl(beta=0.1), parity=authors)": "unknown argument 'parity'",
    "dora(dpo(beta=0.1), ess=1.0)": "ess: must lie in",
    "dora(dpo(beta=0.1), ess=0)": "ess: must lie in",
    "dora(dpo(beta=0.1), ess=0.5, lam=1)": "ess: gives lambda; leave out lam",
    "dora(dpo_pl(beta=0.1), ess=0.5, parity=authors)": "leave out parity",
    "dora(dpo(beta=0.1), solve_step=2)": "solve_step: .* give ess",
    "reweight(dpo(beta=0.1), ess=0.5)": "unknown argument 'ess'",
    "gamma(simpo(beta=2), gamma0=1, spread=0.2, tau=1)": "spread: gives tau",
    "gamma(simpo(beta=2), spread=0.2)": "gamma0, gamma_beta_ratio",
    "gamma(dpo(beta=0.1), spread=0.2, center=False)": "gamma0, gamma_beta_ratio",
    "gamma(dpo(beta=0.1), gamma0=1, spread=-1)": "spread: must be positive",
    "gamma(dpo(beta=0.1), gamma0=1, tau=1, solve_step=2)": "solve_step: .* give spread",
    "gamma(dpo(beta=0.1), spread=0.2, solve_step=0)": "solve_step: must be at least 1",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_nonsense_is_refused_with_the_reason(spec):
    with pytest.raises(SpecError, match=REFUSED[spec]) as caught:
        build(spec)
    assert isinstance(caught.value, KitError)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", BAD_OPTIONS)
def test_options_that_make_no_sense_together_are_refused(spec):
    with pytest.raises(ValueError, match=BAD_OPTIONS[spec]):
        build(spec)


@pytest.mark.parametrize("spec", BAD_VALUES)
def test_bad_values_are_named_when_built(spec):
    with pytest.raises(ValueError, match=rf"^{BAD_VALUES[spec]}\b"):
        build(spec)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="dpogram(),=.1'_ *+-[]{}:\n\0", max_size=30))
def test_any_text_is_built_or_refused_in_words(text):
    try:
        build(text)
    except (KitError, ValueError) as error:
        assert str(error)


def test_deep_nesting_is_refused():
    with pytest.raises(SpecError):
        build("dora(" * 5000 + "dpo" + ")" * 5000)
