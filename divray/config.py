"""The settings of a run, read from one YAML file.

``section.key=value`` arguments override the file, and the file overrides the defaults.  Unknown keys are errors.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from divray.errors import InputError
from divray.run_folder import RunFolder
from divray.sections import HOW_SECTIONS, Config
from divray.textfiles import dump_yaml, parse_yaml, read_yaml

CONFIG = "config.yaml"
"""File in a run folder with the run's settings."""


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file, apply the ``section.key=value`` overrides, and check every key.

    ``task.data``, ``task.relations`` and ``prompts.pairs_file`` become absolute: a path in the file is relative to the file's
    folder, a path in an override to the current folder.

    Raises:
        InputError: The file is missing or no YAML mapping, or a key is unknown or has a bad value.
    """
    path = Path(path)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(str(path), "", "not a YAML mapping", "Start from `examples/`.")
    for override in overrides:
        _apply(values, override)
    config, path = parse_config(values, str(path)), path.expanduser()
    given = {override.partition("=")[0] for override in overrides}
    for section, key in (("task", "data"), ("task", "relations"), ("prompts", "pairs_file")):
        if value := getattr(getattr(config, section), key):
            base = Path.cwd() if f"{section}.{key}" in given else path.parent
            values[section][key] = str((base / Path(value).expanduser()).resolve())
    values["task"]["data"] = values["task"].get("data") or str(path.parent.resolve())
    return parse_config(values, str(path))


def override_config(config: Config, overrides: list[str] | tuple[str, ...]) -> Config:
    """Override ``engine.*`` and ``cluster.*`` settings of a run that has begun.

    Raises:
        InputError: Another section is named; the other sections identify the run.
    """
    values = config.model_dump(mode="json")
    for override in overrides:
        section = override.partition(".")[0]
        if section not in HOW_SECTIONS:
            raise InputError("command line", override, "a run that has begun keeps its settings", "Only engine.* and cluster.* may change.")
        _apply(values, override)
    return parse_config(values, "command line")


def parse_config(values: Any, where: str) -> Config:
    """Check plain values against the settings; ``where`` names their source in an error."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        # Where a value may have several types, the error of the closest one.
        all_ = error.errors()
        same = [one for one in all_ if one["loc"][:2] == all_[0]["loc"][:2]]
        first = max(same, key=lambda one: (one["type"] == "value_error", len(one["loc"])))
        key = ".".join(_keys(values, first["loc"]))
        problem, fix = first["msg"].removeprefix("Value error, "), f"It is now {first['input']!r}."
        if first["type"] == "extra_forbidden":
            problem, fix = "unknown key", _nearest_key(key)
        if first["type"] == "missing":
            key, problem, fix = f"{key}.{first['loc'][-1]}".lstrip("."), "missing", "Add the key."
        raise InputError(where, key, problem, fix) from None


def read_config(run: RunFolder) -> Config:
    """The settings in a run folder.

    Raises:
        InputError: The folder holds no run.
    """
    if not run.exists(CONFIG):
        raise InputError(run.uri, CONFIG, "no such file, so this is no run folder", "Begin one with `divray run CONFIG --out RUN`.")
    where = f"{run.uri}/{CONFIG}"
    return parse_config(parse_yaml(run.read_text(CONFIG), where), where)


def _keys(values: Any, place: tuple[int | str, ...]) -> Iterator[str]:
    """The keys that lead to ``place``, without the type names that pydantic adds where a value may have several types."""
    for key in place:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return
        yield str(key)


def dump_config(config: Config) -> str:
    """The resolved settings as YAML, defaults included."""
    return dump_yaml(config.model_dump(mode="json"))


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError("command line", override, "not of the form section.key=value", "Write e.g. selection.k=8.")
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError("command line", key, f"`{section}` is no section", "See `divray plan` for the keys.")
        values = inner
    values[last] = parse_yaml(text, "command line", key)


def _nearest_key(key: str) -> str:
    model: type[BaseModel] = Config
    *sections, last = key.split(".")
    for section in sections:
        annotation = model.model_fields[section].annotation
        for kind in get_args(annotation) or (annotation,):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
    close = difflib.get_close_matches(last, model.model_fields, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"Known keys here: {', '.join(model.model_fields)}."
