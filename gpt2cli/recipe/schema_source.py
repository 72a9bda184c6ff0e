"""The keys of recipes, read from the schema's source without running it.

For shell completion: pydantic and its classes take half a second to import on a slow machine, and a key
press should not. A test compares with `recipe_fields`.
"""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = ("sections.py", "data_sections.py", "schema.py")


@dataclass(frozen=True)
class SourceKey:
    """A key, the line of help beside it, and the words that are its values, if it takes certain ones."""

    name: str
    meaning: str
    choices: tuple[str, ...]


def source_keys(task: str) -> list[SourceKey]:
    """The keys of a task's recipes, with dots."""
    body = [node for name in SOURCES for node in _parsed(Path(__file__).with_name(name))]
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    constants: dict[str, Any] = {
        node.targets[0].id: node.value
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    kind = next(
        name
        for name, node in classes.items()
        for field in node.body
        if isinstance(field, ast.AnnAssign)
        and ast.unparse(field.target) == "task"
        and f"'{task}'" in ast.unparse(field.annotation)
    )
    return list(_keys(kind, "", classes, constants).values())


def _keys(
    kind: str, prefix: str, classes: dict[str, ast.ClassDef], constants: dict[str, Any]
) -> dict[str, SourceKey]:
    found: dict[str, SourceKey] = {}
    for base in classes[kind].bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found |= _keys(base.id, prefix, classes, constants)
    for field in classes[kind].body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        name, section = f"{prefix}{field.target.id}", field.annotation
        if isinstance(section, ast.Name) and section.id in classes:
            found |= _keys(section.id, f"{name}.", classes, constants)
            continue
        given = [
            keyword.value for keyword in getattr(field.value, "keywords", []) if keyword.arg == "description"
        ]
        meaning = _text(given[0], constants) if given else ""
        found[name] = SourceKey(name, meaning, tuple(_choices(field.annotation, constants)))
    return found


def _choices(annotation: ast.AST, constants: dict[str, Any]) -> list[str]:
    if isinstance(annotation, ast.Name):
        if annotation.id == "bool":
            return ["true", "false"]
        return _choices(constants[annotation.id], constants) if annotation.id in constants else []
    if isinstance(annotation, ast.BinOp):  # Literal[...] | None
        return _choices(annotation.left, constants) + _choices(annotation.right, constants)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        return [str(node.value) for node in ast.walk(annotation.slice) if isinstance(node, ast.Constant)]
    return []


def _text(node: ast.AST, constants: dict[str, Any]) -> str:
    """A string, or an f-string of constants."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, constants) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, constants)
    if isinstance(node, ast.Name):
        return _text(constants[node.id], constants)
    return str(node.value) if isinstance(node, ast.Constant) else ""


def _parsed(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_bytes()).body
