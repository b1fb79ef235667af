# %% [markdown]
# # 03 · Reward models: who says what is better, and how often is it right?
#
# **In one line.** May gold, which nothing trains on, judge? <!--claim judge_audit-->of 24 controls of its audit it fails 0; scores against the human reply: echo 0.000, perturbed echo 0.000, shuffled echo 0.000, disguised echo 0.000, hidden echo 0.000, inflected echo 0.185, nearly empty 0.090, off-topic 0.180, truncated 0.325, doubled 0.005, with prompt words 0.305, padded 0.235, very long 0.145, shuffled 0.385, dressed half 0.075, closed half 0.235, listed half 0.190, dressed 0.140, telegram 0.505, untrained model 0.145, contaminant 0.135, other human source 0.430<!--/claim-->; the judge before it gave the echo 0.92.
#
# | reads | writes | time (2 CPU cores) | before | after |
# |---|---|---|---|---|
# | splits `reward` and `gold` | tables `reward_*`, `gold_*`, `judge_audit`, two models in `runs/` | about 2 minutes | [02](02_classifier_calibration.ipynb) | [04a](04a_kl_dro.ipynb) |
#
# Words and symbols: [glossary](../docs/glossary.md).
#
# Listwise methods need a reward for each response, and every result needs a judge. If one reward does both, a policy that
# learns the reward's errors looks good. So there are two (Gao et al. 2022): a **proxy** that ranks the training data and may
# be wrong, and a **gold** reward that measures and that nothing trains on.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression

from robustpo_kit import calibration, experiments, plots, rewards
from robustpo_kit.notebook import start
from robustpo_kit.records import stream

# %% tags=["parameters"]
profile = "auto"  # auto | smoke | demo | cpu | gpu | paper
seed = 0
overrides = {}  # settings of the profile to change

# %%
nb = start("03_reward_models", profile=profile, seed=seed, overrides=overrides)
lab = experiments.Lab(nb.cfg, nb.seed)

# %% [markdown]
# ## 1. A Bradley-Terry model, as the papers have one
#
# $P(y_w\succ y_l\mid x)=\sigma\big(r(x,y_w)-r(x,y_l)\big)$. Each training pair has *the same kind of author on both
# sides* (a reply against a reply to another prompt, of like length), so the model cannot win by recognising the author;
# it must look at the match of reply and prompt. A quarter of the prompts was kept back: preference accuracy on them, by kind
# of pair, because one average would hide what a reward model sees and what it is blind to (DoRA Table 7 has the average).
#
# - $r(x,y)$: the model's reward of response $y$ to prompt $x$; only differences within a prompt mean something
# - $y_w\succ y_l$: the first is preferred to the second; $\sigma$: the logistic function
#
# Its loss is the negative logarithm of that probability. Logistic regression without intercept, on differences of features, fits it:

# %%
# built here for the reader
def bradley_terry(r_w, r_l):
    return -torch.nn.functional.logsigmoid(r_w - r_l)  # [B]

# %%
draw = stream(nb.seed, "made-up pairs")
features, taste = draw.normal(size=(2, 500, 3)), np.array([1.0, -0.5, 0.0])
first_wins = draw.random(500) < 1 / (1 + np.exp(-(features[0] - features[1]) @ taste))
ahead = torch.tensor(np.where(first_wins, 1, -1)[:, None] * (features[0] - features[1]))
w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
for _ in range(200):
    bradley_terry(ahead @ w, torch.zeros(500)).mean().backward()
    w.data -= 2.0 * w.grad
    w.grad = None
peer = LogisticRegression(C=np.inf, fit_intercept=False).fit(np.vstack([ahead, -ahead]), np.repeat([1, 0], 500))
assert np.allclose(w.detach(), peer.coef_[0], atol=1e-3)
print(f"CHECK the loss above, minimised, is logistic regression on differences: pass ({w.detach().numpy().round(1)})")

# %%
fitted = lab.reward_model()
print("fitted on", len(lab.splits["reward"]), "prompts")
nb.save_table("reward_accuracy", fitted.accuracy(draws=nb.cfg.bootstrap, seed=nb.seed))

# %%
table = nb.read_table("reward_accuracy")
figure = plots.draw("reward_accuracy", table)
nb.save_figure("reward_accuracy", figure, table)
plt.show()
table.round(3)

# %% [markdown]
# In the committed run the model knows <!--claim fitted_accuracy-->a matching reply from a mismatched one: accuracy 0.88 to 0.96; a correct solution from a wrong one: 0.59 [0.47, 0.70], where 0.5 is a coin; its correlation with the source classifier within sources: 0.00 [-0.18, 0.16]<!--/claim-->. Matching against mismatched is what it was trained for. Correct
# against wrong solution needs knowledge of the world that a 22-million-parameter encoder lacks. Against synthetic replies it
# is only as good as relevance is: SmolLM2 stays on topic. `longer_share` is how often the preferred reply is the longer one.
#
# The papers' proxies (DoRA Table 7): GPT-J on HH-RLHF 74.6 %, DeBERTa-large on summaries 89.2 %, UltraRM on UltraFeedback
# 74.6 %, Eurus-RM on HH 65.0 %.
#
# ## 2. Gold: a stated function
#
# $$\mathrm{gold}(x,y)=\mathrm{relevance}(x,y)+\kappa\,\min\Big(0,\log\frac{P(\text{human}\mid y)}{P(\text{model}\mid y)}\Big)-8\,\mathrm{said\ before}(x,y)$$
#
# in standard deviations of relevance. *Relevance* is a Bradley-Terry model as above that reads only what a reply adds to its
# prompt, with its liking of length taken out: an encoder likes the prompt's own words, in any order. The *log-odds* come from
# character n-grams of other rows, which no other model here looks at; to read as a model's is a fault, to read ever more as a
# human's is no merit. *Said before* is the share of the reply's words in runs of three that the prompt, or the reply itself,
# already had, or its share of the prompt's words beyond what nine of ten human replies have: an echo has 1, a text written twice 1/2.
# No row of the split `gold` is seen by anything else. $\kappa$ is a setting of the profile.

# %%
gold, proxy = lab.gold(), lab.proxy()
print(f"kappa {gold.kappa}; fitted on {len(lab.splits['gold'])} prompts that nothing else sees")
held_out = lab.splits["policy"]
flat = calibration.flat_responses(held_out)
parts = gold.parts(list(flat["prompt"]), list(flat["response"])).assign(source=list(flat["source"]))
nb.save_table("gold_parts", parts.groupby("source", sort=False).mean().reset_index())

# %%
nb.read_table("gold_parts").round(2)

# %% [markdown]
# ## 3. The proxy, and what each of them knows of the source
#
# proxy = gold + style bias (a liking of long replies) + noise; both are settings. If reward and classifier confidence were one
# number, DoRA's calibration term would add nothing: their correlation, over all responses and inside each source.

# %%
print(f"style bias {proxy.style_bias}, noise {proxy.noise} sds of relevance")
scores = {"fitted": fitted, "gold": gold, "proxy": proxy}
scores = {name: model.score_set(held_out).ravel() for name, model in scores.items()}
table = calibration.response_table(held_out, lab.classifier().score_set(held_out), "c")
correlations = [rewards.correlation_table(table.assign(reward=values)).assign(model=name) for name, values in scores.items()]
nb.save_table("reward_correlation", pd.concat(correlations))
agreement = [{"model": name, "pearson_with_gold": np.corrcoef(values, scores["gold"])[0, 1]} for name, values in scores.items()]
nb.save_table("reward_agreement", pd.DataFrame(agreement))

# %%
nb.read_table("reward_agreement").round(2)

# %%
nb.read_table("reward_correlation")[["model", "scope", "n", "pearson", "spearman"]].round(2)

# %% [markdown]
# Gold knows who wrote a reply, by $\kappa$, and so correlates with $c$ over all responses. Inside a source both carry their
# own news where the correlation is small.
#
# ## 4. The audit: may gold judge?
#
# A judge is admitted, not assumed. It compares replies whose worth is known with the human one; the score is win + tie/2. A
# bound of its interval is held against a limit (`rule`), and a judge that fails one line is refused by `judging.win_table`,
# which names the line. *Untrained model*: replies of SmolLM2 as it comes. *Contaminant*: what stands in the golden slot of
# contaminated rows. *Other human source*: the wrong solution, subtly wrong, which must not be preferred. *Length slope*: how
# much the score of the other replies rises when they have twice the words. Each other line is a weakness that a judge here
# had, or was made to have, while its audit did not ask: *perturbed echo* has "and" after every second word of the prompt,
# *disguised* one has accents and underscores, *hidden* one an invisible character in each word, *inflected* one its longer
# words with or without an s; *padded* is the human reply with three to other prompts after it, *very long* twelve of them alone;
# *dressed*, *closed* and *listed* halves are polite or in markdown; *telegram* is the human reply without the prompt's words.

# %%
nb.save_table("judge_audit", lab.audit())

# %%
audit = nb.read_table("judge_audit")
tested = audit[audit["result"].isin(["pass", "fail"])]
figure = plots.draw("judge_audit", tested)
nb.save_figure("judge_audit", figure, tested)
plt.show()
audit.drop(columns=["judge", "fingerprint"], errors="ignore").round(2)

# %% [markdown]
# The judge of the first releases, a fine-tuned model of section 1's kind, gave an echo 0.92, the human reply written twice
# 0.86 and the untrained model 0.62: it would be refused. A judge of your own, a function or an endpoint, goes through the same:
# `judging.audit(judging.FunctionJudge("mine", ask), rows, seed=0)`.

# %%
failed = int((audit["result"] == "fail").sum())
assert failed == 0 or nb.cfg.name == "demo"  # whose few rows seldom make a judge
said = "pass" if failed == 0 else f"{failed} failed, on so few rows"
print(f"CHECK the shipped judge fails no control of its audit: {said}")

# %% [markdown]
# ## Exercises
#
# 1. Why must gold have rows of its own?
#
# <details><summary>Solution</summary>A policy trained on a ranking learns its errors too. A judge that shares them, because it
# saw the same rows, would reward exactly those.</details>
#
# 2. Set `overrides = {"kappa": 0.0}`. Which lines of the audit change, and why?
#
# <details><summary>Solution</summary>*Untrained model* and *contaminant* rise: SmolLM2 stays on topic, and relevance alone does
# not tell it from a human.</details>

# %%
nb.finish({"failed_controls": int((audit["result"] == "fail").sum()), "controls": len(audit)})
