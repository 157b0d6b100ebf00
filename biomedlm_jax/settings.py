"""Settings: frozen dataclasses whose fields state what they allow and are checked when built.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Checkpoint(Settings):
        group = "checkpoint"
        every: int = setting(1_000, least=1, free=True)  # steps

A config file's group becomes such an object with `read_settings`; nested Settings are nested
groups. A value that is `free` may change when a run is resumed.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from biomedlm_jax.errors import InputError

S = TypeVar("S", bound="Settings")

_OPERATORS = {
    "least": ("at least", lambda value, bound: value >= bound),
    "most": ("at most", lambda value, bound: value <= bound),
    "above": ("above", lambda value, bound: value > bound),
    "below": ("below", lambda value, bound: value < bound),
}
_WORDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a string"}
LARGEST_INT, LARGEST_FLOAT = 2**53, 3.4e38  # numbers that JSON and float32 hold


def setting(
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple | None = None,
    free: bool = False,
    help: str = "",
) -> Any:
    """Return a dataclass field with bounds (`least` and `most` inclusive) or `choices`.

    `free`: a run may be resumed with another value. `help`: what the value does, and its unit.
    """
    bounds = {"least": least, "most": most, "above": above, "below": below}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    metadata = {"bounds": bounds, "choices": choices, "free": free, "help": help}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A group of settings; `group` is its name in messages. Raises InputError for a bad value."""

    group: ClassVar[str] = ""

    def __post_init__(self):
        """Raise InputError for the first field of another type, not finite or out of its bounds."""
        prefix, hints = f"{self.group}." if self.group else "", _hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            allowed = _unmet(value, hints[field.name], field.metadata)
            if allowed:
                raise InputError(f"got {prefix}{field.name}={value!r}; expected {allowed}")

    @classmethod
    def free_names(cls) -> set[str]:
        """Names of the settings that a resumed run may change."""
        return {f.name for f in dataclasses.fields(cls) if f.metadata.get("free")}


def read_settings(cls: type[S], values: Any, *, where: str = "config") -> S:
    """Build `cls` from a config group that has exactly its fields; nested Settings recursively.

    Raises InputError naming the first name that is unknown or missing, or a bad value.
    """
    hints = _hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    check_names(values, names, where=where)
    arguments = {}
    for name in names:
        value, hint = values[name], hints[name]
        if isinstance(hint, type) and issubclass(hint, Settings):
            value = read_settings(hint, value, where=f"{where}.{name}")
        elif hasattr(value, "to_dict"):  # a ConfigDict
            value = value.to_dict()
        arguments[name] = value
    return cls(**arguments)


def check_names(values: Any, known: typing.Iterable[str], *, where: str, complete=True) -> None:
    """Raise InputError unless `values` is a group with no unknown name (and with all, if so)."""
    known = list(known)
    if not (hasattr(values, "keys") and hasattr(values, "__getitem__")):
        raise InputError(f"got {where}={values!r}; expected a group with {', '.join(known)}")
    unknown = sorted(set(map(str, values.keys())) - set(known))
    missing = [name for name in known if complete and name not in values]
    if unknown:
        raise InputError(f"got {where}.{unknown[0]}, which is unknown; known: {', '.join(known)}")
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}; set every value in the config file")


def check_object(value: Any, what: str) -> dict[str, Any]:
    """Return a JSON object, {} for null; raise InputError, which begins with `what`, otherwise."""
    if not (value is None or isinstance(value, dict)):
        raise InputError(f"{what} of type {type(value).__name__}; expected an object")
    return value or {}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _unmet(value: Any, hint: Any, metadata: Mapping[str, Any]) -> str | None:
    """What is allowed, if `value` is not; else None."""
    if not _has_type(value, hint):
        return _name(hint)
    choices, bounds = metadata.get("choices"), metadata.get("bounds", {})
    if choices and value not in choices:
        return f"one of {', '.join(map(str, choices))}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        unmet = [name for name, bound in bounds.items() if not _OPERATORS[name][1](value, bound)]
        if unmet:
            return " and ".join(f"{_OPERATORS[n][0]} {bound}" for n, bound in bounds.items())
    return None


def _has_type(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_has_type(value, one) for one in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_has_type(v, arguments[0]) for v in value)
    if origin is not None:
        return isinstance(value, origin)
    if hint is Any:
        return True
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= LARGEST_FLOAT  # not NaN either
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and abs(value) <= LARGEST_INT
    return value is None if hint is types.NoneType else isinstance(value, hint)


def _name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_name(one) for one in arguments)
    if origin is tuple:
        return f"a tuple, each {_name(arguments[0])}"
    return "None" if hint is types.NoneType else _WORDS.get(hint, getattr(hint, "__name__", "it"))
