"""Which seams of the installed LightRAG are guarded."""

from __future__ import annotations

import lightrag

from lightrag_resilience.config.process_environment import chosen_storages
from lightrag_resilience.integrations.lightrag.compat import STORAGES, registered_storages
from lightrag_resilience.integrations.lightrag.coverage import TO_DO, Cover, Coverage, Seam
from lightrag_resilience.text import printable

from .policy_checks import Finding, Level

__all__ = ["LIGHTRAG", "examine_lightrag"]

LIGHTRAG = f"LightRAG {lightrag.__version__}"


def examine_lightrag(*, strict: bool) -> tuple[list[Seam], list[Finding]]:
    """The seams of the installed LightRAG, and findings on those that are not guarded.

    Args:
        strict: Whether `protect` refuses such a LightRAG.
    """
    coverage, registered = Coverage(), registered_storages()
    for attribute, kind in STORAGES.items():
        variable, chosen = chosen_storages()[kind]
        if registered and chosen not in registered:
            reason = f"{variable} is {printable(chosen)}, which an application must register"
            coverage.add(f"storage.{attribute}", Cover.UNKNOWN, reason)
    seams = list(coverage.seams())
    level = Level.ERROR if strict else Level.WARNING
    unguarded: dict[str, list[str]] = {}
    for it in seams:
        if it.cover is Cover.UNGUARDED:
            unguarded.setdefault(it.reason, []).append(it.name)
    findings = []
    for why, names in unguarded.items():
        are = "is" if len(names) == 1 else "are"
        problem = f"{', '.join(names)} {are} not guarded: {why}"
        findings.append(Finding(level, LIGHTRAG, problem, TO_DO))
    return seams, findings
