"""What took long is kept on disk, and made again when its settings or its code change."""

import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustpo_kit.records import key_of_function, read_json, write_json

PROFILE_FREE = ("robustpo_kit.profiles",)  # its settings are part of `config`


def kept(folder: Path, config: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """`folder` as `make` filled it once; made afresh when `config` or the code of `make` changed, and by rename."""
    code = key_of_function(make, without=PROFILE_FREE)
    key = json.loads(json.dumps({"config": config, "code": code}))
    stamp = folder / "made.json"
    if stamp.exists() and read_json(stamp) == key:
        return folder
    prefix = f".{folder.name}.{platform.node()}-"
    temporary = folder.with_name(f"{prefix}{os.getpid()}.tmp")
    for left in folder.parent.glob(f"{prefix}*.tmp"):  # of processes that were killed on this machine
        if left == temporary or not _alive(int(left.stem.removeprefix(prefix))):
            shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        make(temporary)
        write_json(temporary / "made.json", key)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
