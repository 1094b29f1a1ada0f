"""Names of endpoints: as short as tells them apart, stable, and safe whatever an address says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience.config.dependency_names import check_name, section_of
from lightrag_resilience.config.endpoint_names import Endpoint, EndpointNames
from lightrag_resilience.config.settings import load_settings


def openai(address: str, model: str = "m") -> Endpoint:
    return Endpoint.at("llm", "openai", address, model)


def named(*endpoints: Endpoint) -> list[str]:
    names = EndpointNames()
    names.add(*endpoints)
    return [names.name_of(each) for each in endpoints]


def test_one_endpoint_of_a_binding_is_named_after_the_binding() -> None:
    assert named(openai("http://gpu1:8000/v1")) == ["llm.openai"]
    assert named(Endpoint("llm")) == ["llm"]


def test_the_same_endpoint_has_one_name() -> None:
    first, same = openai("https://API.openai.com/v1"), openai("https://api.openai.com:443/")
    assert named(first, same) == ["llm.openai", "llm.openai"]


def test_two_bindings_and_two_families_need_no_hosts() -> None:
    others = [Endpoint.at("llm", "ollama", "http://b", "m"), Endpoint("embedding", "openai", "b")]
    assert named(openai("http://a"), *others) == ["llm.openai", "llm.ollama", "embedding.openai"]


@pytest.mark.parametrize(
    ("addresses", "names"),
    [
        (["http://gpu1:8000", "http://gpu2:8000"], ["gpu1", "gpu2"]),
        (["http://gpu1:8000", "http://gpu1:8001"], ["gpu1-8000", "gpu1-8001"]),
        (["http://10.0.0.1", "https://api.example.com/v1"], ["10.0.0.1", "api.example.com"]),
        (["http://[::1]:80", "http://[fe80::1]:8080"], ["1", "fe80-1"]),
        (["http://a", "gpu1:11434"], ["a", "gpu1"]),
    ],
)
def test_two_hosts_are_told_apart_by_host_and_if_needed_by_port(
    addresses: list[str], names: list[str]
) -> None:
    assert named(*map(openai, addresses)) == [f"llm.openai.{name}" for name in names]


def test_several_models_of_one_host_are_told_apart_by_model() -> None:
    small, large = openai("http://a", "gpt-4.1"), openai("http://a", "meta/Llama 3:8b")
    assert named(small, large) == ["llm.openai.gpt-4-1", "llm.openai.meta-Llama-3:8b"]
    other = openai("http://b.example", "gpt-4.1")
    assert named(small, large, other) == [
        "llm.openai.a.gpt-4-1",
        "llm.openai.a.meta-Llama-3:8b",
        "llm.openai.b.example",
    ]


def test_an_endpoint_of_unknown_host_keeps_the_name_of_its_binding() -> None:
    assert named(openai(""), openai("http://b")) == ["llm.openai", "llm.openai.b"]


def test_a_later_endpoint_gets_its_own_name_and_the_others_keep_theirs() -> None:
    names = EndpointNames()
    first, second, third = openai("http://a"), openai("http://b"), openai("http://a", "other")
    assert [names.name_of(each) for each in (first, second, third, first)] == [
        "llm.openai",
        "llm.openai.b",
        "llm.openai.a.other",
        "llm.openai",
    ]


def test_variables_of_a_host_inherit_from_its_binding_and_not_from_another_model() -> None:
    settings = load_settings(
        {
            "RESILIENCE_LLM_OPENAI__RETRY__ATTEMPTS": "7",
            "RESILIENCE_LLM_OPENAI_GPU1_8000__LIMIT__RPM": "60",
            "RESILIENCE_LLM_OPENAI_GPT_4__LIMIT__RPM": "5",
        }
    )
    first, second = named(openai("http://gpu1:8000"), openai("http://gpu1:8001"))
    assert settings.policy_for(first).retry.attempts == 7
    assert settings.policy_for(first).limit.rpm == 60
    assert settings.policy_for(second).limit.rpm is None
    four, _, newer = named(openai("", "gpt-4"), openai("", "x"), openai("", "gpt-4.1"))
    assert settings.policy_for(four).limit.rpm == 5
    assert settings.policy_for(newer).limit.rpm is None


def test_two_endpoints_share_no_variable() -> None:
    assert named(openai("http://gpu-1", "a"), openai("http://gpu.1", "b")) == [
        "llm.openai.gpu-1",
        "llm.openai.b",
    ]
    assert named(openai("http://x", "GPT"), openai("http://x", "gpt"))[0] == "llm.openai.GPT"


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), max_size=6), st.booleans())
def test_any_texts_make_valid_and_different_names(
    texts: list[tuple[str, str, str]],
    at_once: bool,  # noqa: FBT001 - Hypothesis draws it
) -> None:
    endpoints = [Endpoint.at("llm", *each) for each in texts]
    endpoints += [Endpoint.at("llm", "openai", f"http://{host}", m) for _, host, m in texts]
    names = EndpointNames()
    if at_once:
        names.add(*endpoints)
    for each in endpoints:
        name = names.name_of(each)
        check_name(name)
        assert name.isascii()
        assert name.startswith("llm")
    assert len({section_of(names.name_of(each)) for each in endpoints}) == len(set(endpoints))


@pytest.mark.parametrize(
    "address", ["http://user:secret@gpu1/v1?key=secret", "http://[", "http://a:99999", "x" * 5000]
)
def test_no_secret_and_no_endless_text_of_an_address_is_in_a_name(address: str) -> None:
    _, name = named(openai("http://other"), openai(address))
    assert "secret" not in name
    assert len(name) < 100


def test_endpoints_beyond_a_bound_share_a_name() -> None:
    names = EndpointNames()
    made = {names.name_of(openai(f"http://host{number}")) for number in range(200)}
    assert len(made) == 101
    assert "llm.openai.other" in made
