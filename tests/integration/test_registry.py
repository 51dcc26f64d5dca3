"""The names that a configuration may use."""

import subprocess
import sys

import pytest

from terramind_plugin.errors import ConfigError
from terramind_plugin.model.variants import VARIANTS


@pytest.fixture(scope="module")
def registries(backbones):
    from terratorch import registry

    return registry


def run(code):
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)


ORDERS = ("import terramind_plugin, terratorch.registry", "import terratorch.registry, terramind_plugin")

IMPORT_AND_BUILD = """
import os
# Most of what TerraTorch takes long to load.
import lightning, torch, torchgeo.datasets, torchgeo.models, torchgeo.trainers
for order in {orders}:
    if not os.fork():
        exec(order)
        from terratorch.registry import BACKBONE_REGISTRY as b, NECK_REGISTRY as n, FULL_MODEL_REGISTRY as f
        assert all('terramind' in r.keys() for r in (b, n, f))
        import inspect; assert 'class' in inspect.getsource(type(b))
        torch.set_num_threads(1)
        print(type(b.build('terramind_v1_tiny', modalities=['DEM'])).__module__, flush=True)
        os._exit(0)
    os.wait()
"""


def test_import_order_does_not_matter():
    result = run(IMPORT_AND_BUILD.format(orders=ORDERS))
    assert result.stdout.split() == ["terramind_plugin.backbones.encoder"] * len(ORDERS), result.stderr


def test_registering_again_changes_nothing(registries):
    from terramind_plugin.integration.registry import register

    names = list(registries.BACKBONE_REGISTRY)
    register()
    assert list(registries.BACKBONE_REGISTRY) == names


@pytest.mark.parametrize("name", VARIANTS)
def test_our_names(backbones, name):
    assert name in backbones
    assert backbones.find_class(name).__module__.startswith("terramind_plugin")


def test_ours_is_built(backbones):
    model = backbones.build("terramind_v1_tiny", modalities=["S2L2A"], merge_method="max")
    assert type(model).__name__ == "TerraMindBackbone"
    assert model.merge_method == "max"


def test_modalities_by_position(backbones):
    assert backbones.build("terramind_v1_tiny", ["DEM"]).modalities == ["DEM"]


def test_terratorch_keeps_its_own(backbones):
    model = backbones.build("terratorch_terramind_v1_tiny", modalities=["S2L2A"])
    assert type(model).__module__.startswith("terratorch.")


@pytest.mark.parametrize("name", ["terramind_v01_base", "terramind_v01_base_tim"])
def test_names_we_lack_are_those_of_terratorch(backbones, name):
    assert name in backbones
    assert backbones.find_class(name).__module__.startswith("terratorch.")


def test_thinking_and_generation_are_ours(registries, backbones):
    full = registries.FULL_MODEL_REGISTRY
    assert backbones.find_class("terramind_v1_tiny_tim").__module__.startswith("terramind_plugin.")
    for name in ("terramind_v1_tiny_generate", "terramind_v1_tokenizer_lulc"):
        assert full.find_class(name).__module__.startswith("terramind_plugin.")
    assert full.find_class("terramind_v01_base_generate").__module__.startswith("terratorch.")


def test_listing_has_each_name_once(backbones):
    names = list(backbones["terramind"])
    assert len(names) == len(set(names)) == len(backbones["terramind"])
    assert {"v1_tiny", "v1_large", "v1_tiny_tim"} <= set(names)


def test_misspelt_name(backbones):
    assert "terramind_v1_bse" not in backbones
    with pytest.raises(ConfigError, match=r"Unknown name 'terramind_v1_bse'\. Did you mean 'terramind_v1_base'"):
        backbones.build("terramind_v1_bse")


def test_misspelt_neck(registries):
    with pytest.raises(ConfigError, match="Did you mean 'terramind_pyramid'"):
        registries.NECK_REGISTRY.build("terramind_pyramide", [192] * 4)


def test_names_without_a_source_reach_all_sources(registries):
    """A source that came later than ours is asked, too."""
    registry = registries.MultiSourceRegistry()
    registry.register_source("terramind", registries.BACKBONE_REGISTRY["terramind"])
    registry.register_source("later", registries.Registry(my_model=lambda: "built"))
    assert registry.build("my_model") == "built"


def test_unknown_name_without_a_source_is_terratorchs_error(backbones):
    with pytest.raises(Exception, match="could not be instantiated from any source"):
        backbones.build("resnet_that_nobody_has")


def test_misspelt_argument(backbones):
    with pytest.raises(ConfigError, match=r"terramind_v1_tiny has no argument 'pretrainde'. Did you mean 'pretrained'"):
        backbones.build("terramind_v1_tiny", modalities=["DEM"], pretrainde=True)


def test_a_missing_key_is_not_hidden(registries):
    from terramind_plugin.integration.registry import PluginRegistry

    source = PluginRegistry(registries.Registry())
    source.add("terramind_broken", lambda: {}["speed"])
    with pytest.raises(ConfigError, match="Building 'terramind_broken' failed: missing key 'speed'"):
        source.build("broken")


def test_lazy_names():
    assert terramind_plugin_attribute("TokenPyramid").__name__ == "TokenPyramid"
    with pytest.raises(AttributeError, match="no attribute 'TokenPyramids'"):
        terramind_plugin_attribute("TokenPyramids")


def test_public_names_are_listed():
    import terramind_plugin

    assert set(terramind_plugin.__all__) <= set(dir(terramind_plugin))


def terramind_plugin_attribute(name):
    import terramind_plugin

    return getattr(terramind_plugin, name)
