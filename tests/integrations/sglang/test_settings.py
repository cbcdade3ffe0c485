"""The plugin's environment variables, and the tables of docs/sglang.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from coatcheck.errors import ConfigError
from coatcheck.integrations.sglang import settings, support
from coatcheck.integrations.sglang.settings import ARENA_MIB, ENABLED, MODE, POISON, SHARE, WORKERS, Settings, read

DOCUMENT = Path(__file__).parents[3] / "docs" / "sglang.md"


def test_without_variables_the_documented_defaults_hold() -> None:
    assert read({"PATH": "/bin", "COATCHECK_ADMIN_TOKEN": "x"}) == Settings(True, None, 1.0, whole=True, workers=None)
    assert read({variable.name: variable.default for variable in settings.VARIABLES}) == read({})


def test_what_is_set_counts() -> None:
    assert read({ARENA_MIB: "auto"}) == read({})
    given = {ENABLED: "0", ARENA_MIB: "64", SHARE: "0.25", MODE: "carry", WORKERS: "3", POISON: "1"}
    assert read(given) == Settings(False, 64 << 20, 0.25, whole=False, workers=3, poison=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (ENABLED, "true"),
        (ENABLED, ""),
        (ARENA_MIB, ""),
        (ARENA_MIB, "Auto"),
        (ARENA_MIB, "0"),
        (ARENA_MIB, "-1"),
        (ARENA_MIB, "1.5"),
        (ARENA_MIB, "1GiB"),
        (ARENA_MIB, "²"),
        (ARENA_MIB, "1048577"),
        (SHARE, "1.01"),
        (SHARE, "-0.1"),
        (SHARE, "nan"),
        (SHARE, "half"),
        (MODE, ""),
        (MODE, "Whole"),
        (POISON, "yes"),
        (WORKERS, "0"),
        (WORKERS, "257"),
    ],
)
def test_what_is_not_allowed_is_named_with_what_is(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: '{value}' is not allowed; allowed: "):
        read({name: value})


def test_a_name_that_nobody_reads_is_a_mistake() -> None:
    with pytest.raises(
        ConfigError, match=r"COATCHECK_SGLANG_ARENA_MB: there is no such setting; there are .*ARENA_MIB"
    ):
        read({"COATCHECK_SGLANG_ARENA_MB": "64"})


@pytest.mark.parametrize("table", [settings.table(), support.table()], ids=["settings", "support"])
def test_the_document_has_the_code_s_table(table: str) -> None:
    assert f"\n\n{table}\n" in DOCUMENT.read_text()


def test_who_finds_features_on_the_gpu_is_told_what_to_pass() -> None:
    """On Hopper SGLang chooses so for Qwen3-VL, and its user has passed no flag that could be named."""
    values: dict[str, object] = {limit.setting: limit.served[0] for limit in support.LIMITS}
    (said,) = support.obstacles(values | {"mm_feature_transport": "cuda_ipc"})
    assert "`--mm-feature-transport cpu`" in said and "by itself" in said
    assert support.obstacles(values | {"mm_feature_transport": "cpu"}) == []
