"""Settings as plain values, as YAML keeps them, and back: what a dataclass of settings holds, components among it.

    SAEConfig(n_latents=32, activation=TopK(k=4))
    {"n_latents": 32, "activation": {"class_path": "TopK", "init_args": {"k": 4}}}

What is None is left out. What a value should be is read from type hints. A component is looked up by its class's name
among the discovered ones: whatever path a file gives, nothing is imported. What YAML files look like is for
`saelab.core.read`, which settings there are for the dataclasses.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from saelab.core.components import Component, kind_of, near_miss
from saelab.core.read import fits, type_words


class Config:
    """Base of a dataclass of settings: from plain values and to them."""

    beside: ClassVar[str | None] = None
    """The part whose settings stand beside the others in a file, not in a table of their own."""
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The inverse of `settings()`; what is left out has its default.

        Args:
            settings: plain values; components by their class's name, or as `settings()` writes them.

        Raises:
            ValueError: for a setting or component that there is not, with the near miss, or a value of another kind.
        """
        if cls.beside is not None:
            others = cls.__dataclass_fields__.keys() - {cls.beside}
            inner = list(get_type_hints(cls)[cls.beside].__dataclass_fields__)
            _check_table(settings, [*others, *inner], "")
            apart = {key: value for key, value in settings.items() if key in others}
            settings = apart | {cls.beside: {key: settings[key] for key in settings if key in inner}}
        made: Self = _of_hint(cls, settings, "")
        return made

    def settings(self) -> dict[str, Any]:
        """Plain values, as a YAML file keeps them: what is None is left out, a component is its class and arguments."""
        found: dict[str, Any] = plain(self)
        return found if self.beside is None else found.pop(self.beside) | found


def plain(value: Any) -> Any:
    """A value as a YAML file keeps it."""
    if isinstance(value, Component):
        arguments = _present({key: getattr(value, key) for key in value.options()})
        return {"class_path": type(value).__name__} | ({"init_args": arguments} if arguments else {})
    if is_dataclass(value):
        return _present({part.name: getattr(value, part.name) for part in fields(value)})
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {key: plain(part) for key, part in values.items() if part is not None}


def component_kinds(config: type) -> Iterator[type[Component]]:
    """The kinds of components that a dataclass of settings, and those in it, hold."""
    for name in config.__dataclass_fields__:  # type: ignore[attr-defined]
        for kind in classes_in(get_type_hints(config)[name]):
            if issubclass(kind, Component):
                yield kind
            elif is_dataclass(kind):
                yield from component_kinds(kind)


def classes_in(hint: Any) -> Iterator[type]:
    """The classes that a type hint names."""
    if get_origin(hint) is not None:
        for part in get_args(hint):
            yield from classes_in(part)
    elif isinstance(hint, type):
        yield hint


def _of_hint(hint: Any, value: Any, name: str) -> Any:
    """What a plain value stands for where a type is asked for; ValueError that names the setting."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    for kind in kinds:
        if inspect.isclass(kind) and issubclass(kind, Component):
            return _component(kind, value, name)
        if is_dataclass(kind):
            return _dataclass(kind, value, name)
        if get_origin(kind) in (list, Sequence) and isinstance(value, list | tuple):
            return [_of_hint(get_args(kind)[0], part, name) for part in value]
    if float in kinds and int not in kinds and type(value) in (int, str):
        with suppress(ValueError, OverflowError):
            value = float(value)  # YAML reads 1e-3 as a text
    if not fits(value, kind_of(hint)):
        raise ValueError(f"{name} must be {type_words(kind_of(hint))}, got {_short(value)}")
    return value


def _dataclass(kind: Any, value: Any, name: str) -> Any:
    hints = {key: hint for key, hint in get_type_hints(kind).items() if key in kind.__dataclass_fields__}
    if isinstance(value, Mapping) and value.keys() <= {"class_path", "init_args"} and "class_path" in value:
        if str(value["class_path"]).rpartition(".")[2] != kind.__name__:
            raise ValueError(f"{name} must be a {kind.__name__}, got a {value['class_path']}")
        value = value.get("init_args", {})
    _check_table(value, hints, name)
    return kind(**{key: _of_hint(hints[key], part, f"{name}.{key}".lstrip(".")) for key, part in value.items()})


def _component(kind: type[Component], value: Any, name: str) -> Component:
    value = {"class_path": value} if isinstance(value, str) else value
    _check_table(value, ("class_path", "init_args"), name)
    path, arguments = value.get("class_path"), value.get("init_args", {})
    if not isinstance(path, str):
        raise ValueError(f"{name} needs a class_path, the name of a class, got {_short(path)}")
    package, _, short = path.rpartition(".")
    variants = kind.variants()
    if short not in variants or (package and package.partition(".")[0] != variants[short].__module__.partition(".")[0]):
        raise ValueError(f"{name}: unknown component '{path}'{near_miss(short, variants)}")
    _check_table(arguments, variants[short].options(), f"{name}: {short}")
    hints = get_type_hints(inspect.getattr_static(variants[short], "__init__"))
    parts = {key: _of_hint(hints.get(key, Any), part, f"{name}: {short}: {key}") for key, part in arguments.items()}
    try:
        return kind.build({"name": short} | parts)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_table(value: Any, known: Sequence[str] | Mapping[str, Any], name: str) -> None:
    """ValueError unless a value is a table with no other keys than these."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name or 'a config'} must be a table of settings, got {_short(value)}")
    for key in value:
        if key not in known:
            raise ValueError(f"unknown option '{key}'{f' of {name}' if name else ''}{near_miss(str(key), known)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."
