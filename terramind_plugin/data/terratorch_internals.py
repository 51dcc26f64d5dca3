"""TerraTorch's names that its documentation does not promise, in one place.

A new version may move or change them: tests/data/test_terratorch_internals.py says for each what then breaks. One more,
InvalidModelError, is imported in integration/registry.py, which runs while TerraTorch itself is being imported.
"""

from terratorch.cli_tools import CustomWriter, MyLightningCLI, MyTrainer, StudioDeploySaveConfigCallback
from terratorch.datamodules.generic_multimodal_data_module import collate_samples
from terratorch.datasets.utils import generate_bands_intervals
from terratorch.models.backbones.terramind.tokenizer import tokenizer_register
from terratorch.models.utils import TemporalWrapper
from terratorch.tasks.base_task import TerraTorchTask

__all__ = [
    "CustomWriter",
    "MyLightningCLI",
    "MyTrainer",
    "StudioDeploySaveConfigCallback",
    "TemporalWrapper",
    "TerraTorchTask",
    "collate_samples",
    "generate_bands_intervals",
    "tokenizer_register",
]
