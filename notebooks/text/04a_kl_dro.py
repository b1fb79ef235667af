# %% [markdown]
# # 04a · KL-DRO: what does DoRA do to a batch, and is the formula right?
#
# **In one line.** A robust objective is a choice of weights over a batch; the weights below are derivatives taken by autograd, the
# duality and the convergence that the paper claims are checked, and $\lambda=1$ means nothing without the scale of the loss.
#
# | reads | writes | time (2 CPU cores) | before | after |
# |---|---|---|---|---|
# | `h_by_sample` (02) of the committed run | nothing | seconds | [03](03_reward_models.ipynb) | [04b](04b_train_dora.ipynb) |
#
# Words and symbols: [glossary](../docs/glossary.md).
#
# **DoRA** here is *Distribution-aware optimization for Robust Alignment* (Zhu et al., 2025), not the weight-decomposed
# adapter of the same name. It takes any per-sample preference loss $\ell(\theta,z)$ and minimises its worst case over a
# KL ball around the data, with each sample scaled by its calibration factor (Eq. 9):
#
# $$\mathcal L(\theta)=\lambda\,\log\frac1B\sum_{i=1}^{B}\exp\frac{\tilde h(z_i)\,\ell(\theta,z_i)}{\lambda}.$$

# - $z_i$: a sample, a prompt with its responses; $B$: samples of the optimizer step
# - $\ell(\theta,z)$: its loss under the policy with weights $\theta$; $\tilde h(z)$: how golden it looks, between 0 and $K$
# - $\lambda$: temperature: towards 0 the largest $\tilde h\ell$ alone counts, towards infinity all do
# - in section 2: $Q$, $P$ distributions over the samples, $P$ the uniform one; $\rho$: how far $Q$ may be from $P$, in nats

# %%
import numpy as np
import pandas as pd
import torch

from robustpo_kit import objectives, robust, widgets
from robustpo_kit.notebook import start
from robustpo_kit.records import stream, torch_stream

# %% tags=["parameters"]
profile = "auto"  # auto | smoke | demo | cpu | gpu | paper
seed = 0
overrides = {}  # settings of the profile to change

# %%
nb = start("04a_kl_dro", profile=profile, seed=seed, overrides=overrides)

# %% [markdown]
# ## 1. Four ways to aggregate a batch
#
# | name | value | weight of sample $i$ in the gradient |
# |---|---|---|
# | ERM | $\frac1B\sum\ell_i$ | $\frac1B$ |
# | DRO | $\lambda\log\frac1B\sum e^{\ell_i/\lambda}$ | $\mathrm{softmax}(\ell/\lambda)_i$ |
# | reweighting | $\frac1B\sum\tilde h_i\ell_i$ | $\tilde h_i/B$ |
# | DoRA | $\lambda\log\frac1B\sum e^{\tilde h_i\ell_i/\lambda}$ | $\tilde h_i\,\mathrm{softmax}(\tilde h\ell/\lambda)_i$ |
#
# The weights are not taken on trust: below they are derivatives, taken by autograd.

# %%
per_sample = torch.tensor([0.2, 0.7, 1.5, 3.0], dtype=torch.float64, requires_grad=True)
h = torch.tensor([2.0, 1.0, 1.5, 0.3], dtype=torch.float64)
for kind in ("erm", "dro", "reweight", "dora"):
    value = robust.aggregate(per_sample, h, kind=kind, lam=1.0)
    (slope,) = torch.autograd.grad(value, per_sample)
    assert torch.allclose(slope, robust.weights(per_sample, h, kind=kind, lam=1.0))
    print(f"{kind:9s} weights {slope.numpy().round(2)}")

# %% [markdown]
# The last sample has the largest loss. DRO gives it most of the step: if it is a mislabelled row, that is *over-pessimism*.
# DoRA looks at $\tilde h=0.3$, finds that it hardly resembles the target, and turns elsewhere.
#
# Now a batch of eight: $\tilde h$ of eight samples of notebook 02's committed run, some of them contaminated, with made-up losses.
# In JupyterLab the controls move: make $\lambda$ small, then give one sample a large loss and a small $\tilde h$.

# %%
widgets.show("batch_weights")

# %% [markdown]
# **The window matters.** The logarithm stands outside the sum, so the loss of a batch is not the mean of the losses of its
# micro-batches. Gradient accumulation over micro-batches, as most trainers do it, optimises something else; at
# micro-batch 1 nothing robust is left, $\lambda\log e^{\tilde h\ell/\lambda}=\tilde h\ell$. How far are the weights of 32 samples
# off? (Relative error in Euclidean norm, mean over 200 random batches with exponential losses.)

# %%
generator = torch_stream(nb.seed, "losses of made-up batches")
batches = torch.empty(200, 32, dtype=torch.float64).exponential_(generator=generator)
h_batches = 4 * torch.rand(200, 32, dtype=torch.float64, generator=generator)
errors = {}
for micro in (1, 2, 4, 8, 16, 32):
    off = []
    for batch, h_batch in zip(batches, h_batches, strict=True):
        whole = robust.weights(batch, h_batch, kind="dora", lam=nb.cfg.lam)
        pieces = zip(batch.split(micro), h_batch.split(micro), strict=True)
        cut = torch.cat([robust.weights(b, hh, kind="dora", lam=nb.cfg.lam) for b, hh in pieces]) * micro / 32
        off.append((cut - whole).norm() / whole.norm())
    errors[micro] = torch.stack(off).mean().item()
assert errors[32] < 1e-12 and errors[1] > errors[8] > errors[16]
print("weights off by:", {micro: f"{100 * error:.0f} %" for micro, error in errors.items()})

# %% [markdown]
# The kit's trainer is exact over the whole step whatever the micro-batch; `window="micro"` restores the usual behaviour for
# comparison.
#
# **The scale matters, too.** $\lambda=1$ means nothing without the size of the loss. The paper prints sums over the $K$ responses
# (App. C.5), and so does this kit; the authors' script divides by $K$ before the exponential, which makes its $\lambda=1$ our
# $\lambda=K$, and its window is one prompt, at which reweighting by $\tilde h$ is all that is left. How many of 8 samples drive the
# first step, where every Plackett-Luce loss is $\log 4!$? (Mean over 200 draws of 8 from notebook 02's $\tilde h$.)

# %%
known = nb.read_table("h_by_sample", run="reference")
h_known = torch.tensor(known.loc[known["classifier"] == "frozen, per source", "h"].to_numpy())
eights = [h_known[torch.randperm(len(h_known), generator=generator)[:8]] for _ in range(200)]
start_loss = torch.full((8,), np.log(24), dtype=torch.float64)
readings = {
    "sum over K, whole step (this kit)": lambda h8: robust.weights(start_loss, h8, kind="dora", lam=1.0),
    "mean over K, whole step": lambda h8: robust.weights(start_loss / 4, h8, kind="dora", lam=1.0),
    "mean over K, one prompt (parity=authors)": lambda h8: h8 / 8,
}
sizes = {name: np.mean([robust.effective_sample_size(of(h8)) for h8 in eights]) for name, of in readings.items()}
assert list(sizes.values()) == sorted(sizes.values())
wished = objectives.lambda_for_ess(start_loss, 0.7, eights[0], kind="dora")
print(f"lambda at which 70 % of the first 8 drive the step: {wished:.1f}")
pd.Series(sizes, name="samples of 8").round(1).to_frame()

# %% [markdown]
# So a wish is the better knob: `objectives.build("dora(dpo_pl, beta=0.1, ess=0.7)")` solves $\lambda$ on the first step of a run and
# records it, and `dora(dpo_pl(beta=0.1), lam=1, parity=authors)` is what the script does. Over RRHF it takes the
# log-mean-exp over the $K$ ratios of each response, over LIRE it puts $\tilde h$ outside and a softmax over the rewards:
# `docs/differences.md` has the whole table.
#
# ## 2. Is the formula really the worst case? (App. B.2)
#
# The claim is a duality: the supremum of $\mathbb E_Q[\tilde h\ell]$ over all $Q$ with $\mathrm{KL}(Q\|P)\le\rho$ equals
# $\inf_\lambda\{\lambda\log\mathbb E_P e^{\tilde h\ell/\lambda}+\lambda\rho\}$. Left: we walk along the exponential tilts
# $q\propto e^{\tilde h\ell/\lambda}$ until the ball is full. Right: the kit's dual. And no random $q$ in the ball does better.

# %%
rho, values = 0.2, (h * per_sample).detach().numpy()
lam = robust.lambda_from_radius(per_sample.detach(), rho, h)
q = np.exp(values / lam) / np.exp(values / lam).sum()
primal, dual = q @ values, robust.worst_case_risk(per_sample.detach(), rho, h)
random_q = stream(nb.seed, "random q").dirichlet(np.ones(4), size=20000)
inside = random_q[(random_q * np.log(4 * random_q + 1e-300)).sum(axis=1) <= rho]
assert abs(primal - dual) < 1e-6 and (inside @ values).max() <= dual + 1e-9
print(f"worst case over the ball {primal:.4f} = dual {dual:.4f}; best of {len(inside)} random q: {(inside @ values).max():.4f}")

# %% [markdown]
# ## 3. Does it converge? (App. B.3)
#
# For a convex smooth loss, log-mean-exp stays convex and smooth, and gradient descent closes the gap at $O(1/T)$. A
# one-parameter toy: $\ell_i(\theta)=(\theta-a_i)^2$; $T$ times the gap must stay bounded.

# %%
targets, weights = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64), torch.tensor([1.5, 1.0, 0.4], dtype=torch.float64)
theta, gaps = torch.tensor(4.0, dtype=torch.float64, requires_grad=True), []
for _ in range(400):
    risk = robust.aggregate((theta - targets) ** 2, weights, kind="dora", lam=1.0)
    (slope,) = torch.autograd.grad(risk, theta)
    gaps.append(risk.item())
    with torch.no_grad():
        theta -= 0.02 * slope
gaps = np.array(gaps) - gaps[-1]
assert (np.diff(gaps) <= 1e-12).all()
print("T x gap at T = 10, 50, 200:", [f"{t * gaps[t]:.2f}" for t in (10, 50, 200)])

# %% [markdown]
# ## Exercises
#
# 1. Show from the table of weights that $\lambda\to\infty$ turns DoRA into reweighting.
#
# <details><summary>Solution</summary>softmax of a vector that goes to zero is uniform, $1/B$; the weight becomes
# $\tilde h_i/B$. In code: <code>robust.weights(per_sample, h, kind="dora", lam=1e6)</code>.</details>
#
# 2. At which $\lambda$ do 7 of 8 samples drive the first step, and at which 3?
#
# <details><summary>Solution</summary><code>objectives.lambda_for_ess(start_loss, 7 / 8, eights[0], kind="dora")</code>, and 3 / 8. A
# share below what $\tilde h$ alone leaves at $\lambda\to\infty$ is the most that can be asked for.</details>

# %%
nb.finish({"samples_of_8": {name: float(size) for name, size in sizes.items()}, "worst_case": float(dual)})
