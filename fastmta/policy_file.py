"""Loads a policy: a Python module whose functions are the hooks of `policy.HOOKS`."""

import difflib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import Struct

from fastmta.policy import HOOKS

_LARGEST = 1 << 20  # octets
_MODULE = "fastmta_policy"  # its name in tracebacks and in sys.modules


class PolicyError(Exception):
    """The policy cannot be used; the text names the file, the line and why."""


class Policy(Struct, frozen=True):
    """The hooks that a module defines."""

    path: Path
    hooks: dict[str, Callable[..., Any]]


def load(path: Path) -> Policy:
    """Run the module and look at its functions; PolicyError."""
    module = ModuleType(_MODULE)
    module.__file__ = str(path)
    code = _compile(path)
    sys.modules[_MODULE] = module  # dataclasses and typing look there
    try:
        exec(code, module.__dict__)  # the operator's own code
    except (Exception, SystemExit) as error:
        raise PolicyError(f"{_place(path, error)}: {type(error).__name__}: {error}") from None
    hooks = {name: value for name, value in vars(module).items() if _is_meant(name, value)}
    problems = [text for name, hook in hooks.items() if (text := _problem(path, name, hook))]
    if not hooks:
        problems = [f"{path}: defines no hook; the hooks are {', '.join(HOOKS)}"]
    if problems:
        raise PolicyError("\n".join(problems))
    return Policy(path, hooks)


def _compile(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            source = file.read(_LARGEST + 1)
    except OSError as error:
        raise PolicyError(f"{path} cannot be read: {error.strerror}") from None
    if len(source) > _LARGEST:
        raise PolicyError(f"{path} is larger than {_LARGEST} octets")
    try:
        return compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise PolicyError(f"{path}, line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL, or nested too deep
        raise PolicyError(f"{path}: {error}") from None


def _place(path: Path, error: BaseException) -> str:
    """The file, and the last of its lines that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _is_meant(name: str, value: Any) -> bool:
    """Whether this is a hook, or was to be one."""
    return name in HOOKS or (name.startswith(("on_", "choose_")) and inspect.isfunction(value))


def _problem(path: Path, name: str, hook: Any) -> str:
    """What is wrong with one function, or nothing."""
    line = inspect.unwrap(hook).__code__.co_firstlineno if inspect.isfunction(hook) else 0
    where = f"{path}, line {line}" if line else str(path)
    if name not in HOOKS:
        near = difflib.get_close_matches(name, HOOKS, 1, 0.0)[0]
        return f"{where}: there is no hook {name}; did you mean {near}?"
    if not callable(hook):
        return f"{where}: {name} is no function"
    if inspect.isgeneratorfunction(hook) or inspect.isasyncgenfunction(hook):
        return f"{where}: {name} has a yield in it; a hook returns its answer"
    return _wrong_arguments(where, name, hook)


def _wrong_arguments(where: str, name: str, hook: Callable[..., Any]) -> str:
    signature = inspect.signature(hook)
    try:
        signature.bind(*HOOKS[name])
    except TypeError:
        called = f"{name}({', '.join(HOOKS[name])})"
        return f"{where}: {name}{signature} cannot be called as {called}"
    return ""
