"""Documents and questions of the demo: invented facts, so that every answer can be checked."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Fact", "document", "facts"]

_TOWNS = (
    "Alderwick", "Brackenford", "Caldmere", "Dunharrow", "Elmstead", "Farrowgate", "Glenmoor",
    "Hartsend", "Inverloch", "Juniper Hill", "Kestrelby", "Larkspur", "Millbrook", "Northwell",
    "Oakhaven", "Penrose", "Quarrytown", "Ravensholm", "Silverdale", "Thornbury",
)  # fmt: skip
_FOUNDERS = (
    "Ada Merrow", "Basil Thorne", "Clara Voss", "Dorian Pike", "Edith Lang", "Felix Harrow",
    "Greta Winslow", "Hugo Brandt", "Iris Calder", "Jonas Reed", "Kira Solberg", "Leon Astor",
    "Mabel Frost", "Niels Juhl", "Olga Petrov", "Pascal Roux", "Quentin Shaw", "Rosa Lind",
    "Stefan Kurz", "Thea Bloom",
)  # fmt: skip
_WORKS = (
    "Tide Mill", "Glass Observatory", "Salt Library", "Copper Bridge", "Wind Organ",
    "Moss Garden", "Night Market", "Stone Theatre", "Rain Archive", "Clock Foundry",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fact:
    """One document's facts. A person founded a town and built a work there."""

    town: str
    founder: str
    work: str

    def question(self, number: int) -> str:
        """A question about the town; the number keeps LightRAG's cache from answering it."""
        return f"Who founded {self.town}? (question {number})"


def facts(count: int) -> list[Fact]:
    """The facts of the first `count` documents, at most as many as there are towns."""
    return [
        Fact(town, founder, _WORKS[index % len(_WORKS)])
        for index, (town, founder) in enumerate(zip(_TOWNS, _FOUNDERS, strict=True))
    ][:count]


def document(fact: Fact) -> str:
    """A short text that states the facts."""
    return (
        f"{fact.founder} founded {fact.town} beside the river. "
        f"In {fact.town} stands the {fact.work}, which {fact.founder} built for the people. "
        f"Travellers visit {fact.town} to see the {fact.work} at dusk."
    )
