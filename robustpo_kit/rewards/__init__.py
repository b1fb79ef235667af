"""Rewards: Bradley-Terry models of how well a reply answers its prompt, gold and its proxy.

A Bradley-Terry model does not tell who wrote a reply: both sides of every training pair come from
the same kind of writer, a reply against one of the same source to another prompt, matched in
length, and the human pairs of the data. So neither source nor length decides a training pair.
"""

from robustpo_kit.rewards.cross_fitting import CrossFitted, cross_fitted_rewards
from robustpo_kit.rewards.fitting import bradley_terry, fit_reward_model
from robustpo_kit.rewards.gold import GoldReward, ProxyReward, fit_gold, said_before
from robustpo_kit.rewards.loading import SequenceReward, load
from robustpo_kit.rewards.models import RewardModel, Rewards
from robustpo_kit.rewards.pairs import (
    RankedPair,
    pairs_across_sources,
    replies_elsewhere,
    training_pairs,
)
from robustpo_kit.rewards.tables import accuracy_table, correlation_table

__all__ = [
    "CrossFitted",
    "GoldReward",
    "ProxyReward",
    "RankedPair",
    "RewardModel",
    "Rewards",
    "SequenceReward",
    "accuracy_table",
    "bradley_terry",
    "correlation_table",
    "cross_fitted_rewards",
    "fit_gold",
    "fit_reward_model",
    "load",
    "pairs_across_sources",
    "replies_elsewhere",
    "said_before",
    "training_pairs",
]
