"""What the rounds of a run train on: the rows given, or replies of the policy as it then is."""

import dataclasses

import torch
from torch import Tensor

from robustpo_kit import calibration
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.own_replies import accepted_rows, sample_rows
from robustpo_kit.policies import Policy, SamplingConfig
from robustpo_kit.records import stream_seed
from robustpo_kit.toy.data import DataConfig, proxy_reward
from robustpo_kit.toy.setting import Setting, confidences, draw_data, slot_weights
from robustpo_kit.toy.world import World

# the rows given; K own replies; those behind the golden slot as it is given; K accepted of 2K
ROUNDS = ("given", "own", "own_golden", "rso")
OWN_H = ("ones", "estimated", "slot")  # what is known of replies that nobody has labelled
DRAWS = 2  # of RSO for each that it keeps: 8 for 4 (DoRA, App. E)


def own_rows(
    setting: Setting, policy: Policy, kind: str, *, number: int, rso_beta: float
) -> PreferenceSet:
    """The policy's replies to the prompts of the data, ranked by the proxy, K a prompt.

    Args:
        setting: of the run; its data have the prompts and K.
        policy: as it is now.
        kind: of ROUNDS, but not "given".
        number: of the round, which has draws of its own.
        rso_beta: of what "rso" accepts.
    """
    world, data, _ = draw_data(setting)
    count, seed = setting.data.responses, stream_seed(setting.seed, "toy round", number)
    samples = {"own": count, "own_golden": count - 1, "rso": DRAWS * count}[kind]
    config = SamplingConfig(
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        max_new_tokens=world.config.length + 2,  # a text too long does not end
        batch_size=len(data.prefs),
        samples=samples,
    )
    rows = sample_rows(data.prefs, policy, config, seed=seed)
    if kind == "own_golden":
        given = {row.row_id: row for row in data.prefs}
        rows = rows.map(lambda row: _behind_golden(given[row.row_id], row))
    rows = ranked(world, setting.data, rows)
    return accepted_rows(rows, count, rso_beta, seed=seed) if kind == "rso" else rows


def own_weights(setting: Setting, rows: PreferenceSet, source: str) -> Tensor:
    """h [N] of rows that `own_rows` made, by a name of OWN_H.

    The classifier is that of the data given: nobody has labelled anything since.
    """
    if source == "ones":
        return torch.ones(len(rows), dtype=torch.float64)
    c = confidences(setting, rows)
    if source == "estimated":
        return calibration.uniform_factor(c)
    return slot_weights(c[:, 0], setting.data.responses)


def ranked(world: World, config: DataConfig, rows: PreferenceSet) -> PreferenceSet:
    """Rows with the proxy's rewards, and the least one of its prompt for a text that is invalid."""
    proxy = proxy_reward(world, config).tolist()
    prompts = {prompt: number for number, prompt in enumerate(world.prompts)}
    places = {response: number for number, response in enumerate(world.responses)}
    rewards = []
    for row in rows:
        of_prompt = proxy[prompts[row.prompt]]
        least = min(of_prompt)
        found = (places.get(text) for text in row.responses)
        rewards.append([least if place is None else of_prompt[place] for place in found])
    return rows.with_rewards(rewards)


def _behind_golden(given: Preference, own: Preference) -> Preference:
    """The golden slot of a row as it is given, then the policy's replies."""
    responses = (given.responses[0], *own.responses)
    return dataclasses.replace(
        own, responses=responses, sources=(given.sources[0], *own.sources), golden=0
    )
