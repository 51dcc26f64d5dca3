"""The entry point that vLLM's engine process calls, so that names `terramind_*` refer to this package's models.

vLLM loads the entry points of the group `vllm.general_plugins` in each of its processes, maybe more than once, before
it builds a model (vllm/plugins/__init__.py). Its class for TerraTorch's models builds `model_factory` and `model_args`
of config.json from TerraTorch's registries (terratorch/vllm/utils.py).
"""

from __future__ import annotations

import logging

logger = logging.getLogger("terramind_plugin")


def load_for_vllm() -> None:
    """Register this package's models in TerraTorch's registries, now or as soon as TerraTorch is imported."""
    import terramind_plugin

    logger.info("terramind_plugin %s is loaded: terramind_* are its models.", terramind_plugin.__version__)
