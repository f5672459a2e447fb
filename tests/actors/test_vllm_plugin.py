"""What vLLM's processes are told, and by whom."""

import pytest

from actors.vllm_plugin import OWNER_VARIABLE, RESERVED_VARIABLE, SPIN_VARIABLE, environment, register


def test_where_cores_are_few_none_is_spent_on_waiting(monkeypatch):
    monkeypatch.delenv(RESERVED_VARIABLE, raising=False)
    few, many = environment(7, 2), environment(7, 64)
    assert few[OWNER_VARIABLE] == many[OWNER_VARIABLE] == "7"
    assert float(few[SPIN_VARIABLE]) < 0.01 and few[RESERVED_VARIABLE] == "0"
    assert SPIN_VARIABLE not in many and RESERVED_VARIABLE not in many
    monkeypatch.setenv(RESERVED_VARIABLE, "1")
    assert environment(7, 2)[RESERVED_VARIABLE] == "1"


@pytest.mark.parametrize("owner", [None, "", "no number"])
def test_engines_of_others_are_left_alone(monkeypatch, owner):
    monkeypatch.setenv(SPIN_VARIABLE, "not looked at")
    if owner is None:
        monkeypatch.delenv(OWNER_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(OWNER_VARIABLE, owner)
    register()


def test_vllm_finds_it():
    from importlib.metadata import entry_points

    assert "actors.vllm_plugin:register" in {e.value for e in entry_points(group="vllm.general_plugins")}
