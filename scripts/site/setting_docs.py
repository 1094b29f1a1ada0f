"""Settings describe themselves: ``setting(3, "Attempts of a call at the most.")``."""

import ast
from typing import Any

import griffe

__all__ = ["SettingDocs"]


class SettingDocs(griffe.Extension):
    """Takes the description and the default of a setting from its declaration."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Called with each attribute that is found."""
        match node:
            case ast.AnnAssign(value=ast.Call(func=ast.Name(id="setting"), args=[default, text])):
                attr.docstring = griffe.Docstring(ast.literal_eval(text), parent=attr)
                attr.value = griffe.get_expression(default, parent=attr.parent)
            case _:
                pass
