# %% [markdown]
# # 15 · My DPO looks wrong: which symptom is it, and what mends it?
#
# **In one line.** Seven things that make a preference run look broken, each made to happen in seconds in the toy world of
# [00](00_start_here.ipynb), explained, and mended; two of them are not bugs at all.
#
# | reads | writes | time (2 CPU cores) | before | after |
# |---|---|---|---|---|
# | nothing | tables `wrong_*` | about a minute | [14](14_your_data.ipynb) | [99](99_paper_tables.ipynb) |
#
# Words and symbols: [glossary](../docs/glossary.md).
#
# | what you see | section |
# |---|---|
# | the log-probability of chosen responses falls | 1 |
# | accuracy is 1, and replies are no better | 2 |
# | everything looks fine, and replies get worse: is a column turned round? | 3 |
# | replies grow longer and longer | 4 |
# | the loss is NaN | 5 |
# | out of memory | 6 |
# | another micro-batch size gives another model | 7 |

# %%
import copy
import dataclasses
import itertools
import logging
import math

import numpy as np
import pandas as pd
import torch

from robustpo_kit import data, losses, objectives, toy, training
from robustpo_kit.losses import Scores
from robustpo_kit.notebook import start
from robustpo_kit.records import stream

# %% tags=["parameters"]
profile = "auto"  # auto | smoke | demo | cpu | gpu | paper
seed = 0
overrides = {}  # settings of the profile to change

# %%
nb = start("15_my_dpo_looks_wrong", profile=profile, seed=seed, overrides=overrides)

# %% [markdown]
# One small policy after supervised fine-tuning; every section trains copies of it. `chosen` is the mean log-probability of the chosen
# responses of a step, in nats, first and last step; `accuracy` the share of the last step's pairs whose chosen response has risen more than
# the rejected one; `gold` the expected true reward on prompts that training has not seen; `mass` the probability of a valid reply.

# %%
# built here for the reader
first = toy.setting.start(toy.setting.Setting(seed=nb.seed, sft_epochs=4))
world = first.world
pairs = first.data.prefs.pairs("best_worst")

def fresh():
    return dataclasses.replace(first.policy, model=copy.deepcopy(first.policy.model))

def judged(policy):
    seen = toy.language.policy_logps(policy, world)
    return toy.truth.evaluate(world, seen, world.held_out_prompts)

def trained(spec, rows, epochs=2, learning_rate=3e-3):
    policy = fresh()
    how = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": 32, "seed": nb.seed}
    history = toy.setting.train(policy, rows, spec, **how)
    found = {"objective": spec, "chosen_first": history[0]["logps_chosen"], "chosen_last": history[-1]["logps_chosen"]}
    found |= {"accuracy": history[-1]["accuracy"]} | {name: judged(policy)[name] for name in ("gold", "mass")}
    return policy, found

print(f"{len(pairs)} pairs; before: gold {judged(first.policy)['gold']:.2f}, mass {judged(first.policy)['mass']:.2f}")

# %% [markdown]
# ## 1. The log-probability of chosen responses falls
#
# DPO's loss knows a difference, $-\log\sigma(\beta(r_w-r_l))$: it is content when the rejected response falls faster than the chosen one. Both
# share tokens, so pushing one down takes the other with it, and the mass goes to texts that nobody wrote. *That chosen log-probabilities fall is
# what the loss asks for, not a bug*; how far is a choice. CPO adds the chosen response's likelihood, DPO-positive a penalty where it falls:
#
# $$\ell_\text{DPOP}=-\log\sigma\Big(\beta\big[D-\lambda\max(0,-r_w)\big]\Big)$$
#
# - $r_w=s_w-s_w^\text{ref}$: how far the chosen response has risen; $D=r_w-r_l$; $\beta$: strength; $\lambda$: weight of the penalty

# %%
# built here for the reader
def dpop(logps, ref_logps, beta, lam):
    r = logps - ref_logps
    return -torch.nn.functional.logsigmoid(beta * (r[:, 0] - r[:, 1] - lam * (-r[:, 0]).clamp(min=0)))

# %%
drawn = stream(nb.seed, "made-up scores").normal(-20, 5, (2, 8, 2))
made_up = Scores(*map(torch.tensor, drawn), lengths=torch.full((8, 2), 6))
assert torch.allclose(dpop(*made_up[:2], beta=0.1, lam=5.0), losses.BASES["dpop"].loss(made_up, beta=0.1, lam=5.0))

specs = ("dpo(beta=0.1)", "dpop(beta=0.1, lam=5.0)", "cpo(beta=0.1)")
falling = pd.DataFrame([trained(spec, pairs)[1] for spec in specs])
nb.save_table("wrong_falling", falling)
change = (falling["chosen_last"] - falling["chosen_first"]).tolist()
assert change[0] < -1 and min(change[1:]) > change[0] + 1 and falling["mass"].idxmin() == 0
print("CHECK chosen responses fall under DPO and are held by both others, and the mass with them: pass")
falling.round(2)

# %% [markdown]
# **Look at** `logps_chosen` in the history of a run, and at replies. **Mend** by a loss with a likelihood in it (CPO, RRHF, DPO-positive, SLiC), a
# smaller learning rate, or fewer steps; a win rate among valid replies alone does not see it (notebook 00, section 6).
#
# **Change this and see.** Set `beta=1.0` in the first spec: a stronger pull to the reference, as it seems. Where does `chosen_last` end?
#
# <details><summary>What we saw</summary>The chosen responses fall less, and still fall: beta scales the gap as well as the pull, so that the loss is content
# sooner. On the seeds that were tried the mass stayed below that of the two others.</details>
#
# ## 2. Accuracy 1, and the model is no better
#
# Accuracy on rows that the policy trains on says that they were learned, not that there was anything to learn. Here half of the labels are
# turned round by lot, so that they say nothing at all; beside it, the same rows with the right labels.

# %%
# built here for the reader
few = data.PreferenceSet(pairs[:64], name="few", template=pairs.template)
others = data.PreferenceSet(pairs[64:160], name="others", template=pairs.template)
settings = training.TrainConfig(layout="separate")
before = training.score(fresh(), others, settings)

def heldout_accuracy(policy):
    outcomes = training.heldout_outcomes(others, before, training.score(policy, others, settings))
    return outcomes.loc[outcomes["outcome"] == "implicit_accuracy", "value"].mean()

rows = []
for labels, kept in (("by lot", few.flip(0.5, nb.seed)), ("right", few)):
    policy, found = trained("dpo(beta=0.1)", kept, epochs=25, learning_rate=5e-3)
    rows.append({"labels": labels, "heldout_accuracy": heldout_accuracy(policy)} | found)
memorised = pd.DataFrame(rows)
nb.save_table("wrong_accuracy", memorised)
assert (memorised["accuracy"] == 1).all()
assert memorised["heldout_accuracy"][0] < memorised["heldout_accuracy"][1] - 0.1
print("CHECK accuracy is 1 with either labels; held-out pairs tell them apart: pass")
memorised.drop(columns=["objective", "chosen_first"]).round(2)

# %% [markdown]
# **An oddity.** Look at `gold` and `mass` once more:

# %%
lot, right = (memorised.set_index("labels").loc[name] for name in ("by lot", "right"))
print(f"held-out accuracy {right['heldout_accuracy']:.2f} with right labels, {lot['heldout_accuracy']:.2f} by lot;", end=" ")
print(f"mass {right['mass']:.2f} and {lot['mass']:.2f}: the better judge of pairs", "is" if right["mass"] > lot["mass"] else "is not", "the better writer")

# %% [markdown]
# A policy may rank what it is shown, and write what nobody asked for: accuracy compares two given texts, and says nothing of the rest of its distribution.
#
# **Look at** pairs to other prompts (`robustpo train --heldout 0.1`), from before the first step on. **Mend** by fewer epochs, more rows, or by
# finding the wrong labels (notebook 14, the audit). Even a held-out accuracy is about pairs somebody else wrote; what a policy writes itself needs a judge
# that has passed its audit (notebook 03).
#
# ## 3. A column turned round
#
# `chosen` and `rejected` changed places, or a file ranks by place (1 is best) where a reward (more is better) is expected. The loss falls, the accuracy
# rises: the run cannot know. But the *start* knows: a policy that was fine-tuned on good replies, asked before the first step, finds
# chosen responses the more likely ones in most pairs.

# %%
# built here for the reader
def turned(row):
    return dataclasses.replace(data.take(row, (1, 0)), golden=None)

def right_before_training(rows):
    logps, _ = training.score(fresh(), rows, settings)
    return float((logps[:, 0] > logps[:, 1]).double().mean())

swapped = pairs.map(turned)
rows = []
for columns, kept in (("as they are", pairs), ("turned round", swapped)):
    rows.append({"columns": columns, "right_at_start": right_before_training(kept)} | trained("cpo(beta=0.1)", kept)[1])
flipped = pd.DataFrame(rows)
nb.save_table("wrong_columns", flipped)
assert flipped["right_at_start"][1] < 0.5 < flipped["right_at_start"][0] and flipped["accuracy"].min() > 0.7
assert flipped["gold"][1] < flipped["gold"][0]
mended = swapped.map(turned) if right_before_training(swapped) < 0.5 else swapped
assert [row.responses for row in mended] == [row.responses for row in pairs]
print("CHECK both runs look healthy; the start tells them apart, and turning back mends it: pass")
flipped.drop(columns=["objective"]).round(2)

# %% [markdown]
# **Look at** that share on your file, and read five pairs aloud. With pairs that are nearly ties it hovers about one half and says nothing; trusted pairs
# say more: the audit of notebook 14 finds swapped columns by them, as a flip rate towards 1.
#
# **Change this and see.** Turn only a fifth of the rows (`pairs.flip(0.2, nb.seed)`). Does the start still tell?
#
# <details><summary>What we saw</summary>It moves towards one half and stays well on the right side. That is the difference between a
# swapped column, which one number shows, and label noise, which needs the pairs one by one.</details>
#
# ## 4. Replies grow longer and longer
#
# Readers and reward models like longer answers a little. The summed log-probability of a long reply has more terms, so a small change of every token, such as
# of the probability to stop, moves it far: length is the cheapest way to please the loss. A policy with one number in it shows this: it stops after
# each token with probability $p$, so that a reply of $n$ tokens has $s=(n-1)\log(1-p)+\log p$, and $1/p$ tokens on average. Labels here prefer the
# longer reply at odds of $e^{0.1}$ a token, and know nothing else.

# %%
# built here for the reader
def mean_length(loss_of, steps=100):
    stop = torch.tensor(-2.2, dtype=torch.float64, requires_grad=True)  # the logit of p
    optimizer = torch.optim.Adam([stop], lr=0.02)
    path = []
    for _ in range(steps):
        p = torch.sigmoid(stop)
        path.append(1 / p.item())
        loss = loss_of((lengths - 1) * torch.log1p(-p) + p.log()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return path

draw = stream(nb.seed, "lengths")
two = draw.geometric(0.1, (2000, 2))
first_chosen = draw.random(2000) < 1 / (1 + np.exp(-0.1 * (two[:, 0] - two[:, 1])))
lengths = torch.tensor(np.where(first_chosen[:, None], two, two[:, ::-1]).copy())
p0 = torch.sigmoid(torch.tensor(-2.2, dtype=torch.float64))
ref_logps = (lengths - 1) * torch.log1p(-p0) + p0.log()

# %%
# what a token is worth to these labels: logistic regression of the label on the difference in length
alpha, longer = 0.0, (lengths[:, 0] - lengths[:, 1]).double().numpy()
for _ in range(20):  # Newton's method
    right = 1 / (1 + np.exp(-alpha * longer))
    alpha += ((1 - right) * longer).sum() / (right * (1 - right) * longer**2).sum()
ways = {
    "dpo": lambda s: losses.dpo(Scores(s, ref_logps, lengths), beta=0.1),
    "r_dpo_length": lambda s: losses.r_dpo_length(Scores(s, ref_logps, lengths), beta=0.1, alpha=alpha),
}
paths = {name: mean_length(loss_of) for name, loss_of in ways.items()}
grown = pd.DataFrame([{"loss": name, "tokens_first": path[0], "tokens_last": path[-1]} for name, path in paths.items()])
nb.save_table("wrong_length", grown)
assert grown["tokens_last"][0] > 2 * grown["tokens_first"][0]
assert abs(grown["tokens_last"][1] / grown["tokens_first"][1] - 1) < 0.1
print(f"CHECK replies more than double under DPO; with alpha = {alpha:.2f} of these labels they stay: pass")
grown.round(1)

# %% [markdown]
# **Look at** the mean length of replies beside every score, and at `longer_share` of your pairs (how often the chosen one is longer; the audit prints what length alone
# knows). **Mend** by R-DPO with the $\alpha$ of your own labels, as above, by SimPO's log-probabilities per token, or by a judge under length control (notebook 13).
#
# **Change this and see.** Take twice that `alpha`. What is the mean length then?
#
# <details><summary>What we saw</summary>Shorter than at the start: the correction is now the bias, of the other sign. Too much of it is no safer than none.</details>
#
# ## 5. NaN
#
# Three ways to get one, all in formulas that are right on paper: an empty response in a mean per token (0/0), an exponential that overflows, and the logarithm of a
# probability that has rounded to 0. One NaN in one row is one NaN in the mean, and after the step in every weight.

# %%
cases = {  # where, and the same by a function that keeps its argument in range
    "log(mean(exp(l / lam)))": (
        torch.tensor([200.0, 1.0]),
        lambda x: torch.log(torch.exp(x / 0.5).mean()),
        lambda x: (x / 0.5).logsumexp(dim=0) - math.log(2),
    ),
    "log(sigmoid(x))": (
        torch.tensor([-200.0, 1.0]),
        lambda x: torch.log(torch.sigmoid(x)).sum(),
        lambda x: torch.nn.functional.logsigmoid(x).sum(),
    ),
    "log(1 - exp(a))": (
        torch.tensor([-1e-9, -1.0]),
        lambda a: torch.log(1 - torch.exp(a)).sum(),
        lambda a: torch.log(-torch.expm1(a)).sum(),
    ),
}
rows = []
for name, (at, *ways) in cases.items():
    finite = []
    for way in ways:
        leaf = at.clone().requires_grad_()
        value = way(leaf)
        value.backward()
        finite.append(bool(value.isfinite() and leaf.grad.isfinite().all()))
    rows.append({"formula": name, "at": str(at.tolist()), "as_printed": finite[0], "mended": finite[1]})
finite = pd.DataFrame(rows)
nb.save_table("wrong_nan", finite)
assert not finite["as_printed"].any() and finite["mended"].all()
print("CHECK value and gradient are finite: as printed nowhere, mended everywhere: pass")
finite

# %%
empty = Scores(torch.tensor([[-3.0, 0.0]]), None, lengths=torch.tensor([[2, 0]]))
by_hand = empty.logps / empty.lengths
assert by_hand.isnan().any()
try:
    losses.simpo(empty, beta=2.0, gamma0=0.5)
except ValueError as error:
    print("s / n of an empty response is", by_hand[0, 1].item(), "by hand; the package:", error)

# %% [markdown]
# **Look at** the first step whose loss is not finite, and at its rows: the kit's trainer stops there, names them, and saves the batch before any weight has moved.
# **Mend** by `logsumexp`, `logsigmoid` and `expm1`, by refusing empty responses when a file is read (the kit does), and by keeping log-probabilities in
# float32 where the model is in bfloat16.
#
# ## 6. Out of memory
#
# Log-probabilities need the logits: a number for every word of the vocabulary at every token of every response. For a step of 32 prompts, four responses of
# 512 tokens and a vocabulary of 49,152 words, in float32:

# %%
print(f"{32 * 4 * 512 * 49_152 * 4 / 2**30:.0f} GiB of logits at once, and as much again for their gradient")

# %% [markdown]
# So a step is cut into micro-batches, and where the cut is still too large the kit halves it and takes the step again. Here a device is made up whose memory
# ends at 200 tokens a pass: a step of 32 prompts with two responses of eight tokens does not fit.

# %%
# built here for the reader
def small_device(embedding, arguments):
    if arguments[0].numel() > 200:
        raise torch.OutOfMemoryError("out of memory on a made-up device")

said = []
listener = logging.Handler()
listener.emit = lambda record: said.append(record.getMessage())
logging.getLogger("robustpo_kit.training").addHandler(listener)
spec = "dro(dpo(beta=0.1), lam=0.5)"
config = training.TrainConfig(batch_size=32, micro_batch_size=32, max_steps=3, learning_rate=1e-3, layout="separate", seed=nb.seed)
ends = []
for small in (False, True):
    policy = fresh()
    if small:
        policy.model.get_input_embeddings().register_forward_pre_hook(small_device)
    training.train(policy, pairs, objectives.build(spec), config)
    ends.append(torch.cat([weight.detach().flatten() for _, weight in policy.trainable()]))
logging.getLogger("robustpo_kit.training").removeHandler(listener)
apart = (ends[1] - ends[0]).abs().max().item()
assert said and apart < 1e-4
print("; ".join(said))
print("CHECK the run on the small device ends at the same weights: pass")

# %% [markdown]
# **Look at** tokens a pass, not at prompts. **Mend** by `micro_batch_size`, by `tokens_per_pass`, by LoRA (no optimizer state for the rest), by gradient checkpointing; `robustpo
# train --dry-run` says beforehand what a run will take. Do not mend it by a smaller `batch_size`: that is another optimisation, and under DRO another objective.
#
# ## 7. Another micro-batch size gives another model
#
# The usual loop adds up the gradients of micro-batches. For a mean that is the gradient of the whole. A log-mean-exp is no mean (notebook 04a), and the
# micro-batch becomes a setting that nobody chose:

# %%
whole, off = None, []
for window, size in itertools.chain([("step", 32)], itertools.product(("micro", "step"), (16, 4, 1))):
    config = training.TrainConfig(batch_size=32, micro_batch_size=size, window=window, layout="separate", seed=nb.seed)
    gradient = training.step_gradient(fresh(), pairs, objectives.build("dro(simpo(beta=2.5, gamma0=1.0), lam=0.3)"), config)
    whole = gradient if whole is None else whole
    off.append({"window": window, "micro_batch": size, "gradient_off_by": float((gradient - whole).norm() / whole.norm())})
windows = pd.DataFrame(off[1:])
nb.save_table("wrong_windows", windows)
assert windows.loc[windows["window"] == "step", "gradient_off_by"].max() < 1e-4
assert windows.loc[windows["window"] == "micro", "gradient_off_by"].is_monotonic_increasing
print("CHECK over the whole step the size does not matter; a micro-batch at a time it does, the smaller the more: pass")
windows.round(2)

# %% [markdown]
# **Mend**, in a loop of your own: the robust term needs only the losses, and those are cheap without gradients. Two passes, and every micro-batch
# knows the weights of the whole (the kit needs one pass where the objective allows it):

# %%
# built here for the reader
def exact_in_parts(losses_of, parts, lam):
    with torch.no_grad():
        losses = torch.cat([losses_of(part) for part in parts])
    weights = (losses / lam).softmax(dim=0).split([len(part) for part in parts])
    for part, weight in zip(parts, weights, strict=True):
        (weight * losses_of(part)).sum().backward()  # gradients add up to that of the step

# %%
a = torch.tensor(drawn[0, :, 0], requires_grad=True)
exact_in_parts(lambda part: a[part] ** 2, [[0, 1, 2], [3, 4], [5, 6, 7]], lam=50.0)
(whole,) = torch.autograd.grad(50.0 * ((a**2 / 50.0).logsumexp(dim=0) - math.log(8)), a)
assert torch.allclose(a.grad, whole)
print("CHECK three micro-batches by hand have the gradient of the whole step: pass")

# %% [markdown]
# ## What else it might be
#
# | what you see | most often | where |
# |---|---|---|
# | the loss starts at another number than $\log 2$ (DPO) or $\log K!$ (lists) | the reference is not the policy's start; dropout is on | 00, 04b |
# | two trainers disagree on SimPO | $\gamma_0$ in one, $\gamma_0/\beta$ in the other | 06, 07 |
# | DoRA trains as if $\tilde h$ were not there | $\tilde h$ is nearly the same for all rows: look at `ess` and at its spread | 02, 04a |
# | DRO turns to a few rows | they are its mislabelled ones: over-pessimism | 04a |
# | a judge likes everything | it likes length, echoes or its own kind: audit it | 03, 13 |
#
# ## Exercises
#
# 1. In section 5, which of the three formulas still fails in float64, and at which argument?
#
# <details><summary>Solution</summary>All of them, farther out: exponentials overflow near 710, a sigmoid rounds to 0 near -710, and a probability to 1 where
# $-a$ is below about $10^{-16}$. Precision moves the cliff and does not remove it.</details>
#
# 2. Change this and see: train section 2's rows "by lot" with `rdpo(beta=0.1, epsilon=0.45)`. Does it save the held-out accuracy?
#
# <details><summary>Solution</summary>No: labels by lot hold nothing to save, whatever is assumed of them. At epsilon near one half the loss divides by nearly nothing, and its
# variance grows.</details>

# %%
nb.finish({"symptoms": 7, "chosen_fell_by": float(-change[0])})
