"""What took long is kept on disk, and made again when its settings or its code change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustpo_kit.records import atomic_folder, key_of_function, read_json, write_json

PROFILE_FREE = ("robustpo_kit.profiles",)  # its settings are part of `config`


def kept(folder: Path, config: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """`folder` as `make` filled it once; made afresh when `config` or the code of `make` changed, and by rename."""
    code = key_of_function(make, without=PROFILE_FREE)
    key = json.loads(json.dumps({"config": config, "code": code}))
    stamp = folder / "made.json"
    if stamp.exists() and read_json(stamp) == key:
        return folder
    with atomic_folder(folder) as temporary:
        make(temporary)
        write_json(temporary / "made.json", key)
    return folder
