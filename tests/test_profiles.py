import dataclasses

import pytest

from robustpo_kit import profiles
from robustpo_kit.errors import KitError


def test_every_profile_is_frozen_and_named_after_its_key():
    for name, profile in profiles.PROFILES.items():
        assert profile.name == name
        with pytest.raises(dataclasses.FrozenInstanceError):
            profile.epochs = 3


def test_overrides_replace_one_setting_and_keep_the_others():
    changed = profiles.get("cpu", {"contamination": 1, "listwise": ["lire"]})
    assert (changed.contamination, changed.listwise) == (1.0, ("lire",))
    assert dataclasses.replace(
        changed, contamination=0.3, listwise=profiles.get("cpu").listwise
    ) == profiles.get("cpu")


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("laptop", {}, "profile: 'laptop' is unknown; choose one of smoke, demo, cpu"),
        ("cpu", {"lambda": 2.0}, "overrides: 'lambda' is not a setting"),
        ("cpu", {"name": "gpu"}, "overrides: 'name' is not a setting"),
        ("cpu", {"batch_size": "16"}, "batch_size = '16' should be of type int"),
        ("cpu", {"batch_size": True}, "batch_size = True should be of type int"),
    ],
)
def test_what_is_unknown_or_of_another_type_is_refused(name, overrides, words):
    with pytest.raises(KitError, match=words.replace("(", r"\(")):
        profiles.get(name, overrides)
