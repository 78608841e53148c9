"""stage.json: the settings and sources that determine a folder's weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from qalign_jax import files

# The keys on disk, unchanged since the first release, whose runs resume.
SETTINGS, SOURCES = "matters", "made_from"


@dataclasses.dataclass(frozen=True)
class Record:
    """`settings` are those of a training stage, empty for a conversion; `sources` are fingerprints
    of the weights, the data and the tokenizer that went in.
    """

    settings: Mapping[str, Any]
    sources: Mapping[str, Any]


def read_record(folder) -> Record | None:
    """The record in a folder, None where there is none.

    Raises:
      ValueError: stage.json is damaged.
    """
    file = epath.Path(folder) / "stage.json"
    if not file.exists():
        return None
    remedy = "delete the folder and make it again"
    content = files.read_object(file, remedy)
    settings, sources = content.get(SETTINGS, {}), content.get(SOURCES)
    if not isinstance(settings, dict) or not isinstance(sources, dict):
        raise ValueError(f"{file}: not a record of settings and sources; {remedy}")
    return Record(settings, sources)


def write_record(folder, record: Record) -> None:
    settings = {SETTINGS: record.settings} if record.settings else {}
    files.write_json(epath.Path(folder) / "stage.json", settings | {SOURCES: record.sources})
