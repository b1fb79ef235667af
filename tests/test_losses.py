"""Losses against the papers' formulas at 50 digits, gradients, invariances, extremes, refusals."""

import functools
import itertools
import math

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustpo_kit import losses
from robustpo_kit.losses import AlphaState, BetaState, EtaState, Scores

mp.mp.dps = 50
LISTS = [name for name, row in losses.BASES.items() if row.responses == "list"]


def toy(batch=5, count=2, seed=0, scale=30.0, dtype=torch.float64):
    """Random scores; every field a loss may ask for is there."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    lengths = torch.randint(1, 40, (batch, count), generator=g)
    logps = -(0.02 + draw(batch, count)) * scale
    ref_logps = logps + 4 * (draw(batch, count) - 0.5)
    rewards = 3 * (draw(batch, count) - 0.5)
    kl_logps = -draw(batch) * scale
    fields = (logps, ref_logps, rewards, kl_logps, kl_logps - draw(batch))
    logps, ref_logps, rewards, kl_logps, kl_ref_logps = (x.to(dtype) for x in fields)
    return Scores(logps, ref_logps, lengths, rewards, None, kl_logps, kl_ref_logps)


def sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def divergence(p, q):
    return sum(a * mp.log(a / b) for a, b in zip(p, q, strict=True))


def softmax(x):
    total = sum(mp.exp(v) for v in x)
    return [mp.exp(v) / total for v in x]


def odds(a):
    return mp.exp(a) / (1 - mp.exp(a))


def exact_pl(row, beta):
    """Probability that the ranking by reward is drawn one winner at a time."""
    left = sorted(range(len(row.s)), key=lambda k: (-row.rewards[k], k))
    probability = mp.mpf(1)
    while left:
        strengths = {k: mp.exp(beta * (row.s[k] - row.ref[k])) for k in left}
        probability *= strengths[left[0]] / sum(strengths.values())
        left = left[1:]
    return -mp.log(probability)


def exact_rrhf(row, alpha):
    ranking = mp.mpf(0)
    for i, low in enumerate(row.rewards):
        for j, high in enumerate(row.rewards):
            if low < high:
                ranking += max(mp.mpf(0), row.s[i] / row.n[i] - row.s[j] / row.n[j])
    best = row.rewards.index(max(row.rewards))
    return ranking - alpha * row.s[best] / row.n[best]


def exact_simpo(row, beta, gamma0):
    return -mp.log(sigmoid(beta * row.s[0] / row.n[0] - beta * row.s[1] / row.n[1] - gamma0))


def utilities(row, beta):
    return [beta * (s - ref) for s, ref in zip(row.s, row.ref, strict=True)]


def exact_shares(row, temperature):
    return softmax([reward / mp.mpf(temperature) for reward in row.rewards])


def exact_worst(row, beta, rho):
    """At the probability p of the label that costs most, an end of its interval: linear in p."""
    q, m = sigmoid(row.rewards[0] - row.rewards[1]), beta * row.d
    radius = mp.sqrt(rho * q * (1 - q))
    ends = (max(mp.mpf(0), q - radius), min(mp.mpf(1), q + radius))
    return max(-p * mp.log(sigmoid(m)) - (1 - p) * mp.log(sigmoid(-m)) for p in ends)


def exact_chi(row, beta, bound):
    value = [mp.exp(row.s[k] - row.ref[k]) + row.s[k] - row.ref[k] for k in (0, 1)]
    gap = beta * (value[0] - value[1])
    return -mp.log(sigmoid(max(-2 * bound, min(2 * bound, gap))))


def exact_kto(row, beta, z_chosen, z_rejected, weight=1):
    win, lose = row.s[0] - row.ref[0], row.s[1] - row.ref[1]
    return (
        (1 - sigmoid(beta * (win - z_chosen))) + weight * (1 - sigmoid(beta * (z_rejected - lose)))
    ) / 2


class Row:
    """One sample in arbitrary precision, with what the batch adds for KTO."""

    def __init__(self, scores, index):
        def field(x):
            return [mp.mpf(v) for v in x[index].tolist()]

        self.s, self.ref, self.n, self.rewards = (field(x) for x in scores[:4])
        self.d = (self.s[0] - self.ref[0]) - (self.s[1] - self.ref[1])

        def mean(x):
            return sum(mp.mpf(v) for v in x.tolist()) / len(x)

        self.z = max(mp.mpf(0), mean(scores.kl_logps) - mean(scores.kl_ref_logps))
        gaps = (scores.logps[:, 0] - scores.logps[:, 1]).tolist()
        rank = sorted(range(len(gaps)), key=gaps.__getitem__).index(index)
        ref_gap = sorted((scores.ref_logps[:, 0] - scores.ref_logps[:, 1]).tolist())[rank]
        self.transported = mp.mpf(gaps[index]) - mp.mpf(ref_gap)
        self.z_win, self.z_lose = (
            max(mp.mpf(0), mean(scores.logps[:, k]) - mean(scores.ref_logps[:, k])) for k in (0, 1)
        )


EXACT = {  # name: (columns, keywords, the paper's formula)
    "dpo": (2, {"beta": 0.1}, lambda r: -mp.log(sigmoid(0.1 * r.d))),
    "cdpo": (
        2,
        {"beta": 0.3, "epsilon": 0.2},
        lambda r: -0.8 * mp.log(sigmoid(0.3 * r.d)) - 0.2 * mp.log(sigmoid(-0.3 * r.d)),
    ),
    "rdpo": (
        2,
        {"beta": 0.3, "epsilon": 0.2},
        lambda r: (
            (-0.8 * mp.log(sigmoid(0.3 * r.d)) + 0.2 * mp.log(sigmoid(-0.3 * r.d))) / mp.mpf(0.6)
        ),
    ),
    "r_dpo_length": (
        2,
        {"beta": 0.1, "alpha": 0.01},
        lambda r: -mp.log(sigmoid(0.1 * r.d + 0.01 * (r.n[0] - r.n[1]))),
    ),
    "r_dpo_length printed": (
        2,
        {"beta": 0.1, "alpha": 0.01, "printed": True},
        lambda r: -mp.log(sigmoid(0.1 * r.d + 0.01 * (r.n[1] - r.n[0]))),
    ),
    "ipo": (2, {"tau": 0.1}, lambda r: (r.d - 5) ** 2),
    "ipo mean": (
        2,
        {"tau": 0.1, "reduction": "mean"},
        lambda r: ((r.s[0] - r.ref[0]) / r.n[0] - (r.s[1] - r.ref[1]) / r.n[1] - 5) ** 2,
    ),
    "exo": (
        2,
        {"beta": 0.5, "epsilon": 0.125},
        lambda r: divergence(
            softmax([0.5 * (r.s[k] - r.ref[k]) for k in (0, 1)]), [mp.mpf(0.875), mp.mpf(0.125)]
        ),
    ),
    "simpo": (2, {"beta": 2.0, "gamma0": 0.8}, lambda r: exact_simpo(r, 2, 0.8)),
    "simpo ratio": (2, {"beta": 10.0, "gamma_beta_ratio": 0.5}, lambda r: exact_simpo(r, 10, 5)),
    "cpo": (
        2,
        {"beta": 0.1, "lam": 0.5},
        lambda r: mp.log(1 + mp.exp(-0.1 * (r.s[0] - r.s[1]))) - r.s[0] / 2,
    ),
    "cpo mean": (
        2,
        {"beta": 0.1, "reduction": "mean"},
        lambda r: mp.log(1 + mp.exp(-0.1 * (r.s[0] - r.s[1]))) - r.s[0] / r.n[0],
    ),
    "orpo": (
        2,
        {"lam": 0.5},
        lambda r: (
            -r.s[0] / r.n[0]
            - 0.5 * mp.log(sigmoid(mp.log(odds(r.s[0] / r.n[0]) / odds(r.s[1] / r.n[1]))))
        ),
    ),
    "kto": (2, {"beta": 0.1, "weight_rejected": 0.5}, lambda r: exact_kto(r, 0.1, r.z, r.z, 0.5)),
    "kto_pair": (2, {"beta": 0.1}, lambda r: exact_kto(r, 0.1, r.z_lose, r.z_win)),
    "rsimpo": (
        2,
        {"beta": 2.0, "gamma0": 0.8, "epsilon": 0.2},
        lambda r: 0.8 * exact_simpo(r, 2, 0.8) + 0.2 * exact_simpo(r, -2, 0.8),
    ),
    "rsimpo debiased": (
        2,
        {"beta": 2.0, "gamma_beta_ratio": 0.4, "epsilon": 0.25, "debiased": True},
        lambda r: (3 * exact_simpo(r, 2, 0.8) - exact_simpo(r, -2, 0.8)) / 2,
    ),
    "ropo": (
        2,
        {"beta": 0.3},
        lambda r: mp.mpf(56) / 225 * (14 * sigmoid(-0.3 * r.d) - mp.log(sigmoid(0.3 * r.d))),
    ),
    "dpo_pro": (2, {"beta": 0.3, "rho": 0.25}, lambda r: exact_worst(r, 0.3, 0.25)),
    "dpo_pro wide": (2, {"beta": 0.3, "rho": 4.0}, lambda r: exact_worst(r, 0.3, 4)),
    "chi_po": (2, {"beta": 0.05, "reward_bound": 3.0}, lambda r: exact_chi(r, 0.05, 3)),
    "chi_po clipped": (2, {"beta": 1.0, "reward_bound": 0.5}, lambda r: exact_chi(r, 1, 0.5)),
    "dpop": (
        2,
        {"beta": 0.1},
        lambda r: -mp.log(sigmoid(0.1 * (r.d - 50 * max(mp.mpf(0), r.ref[0] - r.s[0])))),
    ),
    "hinge": (2, {"beta": 0.4}, lambda r: max(mp.mpf(0), 1 - 0.4 * r.d)),
    "slic": (
        2,
        {"beta": 0.1, "lam": 0.5},
        lambda r: max(mp.mpf(0), 1 - 0.1 * (r.s[0] - r.s[1])) - r.s[0] / 2,
    ),
    "slic mean": (
        2,
        {"beta": 0.1, "lam": 0.5, "reduction": "mean"},
        lambda r: max(mp.mpf(0), 1 - 0.1 * (r.s[0] - r.s[1])) - r.s[0] / r.n[0] / 2,
    ),
    "simper": (2, {}, lambda r: mp.exp(r.s[1] / r.n[1]) - mp.exp(r.s[0] / r.n[0])),
    "sppo": (
        2,
        {"beta": 0.125},
        lambda r: ((r.s[0] - r.ref[0] - 4) ** 2 + (r.s[1] - r.ref[1] + 4) ** 2) / 2,
    ),
    "aot": (2, {"beta": 0.1}, lambda r: -mp.log(sigmoid(0.1 * r.transported))),
    "infonca": (
        5,
        {"beta": 0.1, "temperature": 0.5},
        lambda r: -mp.fdot(exact_shares(r, 0.5), map(mp.log, softmax(utilities(r, 0.1)))),
    ),
    "nca": (
        5,
        {"beta": 0.1, "temperature": 0.5},
        lambda r: sum(
            -p * mp.log(sigmoid(u)) - mp.log(sigmoid(-u)) / 5
            for p, u in zip(exact_shares(r, 0.5), utilities(r, 0.1), strict=True)
        ),
    ),
    "dpo_pl": (5, {"beta": 0.1}, lambda r: exact_pl(r, 0.1)),
    "dpo_pl mean": (5, {"beta": 0.1, "reduction": "mean"}, lambda r: exact_pl(r, 0.1) / 5),
    "rrhf": (5, {"alpha": 0.5}, lambda r: exact_rrhf(r, 0.5)),
    "rrhf authors": (
        5,
        {"alpha": 0.5, "ranking": "mean", "supervised": "first"},
        lambda r: exact_rrhf(r, 0) / 5 - r.s[0] / r.n[0] / 2,
    ),
    "lire": (
        5,
        {"temperature": 2.0},
        lambda r: -mp.fdot(softmax([v / 2 for v in r.s]), r.rewards),
    ),
    "lire softmax": (
        5,
        {"temperature": 2.0, "reward_transform": "softmax"},
        lambda r: -mp.fdot(softmax([v / 2 for v in r.s]), softmax(r.rewards)),
    ),
    "lire authors": (
        5,
        {"temperature": 2.0, "reward_transform": "softmax", "reduction": "mean"},
        lambda r: -mp.fdot(softmax([v / 2 for v in r.s]), softmax(r.rewards)) / 5,
    ),
    "sft": (3, {}, lambda r: -r.s[0] / r.n[0]),
    "sft sum": (3, {"reduction": "sum"}, lambda r: -r.s[0]),
}
# mpmath turns the float 0.1 into the same binary number that torch uses, so both sides see one beta


def call(name, scores):
    return losses.BASES[name.split()[0]].loss(scores, **EXACT[name][1])


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("scale", [2.0, 30.0, 1e4])
def test_equals_the_formula(name, scale):
    columns, _, formula = EXACT[name]
    scores = toy(6, columns, seed=3, scale=scale)
    found = call(name, scores)
    assert found.shape == (6,)
    expected = torch.tensor([float(formula(Row(scores, i))) for i in range(6)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EXACT)
def test_gradients(name):
    columns = EXACT[name][0]
    scores = toy(3, columns, seed=5, scale=8.0)

    def loss(logps):
        return call(name, scores._replace(logps=logps))

    assert torch.autograd.gradcheck(loss, scores.logps.requires_grad_())


DEFAULTS = {  # of the papers, in the docstrings
    "exo": {"epsilon": 1e-3},
    "cpo": {"lam": 1.0, "reduction": "sum"},
    "orpo": {"lam": 0.1},
    "kto": {"weight_chosen": 1.0, "weight_rejected": 1.0},
    "kto_pair": {"detach_kl": False},
    "ropo": {"alpha": 14.0},
    "dpop": {"lam": 50.0},
    "slic": {"reduction": "sum"},
    "dpo_pl": {"reduction": "sum"},
    "rrhf": {"alpha": 1.0, "reduction": "mean", "supervised": "best", "ranking": "sum"},
    "lire": {"reward_transform": "none", "reduction": "sum"},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_not_said_is_as_in_the_paper(name):
    columns, keywords, _ = EXACT[name]
    base, scores = losses.BASES[name], toy(6, columns, seed=1)
    required = {word: keywords[word] for word in base.required}
    assert torch.equal(
        base.loss(scores, **required), base.loss(scores, **required, **DEFAULTS[name])
    )


@pytest.mark.parametrize("name", [name for name in EXACT if " " not in name])
def test_the_table_says_what_a_loss_needs(name):
    base = losses.BASES[name]
    fields = {"ref_logps": "needs_reference", "rewards": "needs_rewards", "kl_logps": "needs_kl"}
    for field, need in fields.items():
        scores = toy(6, EXACT[name][0])._replace(**{field: None})
        if getattr(base, need):
            with pytest.raises(ValueError, match=field):
                call(name, scores)
        else:
            assert call(name, scores).isfinite().all()


EXTREMES = {
    "equal": ((-5.0, -5.0), (-5.0, -5.0)),
    "chosen hopeless": ((-1e4, -1e-3), (-1e-3, -1e4)),
    "chosen certain": ((-1e-6, -1e4), (-1e4, -1e-6)),
    "both hopeless": ((-1e4, -1e4), (-1.0, -1.0)),
    "both certain": ((0.0, 0.0), (-1e4, -1e4)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("name", [name for name in EXACT if " " not in name])
def test_finite_at_extremes(name, case, dtype):
    (logps, ref), columns = EXTREMES[case], EXACT[name][0]
    repeat = (columns + 1) // 2
    leaf = torch.tensor([list(logps) * repeat], dtype=dtype)[:, :columns].requires_grad_()
    ref_logps = torch.tensor([list(ref) * repeat], dtype=dtype)[:, :columns]
    rewards = torch.tensor([[1.0, 1.0, -1e3, 1e3, 0.0][:columns]], dtype=dtype)
    kl = torch.tensor([-1e4], dtype=dtype)
    scores = Scores(
        leaf, ref_logps, torch.ones(1, columns, dtype=torch.long), rewards, None, kl, -kl
    )
    value = call(name, scores)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("count", range(2, 17))
@pytest.mark.parametrize("name", LISTS)
def test_padding_changes_nothing(name, count):
    scores = toy(4, count, seed=count)
    extra = torch.full(
        (4, 3), math.nan, dtype=torch.float64
    )  # whatever lies in padding must not reach the loss
    logps = torch.cat([scores.logps, extra], dim=1).requires_grad_()
    padded = scores._replace(
        logps=logps,
        ref_logps=torch.cat([scores.ref_logps, extra], dim=1),
        lengths=torch.cat([scores.lengths, torch.zeros(4, 3, dtype=torch.long)], dim=1),
        rewards=torch.cat([scores.rewards, extra], dim=1),
        mask=torch.arange(count + 3).expand(4, -1) < count,
    )
    value = call(name, padded)
    torch.testing.assert_close(value, call(name, scores), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), logps)
    assert torch.isfinite(gradient).all()
    assert (gradient[:, count:] == 0).all()


SCORES = st.builds(
    toy,
    batch=st.integers(1, 6),
    count=st.integers(2, 6),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 30.0, 1e3]),
)
PAIR_SCORES = st.builds(toy, batch=st.integers(1, 6), count=st.just(2), seed=st.integers(0, 10**6))
quick = settings(max_examples=25, deadline=None)


@quick
@given(PAIR_SCORES, st.floats(0.01, 5.0))
def test_plackett_luce_of_two_is_dpo(scores, beta):
    best_first = scores._replace(rewards=torch.tensor([[1.0, 0.0]]).expand(len(scores.logps), 2))
    torch.testing.assert_close(
        losses.dpo_pl(best_first, beta=beta), losses.dpo(scores, beta=beta), rtol=1e-12, atol=1e-12
    )


@quick
@given(PAIR_SCORES, st.floats(-50, 50))
def test_a_shift_of_policy_and_reference_changes_nothing(scores, shift):
    moved = scores._replace(logps=scores.logps + shift, ref_logps=scores.ref_logps + shift)
    names = ("dpo", "cdpo", "rdpo", "r_dpo_length", "ipo", "ipo mean", "exo", "ropo", "dpo_pro")
    for name in (*names, "chi_po", "hinge", "sppo", "dpop", "aot"):
        torch.testing.assert_close(call(name, moved), call(name, scores), rtol=1e-9, atol=1e-9)


@quick
@given(SCORES, st.floats(-50, 50))
def test_lists_ignore_a_shift_of_all_responses(scores, shift):
    moved = scores._replace(logps=scores.logps + shift)
    for name in ("dpo_pl", "lire", "infonca"):
        torch.testing.assert_close(call(name, moved), call(name, scores), rtol=1e-9, atol=1e-9)


@quick
@given(SCORES, st.integers(0, 1000))
def test_lists_ignore_the_order_of_columns_and_rows(scores, seed):
    g = torch.Generator().manual_seed(seed)
    columns = torch.randperm(scores.logps.shape[1], generator=g)
    rows = torch.randperm(scores.logps.shape[0], generator=g)
    moved = Scores(*(x[rows][:, columns] for x in scores[:4]))
    for name in LISTS:
        torch.testing.assert_close(
            call(name, moved), call(name, scores)[rows], rtol=1e-10, atol=1e-10
        )


@quick
@given(PAIR_SCORES, st.floats(0.01, 2.0))
def test_smoothing_of_zero_is_dpo(scores, beta):
    plain = losses.dpo(scores, beta=beta)
    for name in (losses.cdpo, losses.rdpo):
        torch.testing.assert_close(name(scores, beta=beta, epsilon=0.0), plain, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        losses.r_dpo_length(scores, beta=beta, alpha=0.0), plain, rtol=0, atol=1e-14
    )


@quick
@given(PAIR_SCORES, st.floats(0.05, 1.0), st.floats(0.01, 0.45))
def test_rdpo_is_unbiased_under_flips(scores, beta, epsilon):
    swapped = Scores(*(x.flip(1) for x in scores[:4]))
    mean = (1 - epsilon) * losses.rdpo(scores, beta=beta, epsilon=epsilon)
    mean = mean + epsilon * losses.rdpo(swapped, beta=beta, epsilon=epsilon)
    torch.testing.assert_close(mean, losses.dpo(scores, beta=beta), rtol=1e-9, atol=1e-9)
    simpo = {"beta": 20 * beta, "gamma0": 1.5}
    debiased = functools.partial(
        losses.BASES["rsimpo"].loss, epsilon=epsilon, debiased=True, **simpo
    )
    mean = (1 - epsilon) * debiased(scores) + epsilon * debiased(swapped)
    torch.testing.assert_close(mean, losses.simpo(scores, **simpo), rtol=1e-9, atol=1e-9)


def test_no_doubt_and_no_ball_are_dpo():
    """DPO-PRO of hard labels, of the right and the wrong one, and of a ball of size 0."""
    scores, dpo_pro = toy(), losses.BASES["dpo_pro"].loss
    for sign, columns in ((1, [0, 1]), (-1, [1, 0])):
        sure = torch.tensor([[sign * 1e3, 0.0]], dtype=torch.float64).expand(5, 2)
        labelled = Scores(*(x if x is None or x.dim() == 1 else x[:, columns] for x in scores))
        found = dpo_pro(scores._replace(rewards=sure), beta=0.1, rho=0.1)
        torch.testing.assert_close(found, losses.dpo(labelled, beta=0.1))
    evens = scores._replace(rewards=torch.zeros(5, 2, dtype=torch.float64))
    smoothed = losses.cdpo(scores, beta=0.1, epsilon=0.5)
    torch.testing.assert_close(dpo_pro(evens, beta=0.1, rho=0.0), smoothed)


def test_chi_po_clips_a_pair_of_large_ratios_by_their_exponentials():
    """e^30 against e^28 is far outside the clip, though the ratios differ by 2 alone."""
    logps = torch.tensor([[-10.0, -12.0]], requires_grad=True)
    scores = Scores(logps, torch.full((1, 2), -40.0), torch.ones(1, 2))
    found = losses.BASES["chi_po"].loss(scores, beta=0.05, reward_bound=2.0)
    (gradient,) = torch.autograd.grad(found.sum(), logps)
    assert found.item() == pytest.approx(math.log1p(math.exp(-4)))
    assert not gradient.any()


def test_ropo_weighs_a_pair_by_its_slope():
    """Largest where the policy is unsure: a pair that it finds clearly flipped moves little."""
    m = torch.linspace(-30, 30, 601, dtype=torch.float64, requires_grad=True)
    scores = Scores(torch.stack([m, m * 0], 1), torch.zeros(601, 2).double(), torch.ones(601, 2))
    loss = losses.BASES["ropo"].loss(scores, beta=1.0)
    (slope,) = torch.autograd.grad(loss.sum(), m)
    p = torch.sigmoid(m.detach())
    torch.testing.assert_close(-slope, 56 / 225 * (1 - p) * (1 + 14 * p))
    assert float(-slope[0]) == pytest.approx(56 / 225) and float(-slope.min()) > 0.98


def test_dpo_starts_at_ln_2():
    scores = toy()
    start = scores._replace(ref_logps=scores.logps)
    torch.testing.assert_close(
        losses.dpo(start, beta=0.1), torch.full((5,), math.log(2), dtype=torch.float64)
    )


def test_margin_is_a_constant_subtracted_from_the_gap():
    scores = toy()
    margin = torch.linspace(-1, 3, 5, dtype=torch.float64, requires_grad=True)
    gap = losses.dpo_gap(scores, beta=0.1)
    expected = torch.log1p(torch.exp(margin.detach() - gap))
    torch.testing.assert_close(losses.dpo(scores, beta=0.1, margin=margin), expected)
    assert not losses.dpo(scores, beta=0.1, margin=margin).requires_grad
    same = torch.full((5,), 0.8, dtype=torch.float64)
    torch.testing.assert_close(
        losses.simpo(scores, beta=2.0, margin=same), losses.simpo(scores, beta=2.0, gamma0=0.8)
    )
    # gamma-PO Eq. 13: the margin stands on the side of each label
    cdpo = losses.cdpo(scores, beta=0.1, epsilon=0.25, margin=margin)
    torch.testing.assert_close(
        cdpo, 0.75 * expected + 0.25 * torch.log1p(torch.exp(margin.detach() + gap))
    )


def test_equal_rewards_keep_column_order():
    scores = toy(2, 3)._replace(rewards=torch.zeros(2, 3, dtype=torch.float64))
    falling = scores._replace(rewards=torch.tensor([[2.0, 1.0, 0.0]] * 2, dtype=torch.float64))
    torch.testing.assert_close(losses.dpo_pl(scores, beta=0.1), losses.dpo_pl(falling, beta=0.1))
    mean = losses.mean_logps(scores)[:, 0]
    torch.testing.assert_close(
        losses.rrhf(scores, alpha=1.0), -mean
    )  # no pair differs; the first column is the best


def test_kto_lets_no_gradient_through_its_kl():
    scores = toy()
    kl = scores.kl_logps.clone().requires_grad_()
    leaf = scores.logps.clone().requires_grad_()
    losses.kto(scores._replace(logps=leaf, kl_logps=kl), beta=0.1).sum().backward()
    assert leaf.grad is not None
    assert kl.grad is None
    assert not torch.allclose(
        *(_gradient(losses.kto_pair, scores, detach_kl=flag) for flag in (True, False))
    )


def test_kto_clamps_a_negative_kl_at_zero():
    scores = toy()
    below = scores._replace(kl_logps=scores.kl_ref_logps, kl_ref_logps=scores.kl_logps)
    zero = scores._replace(kl_logps=scores.kl_logps, kl_ref_logps=scores.kl_logps)
    assert torch.equal(losses.kto(below, beta=0.1), losses.kto(zero, beta=0.1))
    assert not torch.allclose(losses.kto(scores, beta=0.1), losses.kto(zero, beta=0.1))


def test_softplus_does_not_turn_linear():
    x = torch.tensor([19.0, 20.5, 25.0], dtype=torch.float64)
    torch.testing.assert_close(
        losses.softplus(x) - x, torch.log1p(torch.exp(-x)), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_r_dpo_finds_the_optimum_of_a_reward_less_alpha_tokens(alpha):
    """A table of eight replies, every pair with its Bradley-Terry preference, to convergence.

    The optimum of E[r - alpha n] - beta KL is p_ref exp((r - alpha n) / beta).
    """
    beta, g = 0.5, torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 9, 14, 20, 26, 33, 41, 50])
    reward, ref = (torch.randn(8, generator=g, dtype=torch.float64) for _ in range(2))
    ref = ref.log_softmax(0)
    left, right = torch.triu_indices(8, 8, offset=1)
    columns = torch.stack([torch.cat([left, right]), torch.cat([right, left])], dim=1)
    shares = torch.sigmoid(reward[columns[:, 0]] - reward[columns[:, 1]])

    def mean_length(printed):
        logits = ref.clone().requires_grad_()
        lbfgs = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, lr=0.5)

        def closure():
            lbfgs.zero_grad()
            scores = Scores(logits.log_softmax(0)[columns], ref[columns], lengths[columns])
            found = losses.r_dpo_length(scores, beta=beta, alpha=alpha, printed=printed)
            value = (shares * found).sum()
            value.backward()
            return value

        lbfgs.step(closure)
        return float((logits.detach().softmax(0) * lengths).sum())

    def optimum(price):
        return float(((ref + (reward - price * lengths) / beta).softmax(0) * lengths).sum())

    assert mean_length(printed=False) == pytest.approx(optimum(alpha), rel=1e-5)
    assert mean_length(printed=True) == pytest.approx(optimum(-alpha), rel=1e-5)
    assert (optimum(-alpha) > optimum(alpha) + 1) == (alpha > 0)


def _gradient(loss, scores, **keywords):
    leaf = scores.logps.clone().requires_grad_()
    return torch.autograd.grad(loss(scores._replace(logps=leaf), beta=0.1, **keywords).sum(), leaf)[
        0
    ]


# --- beta-DPO ---


def test_beta_dpo_follows_its_recursion():
    state, mean = BetaState(), 0.0
    for step in range(4):
        scores = toy(8, seed=step)
        gaps = [float(0.1 * Row(scores, i).d) for i in range(8)]
        mean = 0.9 * mean + 0.1 * sum(gaps) / 8
        beta_t = max(1e-3, 0.1 * (1 + 0.5 * (sum(gaps) / 8 - mean)))
        found = losses.beta_dpo(scores, beta=0.1, alpha=0.5, state=state)
        torch.testing.assert_close(found, losses.dpo(scores, beta=beta_t), rtol=1e-9, atol=1e-9)
        assert state.mean == pytest.approx(mean, rel=1e-12)


def test_beta_dpo_clamps_beta_and_detaches_it():
    scores = toy(4, seed=2)
    scores = scores._replace(logps=scores.logps + torch.tensor([-1e3, 0.0]))  # mean M far below M0
    found = losses.beta_dpo(scores, beta=0.1, alpha=5.0, state=BetaState())
    torch.testing.assert_close(found, losses.dpo(scores, beta=1e-3), rtol=1e-9, atol=1e-9)
    scores, state = toy(4, seed=2), BetaState()
    leaf = scores.logps.clone().requires_grad_()
    losses.beta_dpo(scores._replace(logps=leaf), beta=0.1, alpha=0.5, state=state).sum().backward()
    beta_t = 0.1 * (1 + 0.5 * float(losses.dpo_gap(scores, beta=0.1).mean() - state.mean))
    other = scores.logps.clone().requires_grad_()
    losses.dpo(scores._replace(logps=other), beta=beta_t).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)


def test_beta_dpo_evaluation_reads_only_and_state_returns():
    state = BetaState()
    losses.beta_dpo(toy(seed=1), beta=0.1, alpha=0.5, state=state)
    before = state.state_dict()
    losses.beta_dpo(toy(seed=2), beta=0.1, alpha=0.5, state=state, keep=0.5, training=False)
    assert state.state_dict() == before
    other = BetaState()
    other.load_state_dict(before)
    assert other.state_dict() == before
    with pytest.raises(ValueError, match="'std' is missing"):
        other.load_state_dict({"momentum": 0.9, "mean": 0.0})


def test_a_single_gap_moves_the_mean_and_not_the_deviation():
    state = BetaState()
    state.update(torch.tensor([2.0]))
    assert (state.mean, state.std) == (pytest.approx(0.2), 1.0)
    state.update(torch.tensor([1.0, 3.0]))
    assert state.std == pytest.approx(0.9 + 0.1 * math.sqrt(2))


def test_beta_dpo_filter_keeps_its_share_and_prefers_typical_gaps():
    scores = toy(10, seed=4)
    outlier = scores.logps.clone()
    outlier[0] += torch.tensor([4e3, -4e3])  # hundreds of deviations away: its weight underflows
    scores = scores._replace(logps=outlier)
    state = BetaState()
    counts = torch.zeros(10)
    g = torch.Generator().manual_seed(1)
    for _ in range(50):
        state.load_state_dict({"momentum": 0.9, "mean": 0.0, "std": 1.0})
        found = losses.beta_dpo(scores, beta=0.1, alpha=0.0, state=state, keep=0.8, generator=g)
        kept = found != 0
        torch.testing.assert_close(found[kept] * 0.8, losses.dpo(scores, beta=0.1)[kept])
        counts += kept
    assert counts.sum() == 50 * 8
    assert counts[0] < counts[1:].min()


# --- moving means ---


def test_beta_simpo_follows_its_recursion():
    """M0 is of the steps before, and the constant margin lies inside the scaled gap."""
    state, mean = BetaState(), 0.0
    for step in range(4):
        scores = toy(8, seed=step)
        gaps = losses.simpo_gap(scores, beta=2.0)
        scale = max(1e-3 / 2, 1 + 0.5 * (float(gaps.mean()) - mean))
        found = losses.BASES["beta_simpo"].loss(
            scores, beta=2.0, gamma_beta_ratio=0.4, alpha=0.5, keep=1.0, state=state
        )
        torch.testing.assert_close(found, losses.softplus(-scale * (gaps - 0.8)))
        mean = 0.9 * mean + 0.1 * float(gaps.mean())
        assert state.mean == pytest.approx(mean, rel=1e-12)


def test_beta_simpo_averages_a_share_and_keeps_every_sample_in_the_loss():
    scores, g = toy(10, seed=4, scale=2.0), torch.Generator().manual_seed(1)
    settings = {"beta": 2.0, "gamma0": 0.8, "alpha": 0.5, "generator": g}
    values = [
        losses.BASES["beta_simpo"].loss(scores, state=BetaState(), **settings) for _ in range(9)
    ]
    gaps = losses.simpo_gap(scores, beta=2.0)
    found = {round(float(v[0]), 9) for v in values}
    assert all((v > 0).all() for v in values) and len(found) > 1
    means = {float(gaps[list(kept)].mean()) for kept in itertools.combinations(range(10), 8)}
    scales = [max(1e-3 / 2, 1 + 0.5 * mean) for mean in means]
    assert found <= {round(float(losses.softplus(-s * (gaps[0] - 0.8))), 9) for s in scales}


def alpha_dpo_by_hand(history, scores):
    """As Adam corrects moments: 0.9 and 0.1 from 0, over 1 - 0.9^t; NumPy, no state of ours."""
    mean = deviation = 0.0
    for gaps in history:
        mean = 0.9 * mean + 0.1 * np.mean(gaps)
        deviation = 0.9 * deviation + 0.1 * np.std(gaps, ddof=1)
    rest = 1 - 0.9 ** len(history)
    z = (history[-1] - mean / rest) / (deviation / rest + 1e-4)
    s, n = scores.logps.numpy(), scores.lengths.numpy()
    logits = 2.5 * (s[:, 0] / n[:, 0] - s[:, 1] / n[:, 1] - 0.6 - 0.2 * z)
    return np.log1p(np.exp(-logits))


def test_alpha_dpo_follows_its_recursion():
    state, history = AlphaState(), []
    for step in range(4):
        scores = toy(8, seed=step)
        ratios = ((scores.logps - scores.ref_logps) / scores.lengths).numpy()
        history.append(ratios[:, 0] - ratios[:, 1])
        leaf = scores._replace(logps=scores.logps.clone().requires_grad_())
        found = losses.BASES["alpha_dpo"].loss(
            leaf, beta=2.5, gamma_beta_ratio=0.6, alpha=0.2, state=state
        )
        expected = torch.from_numpy(alpha_dpo_by_hand(history, scores))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        (gradient,) = torch.autograd.grad(found.sum(), leaf.logps)
        slope = -2.5 * (1 - torch.exp(-expected)) / scores.lengths[:, 0]
        torch.testing.assert_close(gradient[:, 0], slope)  # none through z


def test_alpha_dpo_before_its_first_step_is_simpo():
    """So is a policy that is its own reference: a deviation of 0 is no division."""
    scores, state, settings = toy(), AlphaState(), {"beta": 2.5, "gamma0": 1.0}
    simpo, alpha_dpo = losses.simpo(scores, **settings), losses.BASES["alpha_dpo"].loss
    single = Scores(*(None if x is None else x[:1] for x in scores))
    alpha_dpo(single, alpha=0.2, state=state, **settings)
    assert (state.steps, state.mean) == (0, 0)
    assert torch.equal(alpha_dpo(scores, alpha=0.2, state=state, training=False, **settings), simpo)
    start = scores._replace(ref_logps=scores.logps)
    assert torch.equal(alpha_dpo(start, alpha=0.2, state=state, **settings), simpo)
    assert (state.steps, state.std) == (1, 0)


def test_re_po_follows_its_recursion():
    """The posterior by Bayes, eta by its moving mean after it, the slope sigmoid(m) - w."""
    state, eta = EtaState(), 0.9
    for step in range(4):
        scores = toy(8, seed=step)
        p = [float(sigmoid(0.3 * Row(scores, i).d)) for i in range(8)]
        w = [x * eta / (x * eta + (1 - x) * (1 - eta)) for x in p]
        values = [-a * math.log(x) - (1 - a) * math.log(1 - x) for a, x in zip(w, p, strict=True)]
        leaf = scores._replace(logps=scores.logps.clone().requires_grad_())
        found = losses.BASES["re_po"].loss(leaf, beta=0.3, state=state)
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(found.sum(), leaf.logps)
        slope = 0.3 * (torch.tensor(p) - torch.tensor(w))
        torch.testing.assert_close(gradient[:, 0], slope.double(), rtol=1e-5, atol=1e-7)
        eta = 0.9 * eta + 0.1 * sum(w) / 8
        assert state.eta == pytest.approx(eta, rel=1e-12)
    losses.BASES["re_po"].loss(scores, beta=0.3, state=state, training=False)
    assert state.eta == pytest.approx(eta, rel=1e-12)


def test_re_po_finds_the_share_of_right_labels():
    """A calibrated policy, 25 % of labels turned: eta comes from 0.9 to 0.75."""
    g, state = torch.Generator().manual_seed(0), EtaState(momentum=0.0)
    for _ in range(60):
        m = 2 * torch.randn(4000, generator=g, dtype=torch.float64)
        right = torch.rand(4000, generator=g) < torch.sigmoid(m)
        turned = torch.rand(4000, generator=g) < 0.25
        gap = torch.where(right != turned, m, -m)
        logps = torch.stack([gap, gap * 0], dim=1)
        scores = Scores(logps, torch.zeros_like(logps), torch.ones_like(logps))
        losses.BASES["re_po"].loss(scores, beta=1.0, state=state)
    assert state.eta == pytest.approx(0.75, abs=0.02)


def test_re_po_stays_finite_when_no_label_is_doubted():
    state = EtaState()
    state.load_state_dict({"momentum": 0.9, "eta": 1.0})
    scores = toy(scale=1e4)
    found = losses.BASES["re_po"].loss(scores, beta=1.0, state=state)
    torch.testing.assert_close(found, losses.dpo(scores, beta=1.0))


# --- refusals ---

NAN = toy()._replace(logps=torch.full((5, 2), math.nan, dtype=torch.float64))
BAD = [
    ("dpo", {"beta": -0.1}, toy(), "beta"),
    ("dpo", {"beta": 0.0}, toy(), "beta"),
    ("dpo", {"beta": math.nan}, toy(), "beta"),
    ("dpo", {"beta": 0.1}, NAN, "logps"),
    ("dpo", {"beta": 0.1}, toy()._replace(ref_logps=None), "ref_logps"),
    ("dpo", {"beta": 0.1}, toy()._replace(ref_logps=torch.zeros(5, 3)), "ref_logps"),
    ("dpo", {"beta": 0.1}, toy(5, 1), "logps"),
    ("dpo", {"beta": 0.1}, toy(5, 4), "K = 4"),
    ("dpo", {"beta": 0.1}, toy()._replace(lengths=torch.ones(4, 2)), "lengths"),
    ("dpo", {"beta": 0.1}, toy()._replace(mask=torch.tensor([[True, False]] * 5)), "mask"),
    ("dpo", {"beta": 0.1, "margin": torch.zeros(4)}, toy(), "margin"),
    ("dpo", {"beta": 0.1, "margin": torch.full((5,), math.nan)}, toy(), "margin"),
    ("cdpo", {"beta": 0.1, "epsilon": -0.1}, toy(), "epsilon"),
    ("rdpo", {"beta": 0.1, "epsilon": 0.5}, toy(), "epsilon"),
    ("r_dpo_length", {"beta": 0.1, "alpha": -1.0}, toy(), "alpha"),
    ("r_dpo_length", {"beta": 0.1, "alpha": 0.1, "printed": "yes"}, toy(), "printed"),
    ("rrhf", {"supervised": "last"}, toy(5, 4), "supervised"),
    ("rrhf", {"ranking": "max"}, toy(5, 4), "ranking"),
    ("ipo", {"tau": 0.0}, toy(), "tau"),
    ("ipo", {"tau": 0.1, "reduction": "max"}, toy(), "reduction"),
    ("exo", {"beta": 0.1, "epsilon": 0.0}, toy(), "epsilon"),
    ("simpo", {"beta": 2.0}, toy(), "gamma0, gamma_beta_ratio"),
    (
        "simpo",
        {"beta": 2.0, "gamma0": 1.0, "gamma_beta_ratio": 0.5},
        toy(),
        "gamma0, gamma_beta_ratio",
    ),
    ("simpo", {"beta": 2.0, "gamma0": -1.0}, toy(), "gamma0"),
    ("simpo", {"beta": 2.0, "gamma0": 1.0, "margin": torch.zeros(5)}, toy(), "margin"),
    ("simpo", {"beta": 2.0, "gamma0": 1.0}, toy()._replace(lengths=torch.zeros(5, 2)), "lengths"),
    ("cpo", {"beta": 0.1, "lam": -1.0}, toy(), "lam"),
    ("orpo", {"lam": -1.0}, toy(), "lam"),
    ("kto", {"beta": 0.1}, toy()._replace(kl_logps=None), "kl_logps"),
    ("kto", {"beta": 0.1}, toy()._replace(kl_ref_logps=torch.zeros(3)), "kl_ref_logps"),
    ("beta_dpo", {"beta": 0.1, "alpha": -0.5, "state": BetaState()}, toy(), "alpha"),
    ("beta_dpo", {"beta": 0.1, "alpha": 0.5, "state": BetaState(), "keep": 0.0}, toy(), "keep"),
    ("dpo_pl", {"beta": 0.1}, toy(5, 1), "logps"),
    ("dpo_pl", {"beta": 0.1}, toy(5, 4)._replace(rewards=None), "rewards"),
    ("dpo_pl", {"beta": 0.1}, toy(5, 4)._replace(rewards=torch.full((5, 4), math.inf)), "rewards"),
    ("dpo_pl", {"beta": 0.1}, toy(5, 4)._replace(mask=torch.ones(5, 4)), "mask"),
    ("rrhf", {"alpha": -1.0}, toy(5, 4), "alpha"),
    ("rrhf", {}, toy(5, 1), "logps"),
    ("lire", {"temperature": 0.0}, toy(5, 4), "temperature"),
    ("lire", {"temperature": 1.0}, toy(5, 1), "logps"),
    ("lire", {"temperature": 1.0, "reward_transform": "log"}, toy(5, 4), "reward_transform"),
    ("sft", {}, NAN, "logps"),
    ("rsimpo", {"beta": 2.0, "gamma0": 1.0, "epsilon": 0.5, "debiased": True}, toy(), "epsilon"),
    ("rsimpo", {"beta": 2.0, "gamma0": 1.0, "epsilon": 1.0}, toy(), "epsilon"),
    ("ropo", {"beta": 0.1, "alpha": 2.0}, toy(), "alpha"),
    ("dpo_pro", {"beta": 0.1, "rho": -1.0}, toy(), "rho"),
    ("dpo_pro", {"beta": 0.1, "rho": 0.1}, toy()._replace(rewards=None), "rewards"),
    ("chi_po", {"beta": 0.1, "reward_bound": 0.0}, toy(), "reward_bound"),
    ("dpop", {"beta": 0.1, "lam": -1.0}, toy(), "lam"),
    ("slic", {"beta": 0.1, "lam": -1.0}, toy(), "lam"),
    ("sppo", {"beta": 0.0}, toy(), "beta"),
    ("aot", {"beta": 0.1}, toy()._replace(ref_logps=None), "ref_logps"),
    ("infonca", {"beta": 0.1, "temperature": 0.0}, toy(5, 4), "temperature"),
    ("nca", {"beta": 0.0, "temperature": 1.0}, toy(5, 4), "beta"),
    (
        "alpha_dpo",
        {"beta": 2.0, "gamma0": 1.0, "alpha": -1.0, "state": AlphaState()},
        toy(),
        "alpha",
    ),
    (
        "beta_simpo",
        {"beta": 2.0, "gamma0": 1.0, "alpha": -1.0, "state": BetaState()},
        toy(),
        "alpha",
    ),
]


@pytest.mark.parametrize(("name", "keywords", "scores", "argument"), BAD)
def test_bad_arguments_are_named(name, keywords, scores, argument):
    with pytest.raises(ValueError, match=argument):
        losses.BASES[name].loss(scores, **keywords)


def test_every_loss_is_checked_against_a_formula():
    named = {name.split()[0] for name in EXACT}
    with_state = {name for name, row in losses.BASES.items() if row.state is not None}
    assert set(losses.BASES) - with_state == named
    assert with_state == {"beta_dpo", "beta_simpo", "alpha_dpo", "re_po"}  # their recursions
