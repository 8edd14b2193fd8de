# SPDX-License-Identifier: Apache-2.0
"""Configuration: strict loading of YAML files by the schema of their task, and `key.sub=value` overrides.

A file may name a parent with `base:` (relative to itself), or a list of them of which a later one wins over an earlier;
its own keys win over all. Anything wrong ends with an InputError that names the key, its file, what is allowed and the
closest name, before any work is done.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from mindvideo.errors import InputError
from mindvideo.schema import SCHEMAS, TASK, Field

# A locked ConfigDict. Its keys are those of its task's schema, which a type checker cannot see.
Config = Any

REPOSITORY = Path(__file__).resolve().parent.parent


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The locked, typed configuration of a YAML file with `key.sub=value` overrides applied."""
    return _build([*_layers(Path(path)), *map(_parse_override, overrides)], Path(path).stem)


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """The same of values by key, such as those that a checkpoint holds; `source` says where they come from."""
    return _build([(source, dict(values))], "run")


def _build(layers: Sequence[tuple[str, dict[str, Any]]], name: str) -> Config:
    """The layers over the defaults of their task, a later one winning; `name` unless they give one."""
    schema = _schema(layers)
    config = ConfigDict(_defaults(schema), type_safe=True)
    for source, values in layers:
        _merge(config, schema, values, source, "")
    name = str(config.name) or name
    if Path(name).name != name or name.startswith("."):
        raise InputError(f"name: {name!r} is not a plain folder name.")
    config.name = name
    config.lock()
    return config


def _parse_override(override: str) -> tuple[str, dict[str, Any]]:
    """Where a value comes from, and the value under its keys."""
    key, separator, text = override.partition("=")
    if not separator:
        raise InputError(f"override {override!r}: write key.sub=value, such as optim.lr=1e-3.")
    values: Any = _parse_yaml(text, f"override {override!r}")
    for part in reversed(key.split(".")):
        values = {part: values}
    return f"override {override!r}", values


def _schema(layers: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """That of the task which the layers name, the last one winning."""
    task = TASK.default
    for source, values in layers:
        try:
            task = TASK.parse(values.get("task", task))
        except ValueError as error:
            raise InputError(f"{source}: task is {values['task']!r}; it must be {error}.") from None
    return SCHEMAS[str(task)]


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)


def resolve(path: str) -> Path:
    """A path in a config: absolute, or from the working directory, or else from the repository."""
    here = Path(path).expanduser()
    beside = REPOSITORY / here
    return here if here.exists() or not beside.exists() else beside


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.default if isinstance(v, Field) else _defaults(v) for k, v in schema.items()}


def _layers(path: Path, children: tuple[Path, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """The file's parents, each after its own parents, then the file itself."""
    if path.resolve() in children:
        raise InputError(f"{path}: `base:` goes in a circle.")
    values = _read_yaml(path)
    base = values.pop("base", None) or []
    parents = [base] if isinstance(base, str) else base
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise InputError(f"{path}: base must be the name of a YAML file, or a list of such names.")
    for parent in parents:
        yield from _layers(path.parent / parent, (*children, path.resolve()))
    yield str(path), values


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"config {path}: no such file.")
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"config {path}: not a UTF-8 text file.") from error
    if values is not None and not isinstance(values, dict):
        raise InputError(f"{path}: expected `key: value` lines.")
    return values or {}


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, which YAML would silently let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # pyright: ignore[reportUnknownMemberType]
        twice = [str(key) for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: the key {twice[0]!r} stands twice")
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return _UniqueKeyLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        raise InputError(f"{source}: not valid YAML: {' '.join(str(error).split())}.") from error


def _merge(config: Any, schema: Mapping[str, Any], values: Any, source: str, prefix: str) -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in schema:
            close = difflib.get_close_matches(str(key), list(schema), n=1)
            hint = f", did you mean {prefix + close[0]!r}?" if close else "."
            raise InputError(f"{source}: unknown key {name!r}{hint} Allowed here: {', '.join(schema)}.")
        entry = schema[key]
        if isinstance(entry, Field):
            try:
                config[key] = entry.parse(value)
            except ValueError as error:
                raise InputError(f"{source}: {name} is {value!r}; it must be {error}.") from None
        elif isinstance(value, dict):
            _merge(config[key], entry, value, source, f"{name}.")
        else:
            raise InputError(f"{source}: {name} is {value!r}; it must hold the keys {', '.join(entry)}.")
