"""Read and write result files, which are checked against ``cmd_eval.results.records``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import ValidationError, convert

from cmd_eval.results.experiment_records import Auxiliary, Decoupling, Evidence
from cmd_eval.results.records import Probe, Recognition, Result, Retrieval
from cmd_eval.results.schema import RESULT_FORMAT
from cmd_extract.system.files import remove_leftovers, write_atomically

TYPES: Mapping[str, type[Result]] = {
    "retrieval": Retrieval,
    "probe": Probe,
    "recognition": Recognition,
    "auxiliary": Auxiliary,
    "decoupling": Decoupling,
    "evidence": Evidence,
}
_LINE = 120


def check_record(record: object) -> None:
    """Check the content of a result file.

    Args:
        record: the decoded JSON.

    Raises:
        ValueError: it is not a result, has another format version, or a field is missing or invalid; the message names
            the field.
    """
    if not isinstance(record, dict) or record.get("kind") not in TYPES or "provenance" not in record:
        raise ValueError("not a result of cmd-eval; pass a JSON file written by one of its commands")
    if record.get("format") != RESULT_FORMAT:
        raise ValueError(f"result format version {record.get('format')} is not supported (expected {RESULT_FORMAT})")
    try:
        convert(record, TYPES[record["kind"]])
    except ValidationError as error:
        raise ValueError(
            f"incomplete or invalid {record['kind']} result ({error}); run the command that created it again"
        ) from error


def write_result(path: Path, record: Mapping[str, Any]) -> None:
    """Write a result file atomically; NaN and infinity are written as null.

    Raises:
        ValueError: the record is incomplete or invalid; the message names the field.
        OSError: the file cannot be written.
    """
    text = format_json(_finite(record))
    try:
        check_record(json.loads(text))
    except ValueError as error:
        raise ValueError(f"{path}: not written: {error}") from error
    remove_leftovers(path.parent)
    write_atomically(path, text + "\n")


def read_result(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read a result file.

    Args:
        path: the file.
        kind: expected kind; None accepts any kind.

    Returns:
        The decoded JSON, with all fields of ``cmd_eval.results.records`` except those that have a default.

    Raises:
        ValueError: the file is not a result, is incomplete, or has another kind or format version.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a result of cmd-eval ({error})") from error
    try:
        check_record(record)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if kind is not None and record["kind"] != kind:
        raise ValueError(f"{path}: is a {record['kind']} result, expected {kind}")
    return record


def format_json(value: Any, depth: int = 0, *, in_list: bool = False) -> str:
    """Format JSON with one line per field, and one line per row of a matrix or of a table.

    Lists and objects without further ones inside are on one line if they are items of a list, or short.
    """
    if not isinstance(value, Mapping | list) or not value:
        return json.dumps(value, allow_nan=False)
    items = list(value.values()) if isinstance(value, Mapping) else value
    if not any(isinstance(item, Mapping | list) and item for item in items):
        line = json.dumps(value, allow_nan=False)
        if in_list or len(line) <= _LINE:
            return line
    indent = "\n" + " " * (depth + 1)
    if isinstance(value, Mapping):
        lines = [f"{json.dumps(str(key))}: {format_json(item, depth + 1)}" for key, item in value.items()]
        return "{" + indent + f",{indent}".join(lines) + "\n" + " " * depth + "}"
    lines = [format_json(item, depth + 1, in_list=True) for item in value]
    return "[" + indent + f",{indent}".join(lines) + "\n" + " " * depth + "]"


def _finite(value: Any) -> Any:
    """Replace floats that JSON cannot represent by None, and tuples by lists."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
