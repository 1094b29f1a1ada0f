"""Environment variables become policies; everything wrong is said at once."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience import Policy, SettingsError, TimeoutPolicy
from lightrag_resilience.config.policies import FAMILIES, PARTS
from lightrag_resilience.config.process_environment import (
    lightrag_timeouts,
    read_process_environment,
)
from lightrag_resilience.config.settings import Settings, load_settings
from lightrag_resilience.config.validation import field_hints, problem_with

ATTEMPTS = "RESILIENCE_LLM__RETRY__ATTEMPTS"


def problems(**variables: str) -> list[str]:
    with pytest.raises(SettingsError) as error:
        load_settings({f"RESILIENCE_{name}": value for name, value in variables.items()})
    return list(error.value.problems)


def problem(**variables: str) -> str:
    (only,) = problems(**variables)
    return only


# ---------------------------------------------------------------------- what variables do


def test_no_variables_leave_the_presets() -> None:
    settings = load_settings({"PATH": "/bin", "MY_RESILIENCE_LLM": "x"})
    assert settings == Settings()
    assert settings.policy_for("llm.openai") == Policy.llm()
    assert settings.policy_for("orders") == Policy()


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ATTEMPTS, "7")
    assert load_settings().policy_for("llm").retry.attempts == 7


def test_times_follow_from_what_lightrag_was_given() -> None:
    settings = load_settings({"LLM_TIMEOUT": "600", "RERANK_TIMEOUT": "5"})
    assert settings.policy_for("llm.openai").timeout == Policy.llm().timeout.inheriting(600.0)
    assert settings.policy_for("rerank").timeout == TimeoutPolicy(attempt=5.0, total=9.5)
    assert settings.policy_for("embedding") == Policy.embedding()
    assert settings.policy_for("llmx") == Policy()


def test_more_exact_sources_of_a_timeout_win() -> None:
    section = "RESILIENCE_LLM__TIMEOUT__"
    settings = load_settings({"LLM_TIMEOUT": "600", f"{section}ATTEMPT": "200"})
    assert settings.policy_for("llm").timeout == TimeoutPolicy(
        attempt=200.0, total=1195.0, gap=60.0
    )
    settings = load_settings({"LLM_TIMEOUT": "600", f"{section}TOTAL": "100"})
    assert settings.policy_for("llm").timeout == TimeoutPolicy(attempt=100.0, total=100.0, gap=60.0)
    code = Policy.llm(attempt_timeout=7.0)
    assert load_settings({"LLM_TIMEOUT": "600"}).policy_for("llm", code) == code
    rag = load_settings({"LLM_TIMEOUT": "600"}).policy_for("llm", given=50.0)
    assert rag.timeout == TimeoutPolicy(attempt=50.0, total=95.0, gap=60.0)


@pytest.mark.parametrize("name", ["llm", "llm.openai", "llm.openai.gpt"])
def test_a_family_variable_reaches_all_of_its_dependencies(name: str) -> None:
    assert load_settings({ATTEMPTS: "7"}).policy_for(name).retry.attempts == 7


def test_a_family_variable_reaches_no_other_family() -> None:
    settings = load_settings({ATTEMPTS: "7"})
    assert settings.policy_for("embedding") == Policy.embedding()
    assert settings.policy_for("llmx").retry.attempts == 3


def test_the_more_exact_name_wins() -> None:
    settings = load_settings(
        {
            "RESILIENCE_DEFAULT__BREAKER__OPEN_FOR": "1",
            "RESILIENCE_LLM__BREAKER__OPEN_FOR": "2",
            "RESILIENCE_LLM_OPENAI__BREAKER__OPEN_FOR": "3",
            "RESILIENCE_LLM_OPENAI_GPT__BREAKER__OPEN_FOR": "4",
        }
    )
    names = ("storage", "llm", "llm.openai", "llm.openai.gpt", "llm.openai-compatible")
    assert [settings.policy_for(name).breaker.open_for for name in names] == [1, 2, 3, 4, 2]


def test_punctuation_in_a_name_is_one_underscore() -> None:
    settings = load_settings({"RESILIENCE_LLM_AZURE_OPENAI__RETRY__ATTEMPTS": "9"})
    assert settings.policy_for("llm.azure-openai").retry.attempts == 9
    assert settings.policy_for("llm.azure--openai").retry.attempts == 9


def test_variables_win_over_a_policy_from_code_and_leave_the_rest_of_it() -> None:
    base = Policy.storage(attempt_timeout=2.0, attempts=9)
    policy = load_settings({"RESILIENCE_STORAGE__RETRY__ATTEMPTS": "4"}).policy_for(
        "storage.orders", base
    )
    assert policy.retry.attempts == 4
    assert policy.timeout.attempt == 2.0


def test_none_turns_off_what_may_be_off() -> None:
    settings = load_settings({"RESILIENCE_LLM__TIMEOUT__TOTAL": "None"})
    assert settings.policy_for("llm").timeout.total is None


def test_no_jitter_is_a_word_and_not_nothing() -> None:
    settings = load_settings({"RESILIENCE_LLM__RETRY__JITTER": "NONE"})
    assert settings.policy_for("llm").retry.jitter == "none"


@pytest.mark.parametrize("name", ["REDIS_URL", "SHUTDOWN_JOURNAL", "STATUS_TOKEN"])
def test_none_is_what_it_is_where_nothing_is_given(name: str) -> None:
    settings = load_settings({f"RESILIENCE_{name}": "None"})
    assert getattr(settings, name.lower()) is None


def test_an_empty_variable_is_as_good_as_none_at_all() -> None:
    settings = load_settings({"RESILIENCE_LLM__TIMEOUT__TOTAL": " ", "RESILIENCE_REDIS_URL": ""})
    assert settings == Settings()


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("0", False), ("yes", True), ("Off", False)]
)
def test_truth_has_many_words(text: str, value: bool) -> None:  # noqa: FBT001
    settings = load_settings({"RESILIENCE_STORAGE__RETRY__IDEMPOTENT": text})
    assert settings.policy_for("storage").retry.idempotent is value


def test_case_and_space_do_not_matter() -> None:
    settings = load_settings({"resilience_llm__breaker__mode": " Metrics-Only "})
    assert settings.policy_for("llm").breaker.mode == "metrics-only"


def test_variables_of_no_dependency() -> None:
    settings = load_settings(
        {"RESILIENCE_REDIS_URL": "rediss://u:secret@host/0", "RESILIENCE_INGEST_PATIENCE": "0"}
    )
    assert settings.ingest_patience == 0
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "rediss://u:secret@host/0"
    assert "secret" not in repr(settings)


@pytest.mark.parametrize("token", ["too short", "with spaces in between", "x" * 257])
def test_a_token_is_not_shown_even_if_it_is_wrong(token: str) -> None:
    assert problem(STATUS_TOKEN=token) == (
        "RESILIENCE_STATUS_TOKEN must be 16 to 256 ASCII characters without spaces"
    )
    settings = load_settings({"RESILIENCE_STATUS_TOKEN": "long-enough-for-a-token"})
    assert "long-enough" not in repr(settings)


@given(st.data())
def test_every_field_takes_what_its_policy_takes(data: st.DataObject) -> None:
    part = data.draw(st.sampled_from(sorted(PARTS)))
    policy: Any = PARTS[part]
    name = data.draw(st.sampled_from([entry.name for entry in fields(policy)]))
    value = data.draw(
        st.none() | st.booleans() | st.integers(-2, 10**8) | st.floats() | st.just("full")
    )
    variables = {f"RESILIENCE_DEFAULT__{part}__{name}".upper(): str(value)}
    number_as_text = isinstance(value, float) and value.is_integer()
    fits = problem_with(value, field_hints(policy)[name]) is None
    try:
        loaded = getattr(getattr(load_settings(variables).policy_for("x"), part), name)
    except SettingsError as error:
        contradicts = "Policy." in str(error)
        assert contradicts or not fits
    else:
        assert not fits or loaded == value or number_as_text
        assert problem_with(loaded, field_hints(policy)[name]) is None


# ---------------------------------------------------------------------- what is wrong with them


def test_a_wrong_value_is_named_with_its_variable_and_what_is_allowed() -> None:
    assert problem(LLM__RETRY__ATTEMPTS="0") == (
        f"{ATTEMPTS} is '0', but must be a whole number at least 1 and at most 20"
    )


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "soon", "1e99", "0x1", "none"])
def test_a_duration_must_be_a_number_of_seconds(value: str) -> None:
    assert f"'{value}'" in problem(LLM__RETRY__MAX_BACKOFF=value)


def test_words_are_listed() -> None:
    assert "must be one of enforce, metrics-only" in problem(LLM__BREAKER__MODE="on")


def test_all_problems_are_reported_at_once_in_order() -> None:
    found = problems(
        LLM__RETRY__ATTEMPTS="0", INGEST_PATIENCE="x", EMBEDDING__TIMEOUT__TOTAL="-", FOO="1"
    )
    assert len(found) == 4
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("LLM__RETRY__ATTEMTS", "LLM__RETRY__ATTEMPTS"),
        ("LLM__RETRY__ATTEMPT", "LLM__RETRY__ATTEMPTS"),
        ("LLM__RETRI__ATTEMPTS", "LLM__RETRY__ATTEMPTS"),
        ("LLM__TIMEOUT__OPEN_FOR", "LLM__BREAKER__OPEN_FOR"),
        ("LLM_BREAKER_FAILURE_RATE", "LLM__BREAKER__FAILURE_RATE"),
        ("LLM_OPENAI_BREAKER_OPEN_FOR", "LLM_OPENAI__BREAKER__OPEN_FOR"),
        ("EMBEDING__RETRY__ATTEMPTS", "EMBEDDING__RETRY__ATTEMPTS"),
        ("DEFAUL__RETRY__ATTEMPTS", "DEFAULT__RETRY__ATTEMPTS"),
        ("ORDERS__RETRY__ATTEMTS", "ORDERS__RETRY__ATTEMPTS"),
        ("REDIS_URI", "REDIS_URL"),
        ("INGEST_PATIENT", "INGEST_PATIENCE"),
    ],
)
def test_an_unknown_name_is_reported_with_the_nearest_right_one(unknown: str, meant: str) -> None:
    assert problem(**{unknown: "1"}) == (
        f"RESILIENCE_{unknown} is not known; did you mean RESILIENCE_{meant}?"
    )


@pytest.mark.parametrize("unknown", ["FOO", "SECTIONS", "A__B__C__D", "LLM", "_", "LLM__RETRY"])
def test_an_unknown_name_with_nothing_near_is_reported_too(unknown: str) -> None:
    assert problem(**{unknown: "1"}).startswith(f"RESILIENCE_{unknown} is not known")


def test_an_unknown_part_is_reported_for_each_of_its_variables() -> None:
    assert len(problems(LLM__RETRI__ATTEMPTS="1", LLM__RETRI__BUDGET="1")) == 2


@pytest.mark.parametrize("name", ["STORE", "ORDERS", "LIMITS", "REDIS_VECTORS"])
def test_any_dependency_may_be_named(name: str) -> None:
    load_settings({f"RESILIENCE_{name}__RETRY__ATTEMPTS": "2"})


def test_a_wrong_redis_address_is_not_shown() -> None:
    message = problem(REDIS_URL="http://:secret@host")
    assert "secret" not in message
    assert message.startswith("RESILIENCE_REDIS_URL must begin with redis://, ")


@pytest.mark.parametrize("prefix", ["two words", "{tag}", "x" * 65, "schlüssel:"])
def test_a_wrong_prefix_is_reported(prefix: str) -> None:
    message = problem(REDIS_PREFIX=prefix)
    assert message.startswith("RESILIENCE_REDIS_PREFIX is ")
    assert "letters, digits" in message


def test_a_long_value_is_cut() -> None:
    assert len(problem(LLM__RETRY__ATTEMPTS="9" * 5000)) < 200


# ---------------------------------------------------------------------- not ours

SERVICES = {
    "REDIS_SERVICE_HOST": "10.96.0.11",
    "REDIS_SERVICE_PORT": "6379",
    "REDIS_SERVICE_PORT_REDIS": "6379",
    "REDIS_PORT": "tcp://10.96.0.11:6379",
    "REDIS_PORT_6379_TCP": "tcp://10.96.0.11:6379",
    "REDIS_PORT_6379_TCP_PROTO": "tcp",
    "REDIS_PORT_6379_TCP_PORT": "6379",
    "REDIS_PORT_6379_TCP_ADDR": "10.96.0.11",
    "LLM_SERVICE_HOST": "fd00::1f",
    "LLM_SERVICE_PORT_HTTP_METRICS": "80",
    "LLM_PORT": "udp://[fd00::1f]:53",
    "LLM_PORT_53_UDP": "udp://[fd00::1f]:53",
    "LLM_PORT_53_UDP_ADDR": "fd00::1f",
    "LLM_PORT_53_SCTP_PROTO": "sctp",
    "LLM__OPENAI_SERVICE_HOST": "10.96.0.12",
    "SERVICE_HOST": "10.96.0.13",
    "PORT": "tcp://10.96.0.13:80",
}


def test_what_is_set_for_a_service_of_kubernetes_is_not_ours() -> None:
    variables = {f"RESILIENCE_{name}": value for name, value in SERVICES.items()}
    assert load_settings(variables) == Settings()
    assert load_settings({**variables, ATTEMPTS: "7"}).policy_for("llm").retry.attempts == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_PORT", "6379"),
        ("REDIS_PORT", "redis://10.96.0.11:6379"),
        ("REDIS_SERVICE_HOST", "redis://host/0"),
        ("REDIS_URI", "10.96.0.11"),
        ("REDIS_PORT_6379_TCP_PROTO", "6379"),
    ],
)
def test_what_only_looks_like_it_is_reported(name: str, value: str) -> None:
    assert problem(**{name: value}).startswith(f"RESILIENCE_{name} is not known")


def test_variables_of_services_are_reported_once_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "lightrag_resilience")
    for _ in range(3):
        load_settings({"RESILIENCE_ONCE_SERVICE_HOST": "10.96.0.14"})
    (line,) = caplog.records
    assert line.levelname == "DEBUG"
    assert "RESILIENCE_ONCE_SERVICE_HOST" in line.getMessage()


@pytest.mark.parametrize(
    ("text", "workers"),
    [("3", 3), (" 4 ", 4), ("\N{SUPERSCRIPT TWO}", 1), ("two", 1), ("9" * 5000, 1), ("-1", 1)],
)
def test_others_numbers_are_read_as_far_as_they_are_numbers(text: str, workers: int) -> None:
    assert read_process_environment({"WORKERS": text}).workers == workers
    timeouts = lightrag_timeouts({"LLM_TIMEOUT": text, "EMBEDDING_TIMEOUT": ""})
    assert timeouts == ({} if workers == 1 else {"llm": workers})
    odd = read_process_environment(
        {"GUNICORN_CMD_ARGS": f"--graceful-timeout={text}"}
    ).graceful_timeout
    assert 0 < odd < 1e16


# ---------------------------------------------------------------------- contradictions


def test_variables_that_contradict_a_default_are_reported_at_the_start() -> None:
    message = problem(LLM__BREAKER__MIN_CALLS="101")
    assert message.startswith("RESILIENCE_LLM__BREAKER__MIN_CALLS: BreakerPolicy.min_calls")


def test_two_variables_that_contradict_each_other_are_both_named() -> None:
    message = problem(LLM__BREAKER__MIN_CALLS="30", DEFAULT__BREAKER__WINDOW_CALLS="20")
    assert "RESILIENCE_DEFAULT__BREAKER__WINDOW_CALLS and RESILIENCE_LLM__BREAKER__MIN" in message


def test_a_contradiction_with_a_policy_from_code_is_reported_when_it_is_met() -> None:
    settings = load_settings({"RESILIENCE_LLM__BREAKER__OPEN_FOR": "20"})
    base = Policy.llm().with_changes(open_for=2.0)
    narrow = base.with_changes(breaker=type(base.breaker)(open_for=2.0, open_max=5.0))
    with pytest.raises(SettingsError, match="RESILIENCE_LLM__BREAKER__OPEN_FOR"):
        settings.policy_for("llm", narrow)


def test_an_inherited_value_makes_a_narrow_one_right() -> None:
    load_settings(
        {
            "RESILIENCE_LLM__BREAKER__WINDOW_CALLS": "500",
            "RESILIENCE_LLM_OPENAI__BREAKER__MIN_CALLS": "400",
        }
    )


@given(
    st.dictionaries(
        st.text(st.sampled_from("LMRETYAPS_"), max_size=30).map(lambda text: f"RESILIENCE_{text}"),
        st.text(max_size=10),
        max_size=5,
    )
)
def test_whatever_is_set_only_one_kind_of_error_comes(environ: dict[str, str]) -> None:
    with contextlib.suppress(SettingsError):
        settings = load_settings(environ)
        for family in FAMILIES:
            settings.policy_for(family)


def test_what_was_meant_is_searched_for_a_few_short_names_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched = list[str]()
    monkeypatch.setattr("lightrag_resilience.config.env_parsing.nearest", searched.append)
    environ = {f"RESILIENCE_ODD_{number}": "1" for number in range(1000)}
    with pytest.raises(SettingsError) as caught:
        load_settings({"RESILIENCE_" + "X" * 4000: "1", **environ})
    assert len(caught.value.problems) == 1001
    assert 9 <= len(searched) <= 10
    assert max(map(len, caught.value.problems)) < 250
