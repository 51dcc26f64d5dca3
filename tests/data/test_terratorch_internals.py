"""TerraTorch's names that its documentation does not promise: each test says what breaks when one changes."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import SaveConfigCallback
from terratorch import registry, tasks
from terratorch.datamodules import GenericMultiModalDataModule
from terratorch.utils import InvalidModelError

from terramind_plugin.data import terratorch_internals as internals


def test_the_command_line_checks_the_checkpoint_before_it_builds_anything():
    """TerraMindCLI replaces _parse_ckpt_path; called later, it would let hub weights be fetched for nothing."""
    called = []

    def note(name):
        return lambda self, *args, **kwargs: called.append(name)

    steps = ("_parse_ckpt_path", "before_instantiate_classes", "instantiate_classes", "_run_subcommand")
    noted = {name: note(name) for name in (*steps, "setup_parser", "_add_instantiators", "_set_seed")}

    def parse_arguments(self, parser, args):
        self.config = {"subcommand": "fit"}

    kind = type("Noted", (internals.MyLightningCLI,), {**noted, "parse_arguments": parse_arguments, "parser": None})
    kind(model_class=torch.nn.Module)
    assert [name for name in called if name in steps] == list(steps)
    for name in ("_parse_ckpt_path", "_run_subcommand", "instantiate_trainer"):
        assert hasattr(internals.MyLightningCLI, name), f"TerraMindCLI replaces {name}, which nothing calls any more"


def test_the_command_line_knows_compute_statistics_and_sets_what_the_writer_reads():
    """GeoTiffWriter reads predict_output_dir, output_file_prefix and out_dtype of the trainer."""
    assert internals.MyLightningCLI.subcommands()["compute_statistics"] == {"datamodule"}
    added = []
    parser = SimpleNamespace(add_argument=lambda name, **_: added.append(name.removeprefix("--")))
    internals.MyLightningCLI.add_arguments_to_parser(None, parser)
    source = inspect.getsource(internals.MyLightningCLI.instantiate_classes)
    for name in ("predict_output_dir", "output_file_prefix", "out_dtype"):
        assert name in added, f"terramind predict has no --{name}"
        assert f"trainer.{name} =" in source, f"--{name} no longer reaches GeoTiffWriter"


def test_the_trainer_prints_statistics():
    """StatisticsTrainer replaces compute_statistics, which handles one modality only."""
    assert list(inspect.signature(internals.MyTrainer.compute_statistics).parameters)[:2] == ["self", "datamodule"]


def test_configurations_are_saved_beside_the_log():
    """`terramind fit` passes overwrite, as TerraTorch does, so that a second run in a folder starts."""
    assert issubclass(internals.StudioDeploySaveConfigCallback, SaveConfigCallback)
    assert "overwrite" in inspect.signature(internals.StudioDeploySaveConfigCallback).parameters


def test_the_writer_of_predictions_can_be_replaced():
    """GeoTiffWriter finds it among the callbacks and takes its folder; otherwise both would write."""
    writer = internals.CustomWriter(write_interval="batch")
    assert isinstance(writer, BasePredictionWriter)
    assert writer.output_dir is None
    assert internals.CustomWriter(output_dir="folder").output_dir == "folder"


def test_samples_are_collated_key_by_key():
    """TerraMindDataModule replaces it by one that names a sample whose shape differs, and calls it for the rest."""
    batch = internals.collate_samples(
        [{"image": {"S1GRD": np.zeros((2, 4, 4), np.float32)}, "mask": torch.zeros(4, 4), "filename": "a"}] * 2
    )
    assert batch["image"]["S1GRD"].shape == (2, 2, 4, 4)
    assert batch["mask"].shape == (2, 4, 4)
    assert batch["filename"] == ["a", "a"]
    module = GenericMultiModalDataModule(
        batch_size=1, modalities=["S1GRD"], num_classes=2, train_data_root={"S1GRD": "a"}, val_data_root={"S1GRD": "a"},
        test_data_root={"S1GRD": "a"}, means={"S1GRD": [0.0, 0.0]}, stds={"S1GRD": [1.0, 1.0]},
    )  # fmt: skip
    assert module.collate_fn is internals.collate_samples, "TerraMindDataModule's own collate is never used"


def test_intervals_of_bands():
    """Bands of a configuration may be given as intervals; the data module counts and names them one by one."""
    assert internals.generate_bands_intervals([(0, 2), "B8A", 5]) == [0, 1, 2, "B8A", 5]


@pytest.mark.parametrize("name", ["SemanticSegmentationTask", "PixelwiseRegressionTask", "ClassificationTask"])
def test_tasks_log_metrics_by_name(name):
    """`terramind check` compares monitors with the names of train_metrics and val_metrics."""
    task = getattr(tasks, name)
    assert issubclass(task, internals.TerraTorchTask)
    source = inspect.getsource(task)
    assert "self.val_metrics" in source
    assert "self.train_metrics" in source


def test_detection_logs_under_other_names():
    """`terramind check` says nothing of its monitors; a common base class would make it report false errors."""
    assert not issubclass(tasks.ObjectDetectionTask, internals.TerraTorchTask)


def test_the_coordinate_tokenizer_is_a_function():
    """`terramind verify` loads it from this module, since no registry has it."""
    parameters = inspect.signature(internals.tokenizer_register.terramind_v1_coords_tokenizer).parameters
    assert "pretrained" in parameters


def test_sources_of_models_can_be_added():
    """The plugin adds the source 'terramind', and an unknown name must lead on to the next source."""
    models = registry.MultiSourceRegistry(theirs=registry.Registry(b=lambda: "b"))

    class Ours(registry.Registry):
        def build(self, name, *args, **kwargs):
            raise InvalidModelError(None, model_name=name)

    models.register_source("ours", Ours())
    assert models.build("theirs_b") == "b"
    assert models.build("b") == "b"
    assert registry.Registry(a=len)._registry == {"a": len}, "PluginRegistry keeps its builders in _registry"


def test_the_wrapper_for_series_pools_by_its_methods():
    """integration/temporal.py replaces __init__ and forward, and pools by the other methods."""
    wrapper = internals.TemporalWrapper(torch.nn.Conv2d(1, 2, 1), pooling="diff", subset_lengths=[1, 2])
    assert (wrapper.pooling, wrapper.subset_lengths, wrapper.features_permute_op) == ("diff", [1, 2], None)
    assert wrapper.reverse_permute_op is None
    tokens = torch.randn(6, 4, 8)
    stacked = wrapper.reshape_5d(wrapper.permute_op(tokens, None), 2, 3)
    assert stacked.shape == (2, 3, 8, 4, 1)
    pooled = wrapper.vit_postprocess(wrapper.pool_temporal(stacked, "diff", [1, 2]))
    first, later = tokens.unflatten(0, (2, 3))[:, 0], tokens.unflatten(0, (2, 3))[:, 1:].mean(dim=1)
    assert torch.allclose(pooled, first - later, atol=1e-6)
