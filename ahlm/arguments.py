"""Command lines that make a `Config`: a recipe or YAML file, then dotted overrides."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from ahlm.config import Config

DEMO_RECIPE, DATA_RECIPE = "demo", "thumos14"
_FIELDS = tuple(field.name for field in dataclasses.fields(Config))

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    files = (resources.files("ahlm") / "recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def recipe_path(name: str) -> str:
    """Path of a recipe given by name; any other text is returned as it is."""
    return str(resources.files("ahlm") / "recipes" / f"{name}.yaml") if name in recipes() else name


def config_parser(prog: str, description: str) -> ArgumentParser:
    """A parser of all fields of `Config`, as `--seed` or `--detector.latent_size`; callers add their own options."""
    usage = f"{prog} [--config NAME|FILE] [--data.root DIR] [options]"
    parser = ArgumentParser(prog=prog, description=description, usage=usage, allow_abbrev=False)
    parser.add_argument("--config", action="config", help=f"recipe ({', '.join(recipes())}) or YAML file")
    parser.add_class_arguments(Config)
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str]) -> tuple[Config, Namespace]:
    """The configuration and the caller's own options; exits with 2 on a wrong command line.

    Without `--config` the recipe is `demo`, or, with `--data.root`, the paper's (`thumos14`).
    """
    # the recipe goes first, so that overrides hold wherever they stand; --missing is spelled as in the other commands
    words, recipe, rest = iter(argv), None, []
    for word in words:
        if word == "--config":
            recipe = next(words, "")
        elif word.startswith("--config="):
            recipe = word.removeprefix("--config=")
        else:
            rest.append(word.replace("--missing", "--data.missing", 1) if word.startswith("--missing") else word)
    if recipe is None:
        recipe = DATA_RECIPE if any(word.split("=")[0] == "--data.root" for word in rest) else DEMO_RECIPE
    path = recipe_path(recipe)
    if not Path(path).is_file():
        parser.error(f"--config: expected a YAML file or one of {', '.join(recipes())}, got {recipe or 'nothing'}")
    argv = [f"--config={path}", *rest]
    try:
        namespace = parser.parse_args(argv)
    except TypeError as error:  # a group of fields that is null
        parser.error(str(error))
    own = Namespace(**{name: namespace[name] for name in vars(namespace) if name not in (*_FIELDS, "config")})
    try:
        return _instantiate(parser, {name: namespace[name] for name in _FIELDS}), own
    except ValueError as error:  # a setting that could not work
        parser.error(str(error))


def config_from(mapping: Mapping[str, Any]) -> Config:
    """A `Config` from nested plain values, as `config_mapping` makes them; unknown fields are errors."""
    parser = _field_parser()
    return _instantiate(parser, vars(parser.parse_object(dict(mapping))))


def config_mapping(config: Config) -> dict[str, Any]:
    """Nested plain values of a configuration: dicts, lists, numbers, strings."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return cast(dict[str, Any], plain(dataclasses.asdict(config)))


def load_recipe(name: str | Path, **overrides: Any) -> Config:
    """The configuration of a recipe or YAML file from Python; `overrides` replace top-level fields."""
    parser = _field_parser()
    namespace = parser.parse_path(recipe_path(str(name)))
    return dataclasses.replace(_instantiate(parser, vars(namespace)), **overrides)


@functools.cache
def _field_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Config)
    return parser


def _instantiate(parser: ArgumentParser, values: Mapping[str, Any]) -> Config:
    fields = Namespace(**{name: values[name] for name in _FIELDS})
    return Config(**vars(parser.instantiate(fields)))
