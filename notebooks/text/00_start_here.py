# %% [markdown]
# # 00 · Start here: the whole idea in a minute, in a world where the truth is known
#
# **In one line.** In ten worlds with known truth, four ways to train under five
# conditions, what is invalid counted as lost: <!--claim toy_contrasts-->of 25 contrasts with ERM, 3 hold after Holm: dro gains 0.05 [0.02, 0.07] (reward bias 1.5); dora gains 0.10 [0.05, 0.16] (reward bias 1.5); dora+oracle gains 0.08 [0.04, 0.13] (reward bias 1.5)<!--/claim-->.
#
# | reads | writes | time (2 CPU cores) | before | after |
# |---|---|---|---|---|
# | nothing | tables `toy_*` | about 1 minute | | [01](01_mixture_shift.ipynb) |
#
# Words and symbols: [glossary](../docs/glossary.md).
#
# You have preference data: prompts, several responses each, a ranking. Some responses come from people you trust, others
# from models; some rankings come from a reward model with a taste of its own. Two papers ask how to train on it anyway:
#
# - **DoRA** (Zhu et al., NeurIPS 2025): find out which samples resemble the trusted source, and optimise the worst case
#   over those. (*Distribution-aware optimization for Robust Alignment*; nothing to do with low-rank adapters.)
# - **gamma-PO** (Sun et al., ACL Findings 2025): ask clear pairs for a larger margin and ambiguous ones for a smaller.
#
# On real text nobody knows the true answer. So this notebook starts in a **toy world**: a few dozen prompts, a vocabulary
# of a few symbols, responses of four symbols. Every response can be enumerated, so the target distribution, the true
# reward, win rates and divergences are *exact*, and the training code is the very one that trains real models.

# %%
import math

import matplotlib.pyplot as plt
import pandas as pd
import torch

from robustpo_kit import data, losses, mixture, plots, robust, toy, widgets
from robustpo_kit.losses import Scores
from robustpo_kit.notebook import start
from robustpo_kit.records import torch_stream

# %% tags=["parameters"]
profile = "auto"  # auto | smoke | demo | cpu | gpu | paper
seed = 0
overrides = {}  # settings of the profile to change

# %%
nb = start("00_start_here", profile=profile, seed=seed, overrides=overrides)

# %% [markdown]
# In pictures, with what each of them adds to a preference loss in another colour:

# %%
for paper in plots.SCHEMATICS:
    plots.schematic(paper)
    plt.show()

# %% [markdown]
# ## 0. What the data looks like
#
# Before any formula: two rows of the kit's own task, everyday questions with a right and a wrong human answer, and two replies of SmolLM2, a model
# small enough for a laptop. People's words are shown in your own JupyterLab only, the model's are stored.

# %%
rows = mixture.with_synthetic(data.load("how_to"), mixture.load_store("how_to"), 2)
for row in rows:
    if row.row_id in ("piqa-5", "piqa-21"):
        nb.show_row(row)

# %% [markdown]
# Fluent, on topic, and of little use: that is what the golden slot of a contaminated row holds. A ranking that prefers such a reply teaches a
# policy to write it. To notice is easy here, and hard in ten thousand rows.

# %% [markdown]
# ## 1. One loss, checked by hand
#
# DPO scores a pair by how much more the policy likes the chosen response than its reference does:
# $\ell=-\log\sigma(\beta D)$ with $D=(s_w-s_w^\text{ref})-(s_l-s_l^\text{ref})$. At the start policy and reference are
# equal, $D=0$, and the loss is $\log2$.
#
# - $s_w, s_l$: log-probability that the policy gives to the chosen and to the rejected response, summed over its tokens, in nats
# - $s^\text{ref}$: the same under the reference, the policy as it was before training
# - $\beta$: how strongly the reference holds: a gap of $D$ nats counts $\beta D$
# - $\sigma$: the logistic function, $1/(1+e^{-x})$

# %%
# built here for the reader
def dpo(logps, ref_logps, beta):
    r = logps - ref_logps  # [B, 2]: how much each response has gained, column 0 = chosen
    return -torch.nn.functional.logsigmoid(beta * (r[:, 0] - r[:, 1]))  # [B]

# %%
logps = torch.tensor([[-12.0, -9.0]], dtype=torch.float64)
at_start, better = dpo(logps, logps, beta=0.1), dpo(logps + torch.tensor([[2.0, -1.0]]), logps, beta=0.1)
assert math.isclose(at_start.item(), math.log(2))
print(f"at the start {at_start.item():.4f} = log 2; after a step {better.item():.4f}")

# %%
made_up = torch_stream(nb.seed, "made-up scores")
s, s_ref, R = 5 * torch.randn(3, 8, 4, dtype=torch.float64, generator=made_up) - 20  # eight prompts, four responses
pairs = Scores(logps=s[:, :2], ref_logps=s_ref[:, :2], lengths=torch.full((8, 2), 6))
assert torch.allclose(dpo(s[:, :2], s_ref[:, :2], beta=0.1), losses.dpo(pairs, beta=0.1))
print("CHECK the three lines above are the package's DPO: pass")

# %% [markdown]
# ## 2. A world, and what is wrong with its data
#
# One golden source and three synthetic ones, each farther away. In 40 % of the samples the golden slot holds a synthetic
# response that a biased reward likes. One seed of everything takes seconds:

# %%
world, sources, samples, results = toy.study.quickstart(seed)
print(f"{len(world.prompts)} prompts, {len(samples)} samples, {samples['contaminated'].sum()} of them contaminated")
nb.save_table("toy_sources", sources)
nb.save_table("toy_samples", samples)
measures = ["win_rate", "mass", "win_rate_valid", "gold", "proxy", "kl_golden", "kl_reference", "ess"]
nb.save_table("toy_methods", results[["method", *measures]])

# %%
table = nb.read_table("toy_sources")
table[["source", "win_rate", "gold", "confidence", "kl_golden"]].round(2)

# %% [markdown]
# `win_rate` is against golden and exact: a source that is golden wins half. `gold` is the expected true reward, in standard
# deviations over a prompt's responses; `confidence` the probability of golden that the *best possible* classifier gives;
# `kl_golden` the divergence from golden in nats.
#
# ## 3. The calibration factor sees the contamination
#
# $\tilde h(z)$ measures how much a sample looks like the golden source: 1 would be typical of the mixture, less is farther
# from golden. Exact densities give the true one; a small BERT that has seen some hundred responses estimates it.

# %%
table = nb.read_table("toy_samples")
table = table.assign(sample=table["contaminated"].map({True: "contaminated", False: "clean"}))
figure = plots.draw("toy_h", table)
nb.save_figure("toy_h", figure, table)
plt.show()

# %% [markdown]
# Left: clean samples lie higher. Right: the estimate follows the truth, with noise. How much data it takes is measured in
# notebook 02.
#
# ## 4. Four ways to train, judged exactly
#
# The same listwise loss (Plackett-Luce DPO) aggregated in four ways: the plain mean (**ERM**), the worst case (**DRO**), a
# mean weighted by $\tilde h$ (**reweighting**), and both (**DoRA**); the last two also with the *true* $\tilde h$.
#
# $$\ell_\text{PL}=\sum_{k=1}^{K}\Big[\log\sum_{j\ge k}e^{\beta r_j}-\beta r_k\Big],\qquad
# \mathcal L_\text{DoRA}=\lambda\,\log\frac1B\sum_{i=1}^{B}e^{\tilde h_i\,\ell_i/\lambda}$$
#
# - $r_k=s_k-s_k^\text{ref}$: log-ratio of the response in place $k$, best reward first; $K$: responses a prompt
# - $\ell_i$: loss of sample $i$; $B$: samples of an optimizer step; $\tilde h_i$: how golden sample $i$ looks (section 3)
# - $\lambda$: temperature: small, and the worst samples decide alone; large, and all count alike
#
# Plackett-Luce picks the best of all, then the best of the rest, and so on: each bracket is one pick. Then the step:

# %%
# built here for the reader
def dpo_pl(logps, ref_logps, rewards, beta):
    best_first = rewards.argsort(dim=1, descending=True, stable=True)
    r = (logps - ref_logps).gather(1, best_first)  # [B, K]
    return sum((beta * r[:, k:]).logsumexp(dim=1) - beta * r[:, k] for k in range(r.shape[1]))

# %%
# built here for the reader
def erm(per_sample):
    return per_sample.mean()

def reweight(losses, h):
    return (h * losses).mean()

def dro(losses, lam):
    return lam * ((losses / lam).logsumexp(dim=0) - math.log(len(losses)))

def dora(losses, h, lam):
    return lam * ((h * losses / lam).logsumexp(dim=0) - math.log(len(losses)))

# %%
lists = Scores(logps=s, ref_logps=s_ref, lengths=torch.full((8, 4), 6), rewards=R)
ours, h = dpo_pl(s, s_ref, R, beta=0.1), torch.rand(8, dtype=torch.float64, generator=made_up)
assert torch.allclose(ours, losses.dpo_pl(lists, beta=0.1))
steps = {"erm": erm(ours), "reweight": reweight(ours, h), "dro": dro(ours, 1.0), "dora": dora(ours, h, 1.0)}
for kind, value in steps.items():
    assert torch.isclose(value, robust.aggregate(ours, h, kind=kind, lam=1.0))
print("CHECK Plackett-Luce DPO and the four ways are the package's: pass")

# %% [markdown]
# And trained, each on the same rows in the same order:

# %%
nb.read_table("toy_methods").round(3)

# %% [markdown]
# How to read it. A policy can write anything, also texts that the world does not have. **Such an invalid response counts
# as lost**, and has the least reward of its prompt: `win_rate` and `gold` count it so. `mass` is the probability of a valid response,
# `win_rate_valid` the win rate among those alone. `proxy` is the reward that ranked the data, right or wrong;
# `kl_reference` the divergence from where training began, `ess` how many of the 32 samples of a step carry its weight.
#
# Train it yourself: in JupyterLab the next cell has controls for what is wrong with the data, the method and the world, and trains
# two policies anew at each change, in seconds.

# %%
settings = {"method": "dora", "contamination": 0.4, "flips": 0.0, "seed": seed}
own_world = widgets.train_toy(**settings)
widgets.toy_live(own_world, **settings)

# %% [markdown]
# One seed proves nothing. The committed study repeats this for ten worlds under five conditions, six runs each, paired by
# seed:

# %%
sweep = nb.read_table("toy_sweep", run="reference")
summary = toy.sweep.summarise_outcomes(sweep, ["win_rate", "win_rate_valid", "mass"], by=["condition"])
nb.save_table("toy_summary", summary)
figure = plots.draw("toy_methods", summary)
nb.save_figure("toy_methods", figure, summary)
plt.show()

# %% [markdown]
# Ten worlds, and a sober picture; the intervals drawn are not corrected for their number. <!--claim toy_contrasts-->of 25 contrasts with ERM, 3 hold after Holm: dro gains 0.05 [0.02, 0.07] (reward bias 1.5); dora gains 0.10 [0.05, 0.16] (reward bias 1.5); dora+oracle gains 0.08 [0.04, 0.13] (reward bias 1.5)<!--/claim-->.
# What the same contrasts are among valid responses alone: <!--claim toy_contrasts_valid-->of 25 contrasts with ERM, 2 hold after Holm: dora+oracle loses 0.07 [0.04, 0.11] (contamination 0.2); dora loses 0.08 [0.05, 0.10] (label noise 0.3)<!--/claim-->. So the sign of a
# result can hang on what is done with the mass that leaves the world, and both are shown. `kl_reference` says how far
# each policy went from its start; whether anything is left at equal divergence is not asked here.
#
# ## 5. How much does it hurt? Doses, under the plain mean
#
# Before a method is called robust, there must be harm to mend. ERM in 24 worlds, under ever more contaminated golden slots
# and ever more flipped rankings:

# %%
doses = nb.read_table("toy_dose", run="reference")
outcomes = ["win_rate", "win_rate_valid", "mass"]
knobs = ["contamination", "label_noise"]
parts = []
for knob in knobs:
    others = [name for name in knobs if name != knob]
    part = doses[(doses[others] == 0).all(axis=1)]
    part = part.assign(method=part[knob].map("{:g}".format))  # a dose stands where a method would
    parts.append(toy.sweep.summarise_outcomes(part, outcomes, by=[], baseline="0").assign(knob=knob))
dose_summary = pd.concat(parts, ignore_index=True).assign(dose=lambda table: table["method"].astype(float))
nb.save_table("toy_dose_summary", dose_summary)
figure = plots.draw("toy_dose", dose_summary)
nb.save_figure("toy_dose", figure, dose_summary)
plt.show()

# %%
strongest = dose_summary[dose_summary.groupby(["knob", "outcome"])["dose"].transform("max") == dose_summary["dose"]]
strongest[["knob", "dose", "outcome", "difference", "difference_low", "difference_high", "n"]].round(3)

# %% [markdown]
# The differences are to clean data, paired by world: <!--claim toy_harm-->over 24 worlds, with 80 % contaminated rows ERM loses 0.14 [0.07, 0.20]; with 50 % flipped rankings ERM loses 0.11 [0.07, 0.16]<!--/claim-->. Under
# contamination there is harm that a method could mend; where half of the rankings are turned the labels say nothing, and there is
# nothing to mend them by.

# %% [markdown]
# ## 6. Where the mass goes
#
# Every preference loss asks for a *difference* of log-probabilities, and most of them can have it by making both responses
# less likely. DoRA's losses and their kin on clean data, as a mean and under DRO, ten worlds:

# %%
every_loss = nb.read_table("toy_losses", run="reference")
by_loss = toy.sweep.summarise_outcomes(every_loss, outcomes, by=["loss"])
nb.save_table("toy_losses_summary", by_loss)
order = by_loss[(by_loss["outcome"] == "mass") & (by_loss["method"] == "erm")].sort_values("mean")["loss"].tolist()
by_loss = by_loss.set_index("loss").loc[order].reset_index()
figure = plots.draw("toy_mass", by_loss)
nb.save_figure("toy_mass", figure, by_loss)
plt.show()

# %% [markdown]
# The mean probability of a valid response on held-out prompts goes <!--claim toy_mass-->from 0.97 after SFT to between rdpo 0.64 [0.53, 0.76] and rrhf 0.97 [0.97, 0.98]<!--/claim-->. A loss that also asks for
# the likelihood of the chosen response holds it; one that asks for a difference alone lets it go. A win rate among valid
# responses does not see this, and a win rate over all of them is mostly made of it: look at both.
#
# Notebook 04b asks the same on real text.
#
# **An oddity.** Rank the losses (as a mean) by their win rate among valid responses, and by the mass that they leave valid:

# %%
means = by_loss[by_loss["method"] == "erm"].pivot_table(index="loss", columns="outcome", values="mean")
top = means["win_rate_valid"].idxmax()
rank = int((means["mass"] > means.loc[top, "mass"]).sum()) + 1
print(f"first among valid responses: {top}, at place {rank} of {len(means)} by mass")
print(f"rank correlation of the two orders: {means['win_rate_valid'].corr(means['mass'], method='spearman'):.2f}")

# %% [markdown]
# A correlation near -1 says that one order is the other turned round: looked at among valid responses alone, losses that leave the world look best.
#
# ## 7. What this machine can run
#
# `make series` runs all notebooks on real text on a laptop; `robustpo doctor` says what is installed and what is missing.
#
# | next | question |
# |---|---|
# | [01](01_mixture_shift.ipynb) | what is a mixture shift, and how far is far? |
# | [02](02_classifier_calibration.ipynb) | can the classifier be believed, and what is h~? |
# | [03](03_reward_models.ipynb) | who says what is better, and how often is it right? |
# | [04a](04a_kl_dro.ipynb) | what does KL-DRO do to a batch, and is the formula right? |
# | [04b](04b_train_dora.ipynb) | do ERM, DRO, reweighting and DoRA differ? |
# | [05](05_reward_confidence.ipynb) | do high rewards mean target-like responses? |
# | [06](06_train_gamma_po.ipynb) | do dynamic margins help, and what do they cost? |
# | [07](07_gamma_vs_margin.ipynb) | how does gamma follow the margin? |
# | [08](08_pairwise_robust.ipynb) | does DoRA help losses on pairs? |
# | [09](09_label_noise.ipynb) | what survives flipped labels? |
# | [10](10_ablations.ipynb) | what do lambda, tau and the window change? |
# | [11](11_phase_diagram.ipynb) | where does each robust method win, tie and lose? |
# | [12](12_self_training_and_rso.ipynb) | does DoRA help when the policy writes its own data? |
# | [13](13_benchmarks.ipynb) | what do AlpacaEval 2, Arena-Hard and MT-Bench count, and who judges? |
# | [14](14_your_data.ipynb) | what can a file tell about itself, and what does training on it give? |
# | [15](15_my_dpo_looks_wrong.ipynb) | my DPO looks wrong: which symptom is it, and what mends it? |
# | [99](99_paper_tables.ipynb) | every table and figure of both papers: what is claimed, and what do we find? |

# %%
table = nb.read_table("toy_samples")
assert table.loc[~table["contaminated"], "true_h"].mean() > table.loc[table["contaminated"], "true_h"].mean()
print("CHECK the true h~ is lower on contaminated samples: pass")

# %% [markdown]
# ## Exercises
#
# 1. Change `seed`. Does the order of the four methods stay?
#
# <details><summary>Solution</summary>Often not: the differences of one seed are smaller than the differences between
# worlds. This is why the summary pairs by seed and gives intervals.</details>
#
# 2. Change this and see: in section 1, give `beta=10` to the second `dpo`. What is the loss of the same step, and what is left to learn?
#
# <details><summary>Solution</summary>Nearly nothing: three nats of gap count thirty, the logistic function has saturated, and so has its gradient. A large
# $\beta$ is content after a short way.</details>

# %%
nb.finish({"win_rate_erm": float(results.set_index("method").loc["erm", "win_rate"])})
