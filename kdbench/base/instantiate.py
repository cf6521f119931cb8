"""Builds objects from configuration: the only place where a name in a YAML file becomes code."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kdbench.errors import KDBenchError, nearest


def locate(target: str) -> Callable[..., Any]:
    """Imports the class or function named by ``package.module.Name``.

    Raises:
        KDBenchError: The module or name does not exist, or a package that it needs is missing.
    """
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(missing + "."):
            raise KDBenchError(
                f"_target_ {target!r}: there is no module {missing!r} (PYTHONPATH=. for code in this folder)"
            ) from None
        raise KDBenchError(f"{target} needs the package {missing!r}: run `make setup`") from None
    except ValueError:
        raise KDBenchError(f"_target_ {target!r} is not of the form package.module.Name") from None
    if not hasattr(module, name):
        raise KDBenchError(f"_target_ {target!r}: {module_name} has no {name!r}: {nearest(name, vars(module))}")
    return getattr(module, name)


def check(where: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Checks options against a signature's names and types.

    Args:
        where: Configuration key, for the error line.
        function: Class or function that will be called.
        options: Keyword arguments as plain containers.

    Returns:
        The options, converted to the annotated types.

    Raises:
        KDBenchError: An unknown or missing option or one of another type.
    """
    parameters = inspect.signature(function, eval_str=True).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(options)
    checked = {}
    for name, value in options.items():
        if name not in parameters:
            raise KDBenchError(f"{where}.{name}: unknown key: {nearest(name, parameters)}")
        checked[name] = converted(f"{where}.{name}", parameters[name].annotation, value)
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in checked and n != "self"]
    if missing:
        raise KDBenchError(f"{where}.{missing[0]}: this key is required by {function.__name__}")
    return checked


def converted(where: str, annotation: Any, value: Any) -> Any:
    """Converts a value of the configuration to the type of a parameter, where one is named.

    Raises:
        KDBenchError: It cannot be; the line says what was found at which key, and what was expected.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if annotation is inspect.Parameter.empty:
        return value
    try:
        result = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *(str(part) for part in first["loc"] if isinstance(part, int))])
        message = first["msg"][0].lower() + first["msg"][1:]
        raise KDBenchError(f"{place}: found {first['input']!r}; {message}") from None
    if isinstance(value, bool) and not isinstance(result, bool):  # to pydantic, true is 1
        raise KDBenchError(f"{where}: found {value!r}; input should be a valid number")
    return result


def instantiate(where: str, spec: Mapping[str, Any], **extra: Any) -> Any:
    """Creates ``spec._target_`` with the other keys of ``spec`` as checked options.

    Args:
        where: Configuration key of ``spec``, for error lines.
        spec: Mapping with ``_target_``.
        extra: Further arguments that do not come from the configuration.
    """
    target = locate(spec["_target_"])
    options = {k: v for k, v in spec.items() if k != "_target_"}
    return target(**check(where, target, {**options, **extra}))
