"""Arguments of builders: texts, and former names."""

import inspect
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import terramind_plugin
from terramind_plugin.backbones.arguments import FORMER_ARGUMENTS, read_text, read_texts
from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.backbones.tim import TerraMindTiM
from terramind_plugin.builders import backbone_arguments, build_by_name
from terramind_plugin.errors import ConfigError

# PyYAML writes the text '1e1' without quotation marks, and reads it as a text; TerraTorch's parser reads a number.
TEXTS = st.text().filter(lambda text: not re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", text))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner))


@read_texts("path")
def build(name, size=1, *, path=None, **others):
    return name, size, path, others


@given(VALUES)
def test_what_yaml_writes_is_read(value):
    assert read_text("value", yaml.safe_dump(value)) == value


@given(VALUES.filter(lambda value: not isinstance(value, str)))
def test_what_has_a_type_keeps_it(value):
    assert read_text("value", value) is value


def test_builder():
    assert build("terramind_v1_tiny", "2", path="10", depth="3") == ("terramind_v1_tiny", 2, "10", {"depth": 3})
    assert list(inspect.signature(build).parameters) == ["name", "size", "path", "others"]


@pytest.mark.parametrize(
    ("text", "value"), [("1e-1", 0.1), ("1E3", 1000.0), ("-2.5e+2", -250.0), ("[5e0, 1e0]", [5.0, 1.0]), ("e1", "e1")]
)
def test_numbers_with_an_exponent(text, value):
    read = read_text("value", text)
    assert (read, type(read)) == (value, type(value))


def test_no_yaml():
    with pytest.raises(ConfigError, match=r"size: cannot read '\[S2L2A'\. Write it as in a YAML file"):
        build("terramind_v1_tiny", size="[S2L2A")


@pytest.mark.parametrize(("former", "name"), sorted(FORMER_ARGUMENTS.items()))
def test_former_names_are_refused(former, name):
    with pytest.raises(ConfigError, match=f"'{former}' is now called '{name}'"):
        build_by_name("terramind_v1_tiny_tim", modalities=["S2L2A"], **{former: True})


def test_a_former_class_is_refused():
    with pytest.raises(AttributeError, match=r"terramind_plugin\.MemoLog is now called terramind_plugin\.CacheLog"):
        terramind_plugin.MemoLog  # noqa: B018


def test_every_argument_has_its_place():
    tim = backbone_arguments(TerraMindTiM)
    assert {"feature_cache", "lora", "pretrained", "merge_method", "tim_cache", "tim_tokenizer_ckpt_paths"} <= set(tim)
    assert set(backbone_arguments(TerraMindBackbone)) < set(tim)
    with pytest.raises(ConfigError, match=r"no argument 'tim_seed'.*It accepts: .*feature_cache"):
        build_by_name("terramind_v1_tiny", modalities=["S2L2A"], tim_seed=1)
