"""LightRAG with one private name called otherwise, for each of them.

``python renamed_lightrag.py`` prints a line of JSON for each name, with what `doctored_lightrag`
finds. Each has a fork of its own, which imports LightRAG anew from code with another name.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

OTHERWISE = b"called_otherwise"
IMPORTED_ANEW = re.compile(
    r"(lightrag|lightrag_resilience\.(integrations\.lightrag|cli)|support)(\.|$)"
)
FINDINGS = "support.doctored_lightrag"


class Renaming(importlib.machinery.SourceFileLoader):
    """Loads a module of LightRAG's, in whose code a name is replaced."""

    def __init__(self, fullname: str, path: str, renamed: Any) -> None:
        super().__init__(fullname, path)
        self.renamed = renamed

    def get_data(self, path: str) -> bytes:
        data, name = super().get_data(path), self.renamed.name.encode()
        if self.renamed.is_text:
            is_its_file = path.replace(os.sep, "/").endswith(f"/lightrag/{self.renamed.holder}")
            return data.replace(name, b"") if is_its_file else data
        return re.sub(rb"\b%s\b" % name, OTHERWISE, data) if path.endswith(".py") else data

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        data = self.get_data(path)
        is_changed = OTHERWISE in data  # else the compiled code is right
        return self.source_to_code(data, path) if is_changed else super().get_code(fullname)


class Finder:
    """Has LightRAG's modules loaded by `Renaming`."""

    def __init__(self, renamed: Any) -> None:
        self.renamed = renamed

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if not re.match(r"lightrag(\.|$)", fullname):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Renaming(fullname, spec.loader.path, self.renamed)
        return spec


def found_without(name: Any) -> dict[str, Any]:
    """What is found with a LightRAG that lacks a name."""
    for module in filter(IMPORTED_ANEW.match, [*sys.modules]):
        del sys.modules[module]
    finder: Any = Finder(name)
    sys.meta_path.insert(0, finder)
    found: dict[str, Any] = importlib.import_module(FINDINGS).findings(name.seams[0])
    return found


def main() -> None:
    names = importlib.import_module(FINDINGS).PRIVATE_NAMES  # and all that forks import again
    for number, name in enumerate(names):
        if not (child := os.fork()):
            try:
                found = found_without(name)
            except Exception:  # noqa: BLE001 - the test shows it
                found = {"error": traceback.format_exc()}
            sys.stdout.write(json.dumps({"number": number, **found}) + "\n")
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
