"""A report as a file: JSON, compressed where the name ends in ``.gz``."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TypeVar

import msgspec

from coatcheck.errors import ConfigError

SCHEMA = 1  # of every report here; it stands in the file

Read = TypeVar("Read", bound=msgspec.Struct)


class _Schema(msgspec.Struct):
    schema: int


def check_writable(*paths: Path | None) -> None:
    """Before minutes of measuring, not after. Raises ConfigError where a file could not be written."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"--json, --html: there is no directory {path.absolute().parent}")


def write_json(report: msgspec.Struct, path: Path) -> None:
    """The same report gives the same bytes, compressed or not."""
    data = msgspec.json.encode(report)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def read_json(path: Path, kind: type[Read]) -> Read:
    """The report of that kind that ``write_json`` wrote; a ConfigError that names the file if it is anything else."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema == SCHEMA:
            return msgspec.json.decode(data, type=kind)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path} is not a report of coatcheck bench: {error}") from error
    raise ConfigError(f"{path} is a report of schema {schema}; this version reads schema {SCHEMA}")
