# %% [markdown]
# # 02 · Classifier calibration: can the classifier be believed, and what is h~?
#
# **In one line.** A BERT learns the source, not correctness: it
# tells <!--claim classifier_aucs-->golden replies from SmolLM2's: AUC 0.96 (0.96); from wrong human solutions: 0.52 (0.52); in brackets without replies that are cut at the limit<!--/claim-->.
# Its mean $\tilde h$ of samples: <!--claim h_means-->1.11 clean, 0.83 contaminated<!--/claim-->.
#
# | reads | writes | time (2 CPU cores) | before | after |
# |---|---|---|---|---|
# | split `classifier` | tables `classifier_*`, `h_*`, a classifier in `runs/` | about 2 minutes | [01](01_mixture_shift.ipynb) | [03](03_reward_models.ipynb) |
#
# Words and symbols: [glossary](../docs/glossary.md).
#
# DoRA (Sec. 3.1) needs, for each response, the probability $c$ that it comes from the golden distribution. By Bayes' rule
# the density ratio is then (Eq. 5)
#
# $$w_i(y\mid x)=\frac{P_\text{golden}(y\mid x)}{Q_i(y\mid x)}=\gamma_i\,\frac{c_i}{1-c_i},$$
#
# with $\gamma_i$ the class imbalance. Everything rests on $c$ being a *probability*, not merely a score that ranks well.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from robustpo_kit import analysis, calibration, experiments, mixture, plots, widgets
from robustpo_kit.notebook import start
from robustpo_kit.records import stream

# %% tags=["parameters"]
profile = "auto"  # auto | smoke | demo | cpu | gpu | paper
seed = 0
overrides = {}  # settings of the profile to change

# %%
nb = start("02_classifier_calibration", profile=profile, seed=seed, overrides=overrides)
lab = experiments.Lab(nb.cfg, nb.seed)

# %% [markdown]
# ## 1. From probabilities to h~, by hand
#
# Inverting a probability near 1 explodes. The paper "inserts $1/n$ into each denominator"; the reading that gives the
# stated bound $(0,n)$ and matches the authors' code is the density ratio **relative to the mixture**:
#
# $$\tilde h(z)=\frac1n\sum_{i}\frac{1}{\tfrac1n+\beta_i\,\frac{1-c_i}{\gamma_i c_i}}.$$
#
# At a uniform mixture, $\alpha=\beta_i=\tfrac1n$ and $\gamma_i=1$, each term is $n\,c_i$ and $\tilde h$ is simply the sum
# of the probabilities. We check this, and compare the three readings of the formula.
#
# - $c_i$: the classifier's probability that response $i$ is golden; $n$: responses a prompt
# - $\beta_i$: share of source $i$ in the mixture; $\alpha$: golden's, here $\tfrac1n$
# - $\gamma_i$: class imbalance, rows of source $i$ for each golden row when the classifier was trained

# %%
# built here for the reader
def calibration_factor(c, beta, gamma):
    n = c.shape[1]
    return (1 / (1 / n + beta * (1 - c) / (gamma * c))).mean(dim=1)  # [B], between 0 and n

# %%
c = torch.tensor([[0.9, 0.8, 0.1, 0.05], [0.2, 0.9, 0.1, 0.1]], dtype=torch.float64)
n = c.shape[1]
by_hand = calibration_factor(c, beta=1 / n, gamma=1.0)
assert torch.allclose(by_hand, c.sum(dim=1))
assert torch.allclose(by_hand, calibration.calibration_factor(c, alpha=1 / n, beta=1 / n))
uneven = torch.tensor([3.0, 2.0, 1.0, 1.0], dtype=torch.float64)
kits = calibration.calibration_factor(c, alpha=1 / n, beta=0.2, imbalance=uneven)
assert torch.allclose(calibration_factor(c, 0.2, uneven), kits)
print("CHECK h~ at the uniform mixture is the sum of the probabilities: pass")

for kind in ("relative", "stabilised", "raw"):
    values = calibration.calibration_factor(c, alpha=1 / n, beta=1 / n, kind=kind)
    print(f"{kind:10s} clean sample {values[0]:6.2f}   golden slot contaminated {values[1]:6.2f}")

# %% [markdown]
# `raw` is Eq. 6 as printed: one confident response dominates it, and it has no upper bound. The kit uses `relative`.
#
# ## 2. Fit, out of fold
#
# A classifier must never score the rows it was trained on: it would be sure of them all. Each response of the classifier
# split is scored by the fold that left its prompt out; a temperature is then fitted on those scores. Three classifiers:
# fine-tuned BERT with one pooled question, golden or not (what Sec. 4 describes); the same question on frozen embeddings
# (the quick form); and one head for each source on frozen embeddings (Eq. 5 read literally), which the later notebooks use.

# %%
fits = {
    "fine-tuned, shared": lab.classifier("shared", "fine_tuned"),
    "frozen, shared": lab.classifier("shared", "frozen"),
    "frozen, per source": lab.classifier("per_source", "frozen"),
}
cut = lab.cut_replies()
nb.save_table("classifier_metrics", pd.concat([f.metrics(cut=cut).assign(classifier=name) for name, f in fits.items()]))
nb.save_table("classifier_reliability", pd.concat([f.reliability().assign(classifier=name) for name, f in fits.items()]))

# %% [markdown]
# ## 3. h~ on rows the classifier never saw
#
# The policy split, with contamination: in some samples a synthetic reply stands where the golden one should.

# %%
mixed, mask = lab.mixed()
probabilities = {name: fitted.score_set(mixed) for name, fitted in fits.items()}
weighs = fits["frozen, per source"]
by_response = calibration.response_table(mixed, weighs.score_set(mixed, one_prior=True), "c")
nb.save_table("confidence_by_source", by_response[["source", "column", "c"]])
samples = pd.DataFrame({"sample": np.where(mask, "contaminated", "clean")})
samples = samples.assign(**{name: lab.h(values) for name, values in probabilities.items()})
nb.save_table("h_by_sample", samples.melt(id_vars="sample", var_name="classifier", value_name="h"))

# %% [markdown]
# **Which slot?** $\tilde h$ takes the four replies together. If only the slot that *claims* to be golden is in doubt, Def. 2.1
# gives another weight. With a share $r$ of contaminated slots and $R=P_\text{golden}/Q$ at the reply in that slot,
#
# $$W=\frac{1}{(1-r)+r/R},$$
#
# since every clean slot cancels. $r$ is not the classifier's prior: it is estimated on these very rows (Saerens et al., 2002).
# Below: which of these weights finds the contaminated rows? SmolLM2's replies that the token limit cut may be known by their
# length, so every AUC is given again without rows whose golden slot holds one. The later notebooks take $\gamma_i=1$, though a
# head saw up to three times as many replies of others as golden ones; `h~ relative, gamma_i` has Eq. 6's.

# %%
# built here for the reader
def slot_weights(R, rounds=5000):
    r = 0.5
    for _ in range(rounds):  # expectation maximisation: who is contaminated, given r; then r again
        r = np.mean(r / ((1 - r) * R + r))
    return 1 / ((1 - r) + r / R), r

# %%
drawn = stream(nb.seed, "made-up ratios")
R = np.exp(np.where(drawn.random(400) < 0.3, -1.5, 1.5) + drawn.normal(0, 1, 400))
assert np.allclose(slot_weights(R)[0], calibration.slot_weights(R).weights, atol=1e-6)
print("CHECK the slot weight above is the package's: pass")

# %%
c_h, share = torch.as_tensor(probabilities["frozen, per source"]), 1 / n
columns = [weighs.imbalance[source] for source in mixed[0].sources[1:]]
gamma = [sum(weighs.imbalance.values()), *columns]  # the golden column's head is against all others
print("gamma_i of the columns:", np.round(gamma, 2))
weights = {f"h~ {kind}": calibration.calibration_factor(c_h, alpha=share, beta=share, kind=kind) for kind in ("relative", "stabilised", "raw")}
weights["h~ relative, gamma_i"] = calibration.calibration_factor(c_h, alpha=share, beta=share, imbalance=gamma)
weights["c of the golden slot"] = c_h[:, 0]
slot = calibration.slot_weights(weighs.slot_ratios(mixed, mixture.SYNTHETIC_SOURCE))
weights["slot weight"] = slot.weights
cut_slot = [(row.row_id, row.golden) in cut for row in mixed]
groups = [row.group for row in mixed]
found = calibration.detectors(~mask, weights, groups, cut=cut_slot, draws=nb.cfg.bootstrap, seed=nb.seed)
nb.save_table("slot_detectors", found.assign(rate=slot.rate, true_rate=mask.mean()))

# %% [markdown]
# ## 4. Can it be believed?

# %%
nb.read_table("classifier_metrics").round(3)

# %%
table = nb.read_table("classifier_reliability")
figure = plots.draw("reliability", table)
nb.save_figure("reliability", figure, table)
plt.show()

# %% [markdown]
# On the diagonal, "0.7" means right in seven of ten. A curve flatter than the diagonal is over-confident, a steeper one too
# timid; temperature and isotonic regression pull it back. ECE, Brier score and NLL in the table say the same in numbers.
# Two things to see: golden against *the rest* tops out near one half, because the rest holds the wrong human solutions,
# which look golden; and which calibration helps is measured, not assumed: the one of least NLL on held-out rows is marked
# `used`, and its $c$ feeds $\tilde h$. `auc_whole` leaves out replies that the token limit cut. NLL before, after temperature and isotonic
# regression: <!--claim classifier_maps-->fine-tuned, shared (rest) 0.455, 0.447, 0.439; frozen, shared (rest) 0.462, 0.457, 0.462; frozen, per source (human_wrong) 0.748, 0.693, 0.699; frozen, per source (smollm2) 0.244, 0.233, 0.254<!--/claim-->.

# %% [markdown]
# The same of the committed run, to move in JupyterLab: a temperature above 1 pulls every $c$ towards one half, below 1 away from it.
# What becomes of the calibration error, and of the distance between the two kinds of samples in $\tilde h$?

# %%
widgets.show("reliability")

# %% [markdown]
# **An oddity.** A head that cannot tell two sources apart should say one half of every reply, at an NLL of $\log 2$. What it says:

# %%
blind = nb.read_table("classifier_metrics").query("head == 'human_wrong'").set_index("stage")["nll"]
print(f"right against wrong human solution: NLL {blind['before']:.3f} before, {blind['temperature']:.3f} after a temperature; log 2 = {np.log(2):.3f}")
print("before calibration it is more sure than a coin would be, and no righter:", bool(blind["before"] > np.log(2)))

# %%
table = nb.read_table("confidence_by_source")
figure = plots.draw("confidence_by_source", table)
nb.save_figure("confidence_by_source", figure, table)
plt.show()
table.groupby("source", sort=False)["c"].describe()[["count", "mean", "50%"]].round(2)

# %% [markdown]
# The two human columns look alike to the classifier: it learned **source**, not correctness. Synthetic replies get almost
# no confidence.

# %%
table = nb.read_table("h_by_sample")
figure = plots.draw("h_by_sample", table)
nb.save_figure("h_by_sample", figure, table)
plt.show()
table.groupby(["classifier", "sample"], sort=False)["h"].describe()[["count", "mean", "std"]].round(2)

# %% [markdown]
# What it shows, and what it does not. A contaminated sample lost its golden reply, so its $\tilde h$ is lower by about that
# reply's $c$ less the contaminant's. The later notebooks use the classifier on the right: its means
# are <!--claim h_means-->1.11 clean, 0.83 contaminated<!--/claim-->. But $\tilde h$ is a mean over all four responses: it does not know *which slot* claims to be golden. The
# wrong human solution keeps its share in both kinds of sample, and the violins overlap as far as $c$ is uncertain.

# %% [markdown]
# The AUC of each weight as a detector of the rows that are not contaminated, and the share of contamination that the slot
# weight found (`rate`) beside the true one:

# %%
table = nb.read_table("slot_detectors")
figure = plots.draw("slot_detectors", table)
nb.save_figure("slot_detectors", figure, table)
plt.show()
table.round(2)

# %% [markdown]
# In the committed run: <!--claim detectors-->of all rows (22 contaminated of 73) h~ relative 0.80 [0.64, 0.93], c of the golden slot 0.94 [0.86, 0.99]; without cut replies (3 contaminated of 54) h~ relative 0.81 [0.37, 1.00], c of the golden slot 0.78 [0.35, 1.00]<!--/claim-->. Where the rows that the limit cut are left out, too few contaminated ones
# remain to say which weight is the better detector; length may carry the rest.
#
# ## 5. Against known truth
#
# On real text the true $\tilde h$ is unknown. In the toy world every density is known exactly: the rank correlation of
# estimated and true $\tilde h$ grows with the classifier's data.

# %%
studies = nb.read_table("toy_h_rank", run="reference")
studies = studies.assign(golden_rows=studies["trusted"].map({True: "trusted", False: "contaminated, too"}))
table = analysis.mean_by(studies, ["golden_rows", "classifier_rows"], "h_rank", seed=nb.seed)
figure = plots.draw("toy_h_rank", table)
nb.save_figure("toy_h_rank", figure, table)
plt.show()

# %%
table = nb.read_table("classifier_metrics")
best = table[table["classifier"] == "fine-tuned, shared"].iloc[-1]
assert best["auc"] > 0.5
print("CHECK the classifier ranks better than chance: pass")

# %% [markdown]
# ## Exercises
#
# 1. Shuffle the four responses of a sample. What happens to $\tilde h$?
#
# <details><summary>Solution</summary>Nothing, for equal β: the mean over responses is symmetric. The slot weight, which looks at
# column 0 alone, changes.</details>
#
# 2. Change this and see: in section 1, set the first `c` to 0.9999. Which of the three readings notice, and by how much?
#
# <details><summary>Solution</summary>`raw` explodes, as it divides by $1-c$; the two bounded ones hardly move. One overconfident response would otherwise
# carry a whole step.</details>

# %%
nb.finish({"auc": float(best["auc"]), "ece": float(best["ece"])})
