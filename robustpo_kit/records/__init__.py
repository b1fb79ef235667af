"""How anything is written, and known again: whole or not at all, with its origin and its digest.

A module a subject: `files` (by rename), `digests` (of contents), `freshness` (key of code),
`provenance` (config, seed, versions), `run_record` (of a training), `machine` (what computes),
`progress` (of a long run), `streams` (randomness by name).
"""

from robustpo_kit.records.digests import digest, file_digest
from robustpo_kit.records.files import (
    atomic_folder,
    atomic_write,
    read_json,
    write_json,
    write_text,
)
from robustpo_kit.records.freshness import (
    UnknownModuleError,
    closure,
    code_key,
    imported_modules,
    key_of_function,
)
from robustpo_kit.records.machine import cores, device_name
from robustpo_kit.records.progress import progress
from robustpo_kit.records.provenance import (
    git_revision,
    is_provenance,
    provenance,
    versions,
    write_origin,
    write_table,
)
from robustpo_kit.records.run_record import RunRecord
from robustpo_kit.records.streams import stream, stream_seed, torch_stream

__all__ = [
    "RunRecord",
    "UnknownModuleError",
    "atomic_folder",
    "atomic_write",
    "closure",
    "code_key",
    "cores",
    "device_name",
    "digest",
    "file_digest",
    "git_revision",
    "imported_modules",
    "is_provenance",
    "key_of_function",
    "progress",
    "provenance",
    "read_json",
    "stream",
    "stream_seed",
    "torch_stream",
    "versions",
    "write_json",
    "write_origin",
    "write_table",
    "write_text",
]
