"""The undocumented names of TerraTorch that this package uses, in one place.

A new version may move or change them: tests/data/test_terratorch_internals.py says what would break for each of them.
One more, InvalidModelError, is imported in integration/registry.py, because that runs while TerraTorch is imported.
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
