"""What the simulated model says to LightRAG's prompts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightrag.prompt import PROMPTS

from lightrag_resilience.testing.simulated_model import complete, embed, relevance

TEXT = "Ada Merrow founded Alderwick beside the river. In Alderwick stands the Tide Mill."


def ask(prompt: str, *, system: str = "", as_json: bool = False) -> str:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    return complete(messages, as_json=as_json)


def extraction(key: str) -> str:
    return str(PROMPTS[key]).replace("{input_text}", TEXT).replace("{heading_context_block}", "")


def test_entities_and_relations_are_extracted_as_rows() -> None:
    rows = ask(extraction("entity_extraction_user_prompt")).splitlines()
    names = [row.split("<|#|>")[1] for row in rows if row.startswith("entity")]
    assert names == ["Ada Merrow", "Alderwick", "Tide Mill"]
    pairs = [tuple(row.split("<|#|>")[1:3]) for row in rows if row.startswith("relation")]
    assert pairs == [("Ada Merrow", "Alderwick"), ("Alderwick", "Tide Mill")]
    assert rows[-1] == "<|COMPLETE|>"


def test_entities_and_relations_are_extracted_as_json() -> None:
    found = json.loads(ask(extraction("entity_extraction_json_user_prompt"), as_json=True))
    assert [entity["name"] for entity in found["entities"]] == [
        "Ada Merrow",
        "Alderwick",
        "Tide Mill",
    ]
    assert found["relationships"][0]["source"] == "Ada Merrow"


def test_a_second_look_finds_nothing_more() -> None:
    again = str(PROMPTS["entity_continue_extraction_user_prompt"])
    assert ask(again) == "<|COMPLETE|>"
    assert json.loads(ask(again, as_json=True)) == {"entities": [], "relationships": []}


@pytest.mark.parametrize(
    ("sentence", "names"),
    [
        ("Travellers visit it.", []),
        ("Alderwick is old.", ["Alderwick"]),
        ("The Mill stands.", ["Mill"]),
        ("What is in it?", []),
    ],
)
def test_a_capital_at_the_beginning_makes_no_name(sentence: str, names: list[str]) -> None:
    prompt = extraction("entity_extraction_user_prompt").replace(TEXT, sentence)
    rows = ask(prompt).splitlines()
    assert [row.split("<|#|>")[1] for row in rows if row.startswith("entity")] == names


def test_keywords_of_a_question() -> None:
    prompt = str(PROMPTS["keywords_extraction"]).replace("{query}", "Who founded Alderwick?")
    found = json.loads(ask(prompt, as_json=True))
    assert found == {"high_level_keywords": ["founded"], "low_level_keywords": ["Alderwick"]}


def test_descriptions_are_merged_each_once() -> None:
    lines = "\n".join(json.dumps({"Description": text}) for text in ("One.", "Two.", "One."))
    prompt = str(PROMPTS["summarize_entity_descriptions"]).replace("{description_list}", lines)
    assert ask(prompt) == "One. Two."


def test_a_question_is_answered_out_of_the_context() -> None:
    context = str(PROMPTS["rag_response"]).replace(
        "{context_data}", json.dumps({"reference_id": "1", "content": TEXT})
    )
    assert ask("Who founded Alderwick?", system=context).startswith("Ada Merrow founded Alderwick")
    assert "do not know" in ask("Why?", system=context)


def test_anything_else_gets_an_answer_too() -> None:
    parts = [{"type": "text", "text": "Hello"}]
    assert complete([{"role": "user", "content": parts}]).endswith("5 characters.")
    assert complete([{"role": "user", "content": None}])
    assert complete([])


@given(st.text(), st.integers(1, 100))
def test_any_text_has_a_unit_vector(text: str, dimensions: int) -> None:
    vector = embed(text, dimensions)
    assert len(vector) == dimensions
    assert sum(value * value for value in vector) == pytest.approx(1)


def test_relevance_is_the_share_of_words() -> None:
    assert relevance("one two", "two three") == 0.5
    assert relevance("", "anything") == 0
