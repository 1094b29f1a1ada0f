"""The public modules and names of the package, found in its pages and its source.

A module is public if a page or an example names it. Its public names are those of its ``__all__``,
and those that a page names by their whole path. Nothing is imported.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

__all__ = ["Group", "PublicModule", "public_modules", "undocumented"]

ROOT = Path(__file__).parents[2]
PACKAGE = "lightrag_resilience"
_PATH = re.compile(rf"\b{PACKAGE}(?:\.[A-Za-z_]\w*)+")
_PUBLIC = ("events", "integrations", "shutdown", "telemetry", "testing")  # subjects for users
_HEADINGS = {  # of the names of the root, by the module that defines them
    "_version": "Version",
    "circuit.state_machine": "States of a circuit",
    "calls.deadline": "Time",
    "composition.collect": "Combined calls",
    "composition.fallback": "Combined calls",
    "composition.hedging": "Combined calls",
    "composition.stale_cache": "Combined calls",
    "config.policies": "Policies",
    "errors": "Errors",
    "failures.classifier": "Failures",
    "failures.failover": "Failures",
    "integrations.lightrag": "A whole LightRAG",
    "integrations.lightrag.work.query_errors": "A whole LightRAG",
    "limits.priority": "Priority",
    "pipeline.decorators": "Guards",
    "pipeline.guard": "Guards",
    "pipeline.registry": "Guards",
    "verdicts": "Failures",
}
_FIRST = ("A whole LightRAG", "Guards", "Policies", "Errors", "Failures", "Combined calls")


@dataclass(frozen=True)
class Group:
    """Names of one subject, below one heading; an empty one where the module is small."""

    heading: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class PublicModule:
    """A module and what it exports."""

    name: str
    named_by_pages: frozenset[str] = frozenset()

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed source."""
        return _tree(self.name)

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (ast.get_docstring(self.tree) or "").partition("\n")[0]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Each public name."""
        return tuple(sorted({*_exported(self.name), *self.named_by_pages}, key=str.lower))

    def path(self, name: str) -> str:
        """Where a tool finds a name: in the module, or where it is defined if imported on use."""
        is_lazy = name in self.named_by_pages and name not in _exported(self.name)
        return f"{_definition(self.name, name)[0] if is_lazy else self.name}.{name}"

    @property
    def groups(self) -> list[Group]:
        """The names by subject: those of the root by the module that defines them."""
        if self.name != PACKAGE:
            return [Group("", self.names)]
        by_heading: dict[str, list[str]] = {}
        for name in self.names:
            home = _definition(self.name, name)[0].removeprefix(f"{PACKAGE}.")
            by_heading.setdefault(_HEADINGS.get(home, "More"), []).append(name)
        order = [*_FIRST, *sorted(by_heading.keys() - set(_FIRST))]
        return [Group(each, tuple(by_heading[each])) for each in order if each in by_heading]


def public_modules() -> list[PublicModule]:
    """All public modules, the root first."""
    named: dict[str, set[str]] = {PACKAGE: set(), f"{PACKAGE}.events": set()}
    for subject in ("integrations", "testing"):  # what their packages export, named or not
        for path in ROOT.glob(f"src/{PACKAGE}/{subject}/**/__init__.py"):
            module = ".".join(path.parent.relative_to(ROOT / "src").parts)
            if _exported(module):
                named[module] = set()
    for text in _pages():
        for path in _PATH.findall(text):
            module, name = (path, "") if _file(path) else path.rpartition(".")[::2]
            if path.split(".")[1] in _PUBLIC and _file(module) and _exported(module):
                named.setdefault(module, set()).update({name} if name[:1].isupper() else ())
    return [PublicModule(module, frozenset(names)) for module, names in sorted(named.items())]


def undocumented(module: PublicModule) -> Iterator[str]:
    """The public names, methods and properties without a docstring."""
    for name in module.names:
        home, node = _definition(module.name, name)
        path = f"{module.name}.{name}"
        match node:
            case ast.ClassDef():
                if not ast.get_docstring(node):
                    yield path
                yield from (f"{path}.{each}" for each in _bare_methods(node))
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if not ast.get_docstring(node):
                    yield path
            case _:
                if not _is_described(_tree(home), node):
                    yield path


def _pages() -> Iterator[str]:
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.py")]:
        yield path.read_text(encoding="utf-8")


def _file(module: str) -> Path | None:
    base = ROOT.joinpath("src", *module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@cache
def _tree(module: str) -> ast.Module:
    path = _file(module)
    if path is None:
        raise ModuleNotFoundError(module)
    return ast.parse(path.read_text(encoding="utf-8"))


def _exported(module: str) -> list[str]:
    """The ``__all__`` of a module, also where it is added to."""
    names: list[str] = []
    for statement in _tree(module).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                names += ast.literal_eval(value)
            case ast.AugAssign(
                target=ast.Name(id="__all__"), value=ast.Attribute(value=ast.Name(id=other))
            ):
                names += _exported(f"{module}.{other}")
    return names


def _definition(module: str, name: str) -> tuple[str, ast.stmt | None]:
    """The module that defines a name, and how; follows imports."""
    path = _file(module)
    is_package = bool(path) and path.name == "__init__.py"
    stars = []
    for statement in ast.walk(_tree(module)):
        match statement:
            case (
                ast.ClassDef(name=own, decorator_list=marks)
                | ast.FunctionDef(name=own, decorator_list=marks)
                | ast.AsyncFunctionDef(name=own, decorator_list=marks)
            ) if own == name and not _has_mark(marks, "overload"):
                return module, statement
            case (
                ast.Assign(targets=[ast.Name(id=own)]) | ast.AnnAssign(target=ast.Name(id=own))
            ) if own == name:
                return module, statement
            case ast.ImportFrom(module=source, names=names, level=level):
                base = module.split(".")
                base = base[: len(base) - level + is_package] if level else []
                target = ".".join([*base, *([source] if source else [])])
                if name in {each.asname or each.name for each in names} and _file(target):
                    return _definition(target, name)
                if names[0].name == "*":
                    stars.append(target)
    for target in stars:
        found = _definition(target, name)
        if found[1] is not None:
            return found
    return module, None


def _bare_methods(node: ast.ClassDef) -> Iterator[str]:
    """Public methods without a docstring; those that set a property have its getter's."""
    for child in node.body:
        if (
            isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            and not child.name.startswith("_")
            and not ast.get_docstring(child)
            and not _has_mark(child.decorator_list, "setter", "overload", "override")
        ):
            yield child.name


def _has_mark(marks: list[ast.expr], *names: str) -> bool:
    """Whether one of these decorators is among those of a definition."""
    found = {mark.attr if isinstance(mark, ast.Attribute) else getattr(mark, "id", "")
             for mark in marks}  # fmt: skip
    return not found.isdisjoint(names)


def _is_described(tree: ast.Module, node: ast.stmt | None) -> bool:
    """Whether a string follows an assignment, by which tools show what a constant is."""
    for before, after in zip(tree.body, tree.body[1:], strict=False):
        if before is node:
            return isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return False
