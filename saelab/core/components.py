"""Components: plain classes whose constructor is their configuration, found by looking into their folder.

A kind of component (activation, loss, dictionary, metric) is a base class that names the package its variants live
in. A new variant is one new file there; saved files and the command line find it by its class name. Names that come
from files are looked up among the discovered classes and never imported as paths.

Variants may live in a distribution of their own. It announces its package in an entry point, in the group named like
the kind's own package:

    [project.entry-points."saelab.sae.activations"]
    mine = "my_package.activations"
"""

import difflib
import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from saelab.core.read import fits, type_words

MANY = 40
"""More names than these are not listed."""


def near_miss(name: str, known: Iterable[str]) -> str:
    """The words "; did you mean 'k'?" for a name close to a known one, otherwise the known names, or some of many."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    if len(known) > MANY:
        return f"; there are {len(known):,}, such as {', '.join(known[:3])}"
    return f"; there are: {', '.join(known)}" if known else ""


def check_kinds(built: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """ValueError if an argument read from a file is not of the plain type that a constructor's signature asks for.

    Only numbers, booleans, strings, lists of these and None are checked; others are left to the constructor.
    """
    hints = get_type_hints(inspect.getattr_static(built, "__init__"))
    for key, value in arguments.items():
        hint = hints.get(key, Any)
        if not fits(value, kind_of(hint)):
            raise ValueError(f"{built.__name__}: {key} must be {type_words(kind_of(hint))}, got {value!r}")


def kind_of(hint: Any) -> Any:
    """A signature's annotation as `saelab.core.read` says what is expected; Any for one that it cannot."""
    if get_origin(hint) in (Union, UnionType):
        kinds = tuple(kind_of(part) for part in get_args(hint))
        return Any if Any in kinds else kinds
    if get_origin(hint) in (list, Sequence):
        return [kind_of(get_args(hint)[0])]
    if get_origin(hint) is Literal:
        return get_args(hint)
    return None if hint is NoneType else hint if hint in (int, float, bool, str) else Any


class Component:
    """Base of everything that is chosen by name.

    The constructor's parameters are the configuration: each is kept unchanged in an attribute of the same name.
    """

    in_use: bool = False
    """Whether it was given to an owner, whose sizes it has learnt."""
    home: ClassVar[str]
    """The package that holds one file per variant, e.g. "saelab.sae.activations"."""

    @classmethod
    def homes(cls) -> tuple[str, ...]:
        """The packages that hold variants: our own, then those that installed distributions announce."""
        return cls.home, *_announced(cls.home)

    @classmethod
    def variants(cls) -> dict[str, type[Self]]:
        """Every variant of this kind by class name, importing the files of its package and of those below it."""
        for home in cls.homes():
            package = importlib.import_module(home)
            for module in pkgutil.walk_packages(package.__path__, prefix=home + "."):
                importlib.import_module(module.name)
        found, queue = {}, list(cls.__subclasses__())
        while queue:
            variant = queue.pop()
            queue += variant.__subclasses__()
            if not inspect.isabstract(variant):
                found[variant.__name__] = variant
        return dict(sorted(found.items()))

    @classmethod
    def named(cls, name: str) -> type[Self]:
        """The variant of this kind with that class name; ValueError with the near miss if there is none."""
        variants = cls.variants()
        if name not in variants:
            raise ValueError(f"unknown {cls.__name__.lower()} '{name}'{near_miss(name, variants)}")
        return variants[name]

    @classmethod
    def options(cls) -> list[str]:
        """Names of the constructor's parameters."""
        return list(inspect.signature(cls).parameters)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON-able values, with the class name under "name"."""
        return {"name": type(self).__name__} | {key: getattr(self, key) for key in self.options()}

    def sentence(self) -> str:
        """The component as one writes it, "TopK(k=32)"."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.config().items() if key != "name")
        return f"{type(self).__name__}({arguments})"

    @classmethod
    def unused(cls, component: Any) -> Self:
        """A component of this kind for a new owner: itself, or one of the same settings if it has an owner already.

        Raises:
            ValueError: if it is no component of this kind; the message says what to write.
        """
        if isinstance(component, cls):
            if not component.in_use:
                return component
            return type(component)(**{key: getattr(component, key) for key in component.options()})
        if isinstance(component, type) and issubclass(component, cls):
            raise ValueError(f"{component.__name__} is given as a class; write {component.__name__}()")
        known = {name.lower(): name for name in cls.variants()}
        word = component.lower() if isinstance(component, str) else ""
        close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
        example = known[close[0]] if close else next(iter(known.values()))
        kind, got = cls.__name__.lower(), repr(component) if word else f"something of type {type(component).__name__}"
        raise ValueError(f"expected {'an' if kind[0] in 'aeiou' else 'a'} {kind} such as {example}(), got {got}")

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Self:
        """The component a `config()` describes; ValueError for an unknown name or key."""
        kind = cls.__name__.lower()
        if not isinstance(config, Mapping) or not isinstance(config.get("name"), str):
            article = "an" if kind[0] in "aeiou" else "a"
            raise ValueError(f"{article} {kind} needs a 'name', its class, in a table of settings; got {config!r}")
        variant = cls.named(config["name"])
        arguments = {key: value for key, value in config.items() if key != "name"}
        for key in arguments:
            if key not in variant.options():
                where = f"{kind} {variant.__name__}"
                raise ValueError(f"unknown key '{key}' of {where}{near_miss(key, variant.options())}")
        check_kinds(variant, arguments)
        needed = [key for key, part in inspect.signature(variant).parameters.items() if part.default is part.empty]
        if missing := [key for key in needed if key not in arguments]:
            raise ValueError(f"{variant.__name__} needs {', '.join(missing)}")
        return variant(**arguments)


def import_variants(module: str, kind: str) -> Callable[[str], type[Component]]:
    """A package's `__getattr__` that finds variants of a kind by class name, so that they can be imported from it.

    Args:
        module: where the kind is defined; imported when the first variant is asked for.
        kind: the base class's name.
    """

    def find(name: str) -> type[Component]:
        if not name[:1].isupper():  # a file of the package, or what Python itself looks for
            raise AttributeError(name)
        base: type[Component] = getattr(importlib.import_module(module), kind)
        variants = base.variants()
        if name not in variants:
            raise AttributeError(f"there is no {kind.lower()} '{name}'{near_miss(name, variants)}")
        return variants[name]

    return find


@cache
def _announced(home: str) -> tuple[str, ...]:
    """Packages that installed distributions announce for a kind, those that cannot be imported being an error."""
    packages = []
    for point in importlib.metadata.entry_points(group=home):
        try:
            importlib.import_module(point.value)
        except ImportError as error:
            raise ValueError(f"the plug-in '{point.name}' for {home} cannot be imported: {error}") from error
        packages.append(point.value)
    return tuple(sorted(set(packages)))
