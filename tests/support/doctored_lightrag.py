"""What the doctor, `protect` and strict mode say of a LightRAG, and whether it still works."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from lightrag import QueryParam
from typer.testing import CliRunner

from lightrag_resilience import Guards, UnsupportedCallError, protect, unprotect
from lightrag_resilience.cli.app import app
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag.compat import PRIVATE_NAMES
from lightrag_resilience.integrations.lightrag.coverage import Coverage

from .lightrag_rig import Provider, lightrag_on

__all__ = ["PRIVATE_NAMES", "findings"]


class Heard(logging.Handler):
    """Keeps the warnings of this package."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def findings(seam: str) -> dict[str, Any]:
    """All of it, for a LightRAG of which one seam is not guarded."""
    shown = CliRunner().invoke(app, ["doctor", "--lightrag", "--json"])
    heard = Heard()
    logging.getLogger("lightrag_resilience").addHandler(heard)
    answer, refusal = asyncio.run(answer_and_refusal(is_of_server=seam.startswith("server.")))
    seams = json.loads(shown.stdout)["seams"]
    return {"seams": seams, "warnings": heard.texts, "answer": answer, "refusal": refusal}


async def answer_and_refusal(*, is_of_server: bool) -> tuple[str, str]:
    """The answer of a protected LightRAG, and the error of strict mode."""
    variables = {"RESILIENCE_DEGRADE": "true"}
    async with lightrag_on(Provider()) as rag:
        await protect(rag, registry=Guards(settings=load_settings(variables)))
        await rag.ainsert("Ada founded Alderwick beside the river.", ids=["doc"])
        answer = await rag.aquery("Who founded Alderwick?", QueryParam(mode="mix"))
        await unprotect(rag)
        strict = load_settings(variables | {"RESILIENCE_STRICT": "true"})
        try:
            if is_of_server:  # as `serve` does
                Coverage().report(of_server=True)
                Coverage().report(of_server=True, strict=True)
            await protect(rag, registry=Guards(settings=strict))
        except UnsupportedCallError as error:
            return answer, str(error)
    return answer, ""
