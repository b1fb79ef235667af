"""A wished effective sample size or spread of margins, and the lambda, gamma0 and tau it means."""

import dataclasses
import shutil

import pytest
import torch

from robustpo_kit import losses, margins, objectives, robust, training
from robustpo_kit.errors import KitError
from robustpo_kit.losses import Scores
from robustpo_kit.objectives import lambda_for_ess, tau_for_spread
from robustpo_kit.training import TrainConfig
from tests.training_setting import preferences, tiny


def draws(count=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.empty(2, count, dtype=torch.float64).exponential_(generator=g)


def scores(count=16, seed=0, columns=2):
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    logps, lengths = -30 * uniform(count, columns) - 1, torch.full((count, columns), 7)
    return Scores(logps, logps - 4 * uniform(count, columns), lengths, uniform(count, columns))


# --- numbers ---


@pytest.mark.parametrize("kind", ["dro", "dora", "dora_outside", "dr_dpo"])
@pytest.mark.parametrize("ess", [0.2, 0.5])
def test_lambda_gives_the_wished_effective_sample_size(kind, ess):
    for seed in range(5):
        per_sample, h = draws(seed=seed)
        h = 0.5 + h / 4
        lam = lambda_for_ess(per_sample, ess, h, kind=kind)
        weights = robust.weights(per_sample, h, kind=kind, lam=lam)
        assert float(robust.effective_sample_size(weights)) == pytest.approx(16 * ess, rel=1e-9)


def test_it_is_the_largest_such_lambda():
    """Where h falls as h l rises, the effective sample size first rises as lambda falls."""
    per_sample = torch.tensor([9.0, 4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    h = torch.tensor([0.2, 0.6, 1.0, 2.0, 2.5], dtype=torch.float64)
    lam = lambda_for_ess(per_sample, 0.5, h, kind="dora")

    def size(value):
        return float(
            robust.effective_sample_size(robust.weights(per_sample, h, kind="dora", lam=value))
        )

    milder = [size(lam * factor) for factor in (1.01, 2.0, 10.0, 1e3, 1e6)]
    assert size(lam) == pytest.approx(2.5) and min(milder) > 2.5


def test_two_samples_by_hand():
    """Weights softmax(l / lam) = (p, 1 - p) of p^2 + (1 - p)^2 = 1 / (2 ess)."""
    p = 0.8
    ess = 1 / (p**2 + (1 - p) ** 2) / 2
    found = lambda_for_ess(torch.tensor([3.0, 1.0]), ess, kind="dro")
    assert found == pytest.approx(2.0 / torch.logit(torch.tensor(p, dtype=torch.float64)).item())


def test_tau_gives_the_wished_spread():
    gaps = 4 * draws(64)[0] - 3
    for gamma0, spread in ((4.0, 0.05), (4.0, 0.2), (0.5, 0.2), (1.0, 0.4)):
        tau = tau_for_spread(gaps, spread, gamma0=gamma0)
        solved = margins.target_margins(gaps, gamma0=gamma0, tau=tau)
        assert float(solved.std(correction=0)) == pytest.approx(spread * gamma0, rel=1e-8)


IMPOSSIBLE = {
    "more than h alone leaves": lambda: lambda_for_ess(*_uneven(), kind="dora"),
    "equal losses": lambda: lambda_for_ess(torch.ones(8), 0.5, kind="dro"),
    "more than the gaps carry": lambda: tau_for_spread(0.5 * draws()[0], 0.2, gamma0=4.0),
    "equal gaps": lambda: tau_for_spread(torch.zeros(8), 0.2, gamma0=1.0),
}
WORDS = {
    "more than h alone leaves": r"ess=0.9: on these 16 losses .* at an infinite lambda; wish for",
    "equal losses": r"all losses are equal, .* solve at a later step, solve_step=",
    "more than the gaps carry": r"spread=0.2: margins of mean 4 can spread .* lower gamma0",
    "equal gaps": r"all gaps are equal, .* solve_step=",
}


def _uneven():
    per_sample, h = draws()
    return per_sample, 0.9, h


@pytest.mark.parametrize("wish", IMPOSSIBLE)
def test_impossible_wishes_are_refused_in_words(wish):
    with pytest.raises(KitError, match=WORDS[wish]):
        IMPOSSIBLE[wish]()


# --- objectives ---


def test_an_objective_solves_lambda_at_its_first_step_and_keeps_it():
    objective = objectives.build("dora(dpo_pl, beta=0.1, ess=0.7)")
    assert (objective.coupling, objective.strength) == ("step", {"ess": 0.7})
    h = 1 + draws()[1] / 10
    step = objective.step_loss(scores(columns=4), h)
    assert float(step.metrics["ess"]) == pytest.approx(0.7 * 16)
    lam = objective.strength["lam"]
    assert objective.coupling == "log_sum_exp"
    given = objectives.build(f"dora(dpo_pl, beta=0.1, lam={lam!r})")
    other = scores(columns=4, seed=1)
    for training_ in (True, False):
        found = objective.step_loss(other, h, training=training_)
        torch.testing.assert_close(found.loss, given.step_loss(other, h).loss, rtol=0, atol=0)
    torch.testing.assert_close(objective.log_mass(found.loss, 16), given.log_mass(found.loss, 16))
    assert objective.strength["lam"] == lam


def test_before_its_step_it_is_the_mild_limit():
    objective = objectives.build("dro(dpo, beta=0.1, ess=0.7, solve_step=3)")
    erm = objectives.build("dpo(beta=0.1)").step_loss(scores()).loss
    for _ in range(2):
        assert float(objective.step_loss(scores()).loss) == pytest.approx(float(erm), rel=1e-5)
        objective.step_loss(scores(), training=False)  # counts no step
        assert "lam" not in objective.strength
    objective.step_loss(scores())
    assert objective.strength["lam"] > 0


def test_gamma_over_simpo_and_over_dpo():
    simpo = objectives.build("gamma(simpo(beta=10), gamma_beta_ratio=0.4, spread=0.2)")
    step = simpo.step_loss(scores())
    assert set(simpo.strength) == {"spread", "tau"} and simpo.gamma0 == 4.0
    tau = simpo.strength["tau"]
    by_hand = objectives.build(f"gamma(simpo(beta=10), gamma_beta_ratio=0.4, tau={tau!r})")
    torch.testing.assert_close(step.loss, by_hand.step_loss(scores()).loss, rtol=0, atol=0)
    dpo = objectives.build("gamma(dpo(beta=0.1), spread=0.2)")
    assert dpo.gamma0 is None
    step = dpo.step_loss(scores())
    gaps = losses.dpo_gap(scores(), beta=0.1)
    assert dpo.gamma0 == pytest.approx(float(gaps.std(correction=0)))
    gammas = margins.target_margins(gaps, gamma0=dpo.gamma0, tau=dpo.strength["tau"])
    assert float(gammas.std(correction=0)) == pytest.approx(0.2 * dpo.gamma0)
    assert float(step.metrics["gamma_max"]) == pytest.approx(float(gammas.max()))


def test_what_is_solved_travels_with_the_state():
    for spec in ("dora(dpo, beta=0.1, ess=0.6)", "gamma(dpo(beta=0.1), spread=0.1, solve_step=2)"):
        objective, again = objectives.build(spec), objectives.build(spec)
        objective.step_loss(scores(), torch.ones(16))
        again.load_state_dict(objective.state_dict())
        for seed in (1, 2):  # for gamma, the second of its steps
            one, two = (o.step_loss(scores(seed=seed), torch.ones(16)) for o in (objective, again))
            assert torch.equal(one.loss, two.loss)
        assert again.strength == objective.strength and len(again.strength) > 1


# --- runs ---

CONFIG = TrainConfig(batch_size=4, micro_batch_size=4, epochs=2, learning_rate=1e-2)


def run(spec, **changes):
    rows = preferences(3 if "pl" in spec else 2)
    return training.train(
        tiny(), rows, objectives.build(spec), dataclasses.replace(CONFIG, **changes)
    )


def test_a_run_records_what_it_solved_and_cutting_the_step_changes_nothing():
    spec = "dora(dpo_pl(beta=0.1), ess=0.8)"
    whole, cut = run(spec), run(spec, micro_batch_size=1)
    assert whole.history[0]["ess"] == pytest.approx(0.8 * 4, rel=1e-5)
    strength = whole.metrics["strength"]
    assert strength["ess"] == 0.8
    assert cut.metrics["strength"]["lam"] == pytest.approx(strength["lam"], rel=1e-3)
    assert f"lam = {strength['lam']:.4g}" in training.run_card(whole)


def test_a_resumed_run_has_the_same_number(tmp_path):
    spec = "gamma(dpo(beta=0.1), spread=0.2, solve_step=2)"
    whole = run(spec)
    kept = {"checkpoint": str(tmp_path), "checkpoint_every": 1}
    run(spec, **kept)
    last = max(tmp_path.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    shutil.rmtree(last)
    resumed = run(spec, **kept)  # its last step alone, after the one that solved
    assert resumed.metrics["strength"] == whole.metrics["strength"]
    assert resumed.history[-1]["loss"] == whole.history[-1]["loss"]
    with pytest.raises(KitError, match=r"another run \(objective is .*spread=0.3.* was .*0.2"):
        run(spec.replace("0.2", "0.3"), **kept)


def test_micro_batches_as_batches_have_none_to_solve_on():
    with pytest.raises(KitError, match="window: 'micro' has no whole batch"):
        run("dora(dpo_pl(beta=0.1), ess=0.8)", window="micro")
