"""All SQL texts of the program: what its modules hold as constants, and the literals in its functions."""

import ast
import functools
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import keystead
from keystead.store import schema

_SQL = re.compile(r"\s*(?:WITH|SELECT|INSERT INTO|UPDATE|DELETE FROM)\s", re.ASCII)
_WHOLE = re.compile(r"(?i)\b(?:FROM|SET|INTO|SELECT)\b")


@functools.cache
def texts() -> Mapping[str, str]:
    """SQL by the place where it stands."""
    found: dict[str, str] = {}
    for module in modules():
        for name, value in vars(module).items():
            for index, text in enumerate(_within(value)):
                found.setdefault(text, f"{module.__name__}.{name}[{index}]")
        for line, text in _literals(module):
            found.setdefault(text, f"{module.__name__}:{line}")
    return {place: text for text, place in found.items()}


@functools.cache
def migrations() -> Mapping[str, str]:
    """Each statement of each migration, by its place."""
    return {
        f"{each.name}[{index}]": statement
        for each in schema.migrations()
        for index, statement in enumerate(schema.statements(each.sql))
    }


def modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(keystead.__path__, "keystead."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def _within(value: object) -> Iterator[str]:
    if isinstance(value, str):
        # A fragment with a placeholder is part of others.
        if _SQL.match(value) and _WHOLE.search(value) and not re.search(r"\{\w*\}", value):
            yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _within(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _within(each)


def _literals(module: ModuleType) -> Iterator[tuple[int, str]]:
    tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            # Parts of an f-string are no statements.
            parts = {id(part) for each in ast.walk(function) if isinstance(each, ast.JoinedStr) for part in each.values}
            for node in ast.walk(function):
                if isinstance(node, ast.Constant) and id(node) not in parts:
                    for text in _within(node.value):
                        yield node.lineno, text
