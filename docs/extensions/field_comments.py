"""Griffe extension: the comment beside a field, such as its shape, is the field's description."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Gives every annotated attribute without a docstring the comment of its own lines."""

    def on_attribute_instance(
        self, *, node: Any, attr: griffe.Attribute, agent: Any, **kwargs: Any
    ) -> None:
        if attr.docstring is not None or not isinstance(node, ast.AnnAssign):
            return
        comment = comments_of(attr.filepath, node.lineno, node.end_lineno or node.lineno)
        if comment:
            attr.docstring = griffe.Docstring(comment, lineno=node.lineno, parent=attr)

    def on_package(self, *, pkg: griffe.Module, loader: Any, **kwargs: Any) -> None:
        """Names that a package imports from its own modules are documented there, once."""
        for module in [pkg, *pkg.modules.values()]:
            drop_exports(module)


def drop_exports(module: griffe.Module) -> None:
    if module.is_package or module.is_subpackage:
        module.exports = None
    for inner in module.modules.values():
        if not inner.is_alias:
            drop_exports(inner)


def comments_of(path: Path | list[Path], first: int, last: int) -> str:
    """The comments of some lines of a file, and of the comment lines right below, as one text."""
    if isinstance(path, list):
        return ""
    lines = path.read_text().splitlines()
    while last < len(lines) and lines[last].lstrip().startswith("#"):
        last += 1
    found = []
    for token in tokenize.generate_tokens(io.StringIO("\n".join(lines) + "\n").readline):
        if token.type == tokenize.COMMENT and first <= token.start[0] <= last:
            found.append(token.string.lstrip("# "))
    return " ".join(found)
