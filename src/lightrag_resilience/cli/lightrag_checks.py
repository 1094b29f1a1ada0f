"""Which seams of the installed LightRAG are guarded."""

from __future__ import annotations

from lightrag_resilience.config.process_environment import chosen_storages
from lightrag_resilience.integrations.lightrag.compat import STORAGES, registered_storages
from lightrag_resilience.integrations.lightrag.coverage import Cover, Coverage, Seam
from lightrag_resilience.text import printable

from .policy_checks import Finding, Level

__all__ = ["examine_lightrag"]

_ADVICE = (
    "take a LightRAG that docs/compatibility.md lists without it, or a later lightrag_resilience"
)


def examine_lightrag(*, strict: bool) -> tuple[list[Seam], list[Finding]]:
    """The seams of the installed LightRAG, and a finding for each that is not guarded.

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
    return seams, [
        Finding(
            level, f"LightRAG {coverage.version}", f"{it.name} is not guarded: {it.reason}", _ADVICE
        )
        for it in seams
        if it.cover is Cover.UNGUARDED
    ]
