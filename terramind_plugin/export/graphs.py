"""A model as a graph in a file, ONNX or torch.export, which is compared with the model before it is written."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher

from terramind_plugin.errors import ConfigError, one_line
from terramind_plugin.export.subject import Positional, Subject
from terramind_plugin.inference.segmentation import for_inference
from terramind_plugin.system.files import write_bytes

LARGEST_DIFFERENCE = 1e-4
"""Maximum difference between a file's outputs and the model's, as a share of the model's largest value."""
TRACED = 2
"""Number of samples in the batch with which the graph is made; a batch of one would be taken for a fixed size."""
COMPARED = (1, 3)
"""Numbers of samples in the batches of the comparison."""
LARGEST_ONNX = 2**31 - 1
"""Maximum number of bytes of an ONNX file: the limit of protocol buffers."""
METADATA = "terramind.json"
"""Name of the description inside a file of torch.export."""


def write_onnx(subject: Subject, out: Path, *, standardize: bool = False) -> float:
    """Write a model as ONNX with any batch size, and return the largest difference from the model.

    Args:
        subject: Model; batch norms become part of its convolutions.
        out: File to write.
        standardize: Whether the file standardises its inputs itself.

    Returns:
        Difference as a share of the largest value, measured with onnxruntime.

    Raises:
        ConfigError: A library is missing, the model cannot be made a graph, or the file would be too large or differ.
    """
    onnx, onnxruntime = _import_onnx()
    model, program = _trace(subject, standardize)
    names = [one.name for one in subject.inputs]
    # With the dispatcher in Python, torch 2.6 also decomposes layers without biases for batches of any size.
    with _quiet_exporters(), _explained(subject), enable_python_dispatcher():
        made = torch.onnx.export(
            program, input_names=names, output_names=list(subject.outputs), dynamo=True, external_data=False,
            verify=False, verbose=False,
        )  # fmt: skip
        proto = made.model_proto  # type: ignore[union-attr]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    described = subject.describe(standardize)
    proto.producer_name, proto.doc_string = described["made_by"], f"{described['model']}: {described['task']}"
    onnx.helper.set_model_props(proto, {name: _text(value) for name, value in described.items()})
    if proto.ByteSize() > LARGEST_ONNX:
        raise ConfigError(
            f"{subject.name} takes {proto.ByteSize()} bytes, and an ONNX file holds at most {LARGEST_ONNX}."
        )
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: image.numpy() for name, image in zip(names, images, strict=True)}
        return [torch.from_numpy(np.asarray(value)) for value in session.run(list(subject.outputs), feed)]

    difference = _compare(subject, model, run, standardize)
    write_bytes(out, content)
    return difference


def write_program(subject: Subject, out: Path, *, standardize: bool = False) -> float:
    """Write a model as a torch.export program with any batch size, and return the largest difference from the model.

    Args:
        subject: As for `write_onnx`.
        out: File to write.
        standardize: Whether the file standardises its inputs itself.

    Raises:
        ConfigError: The model cannot be made a graph, or the file would differ from it.
    """
    model, program = _trace(subject, standardize)
    content = io.BytesIO()
    described = json.dumps(subject.describe(standardize))
    torch.export.save(program, content, extra_files={METADATA: described})
    content.seek(0)
    loaded: Callable[..., Any] = torch.export.load(content).module()

    def run(images: Sequence[Tensor]) -> list[Tensor]:
        return _listed(loaded(*images))

    difference = _compare(subject, model, run, standardize)
    write_bytes(out, content.getbuffer())
    return difference


def _trace(subject: Subject, standardize: bool) -> tuple[Positional, torch.export.ExportedProgram]:
    """Return the model with its norms folded, and its graph for batches of any size."""
    if subject.positions is not None:
        raise ConfigError(
            f"{subject.name} has the input {subject.positions}, which comes from the position of a scene and not from "
            "pixels. --format hub writes the whole model."
        )
    for_inference(subject.network)
    model = Positional(subject, standardize).eval()
    images = subject.example(TRACED)
    batch = torch.export.Dim("batch")
    shapes = (tuple({0: batch} for _ in images),)
    with torch.no_grad(), _quiet_exporters(), _explained(subject):
        return model, torch.export.export(model, images, dynamic_shapes=shapes, strict=False)


@torch.no_grad()
def _compare(
    subject: Subject, model: Positional, run: Callable[[Sequence[Tensor]], list[Tensor]], standardize: bool
) -> float:
    """Return the largest difference between a file and the model over batches of several sizes.

    Raises:
        ConfigError: The difference is larger than `LARGEST_DIFFERENCE`, or a value is not finite.
    """
    worst = 0.0
    for batch in COMPARED:
        images = subject.example(batch, seed=batch)
        if standardize:
            scales: Any = model.scales
            images = tuple(scale.undo(image) for scale, image in zip(scales, images, strict=True))
        for name, got, want in zip(subject.outputs, run(images), _listed(model(*images)), strict=True):
            difference = float((got - want).abs().max() / want.abs().max().clamp(min=1e-12))
            if not difference <= LARGEST_DIFFERENCE:
                raise ConfigError(
                    f"{name} of the file differs from the model's by {difference:.1e} of the largest value, expected "
                    f"at most {LARGEST_DIFFERENCE:g}. The file was not written; report this with the command you ran."
                )
            worst = max(worst, difference)
    return worst


def _listed(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, list | tuple) else [output]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _import_onnx() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter
    except ImportError as error:
        raise ConfigError(
            f"--format onnx needs {error.name}, which is not installed: pip install 'terramind-plugin[export]'."
        ) from error
    return onnx, onnxruntime


@contextlib.contextmanager
def _explained(subject: Subject) -> Iterator[None]:
    """Replace errors of torch's exporters by a message of one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # torch's tracing raises errors of many classes
        raise ConfigError(
            f"{subject.name} cannot be made a graph ({type(error).__name__}: {one_line(error)[:300]}). Layers with "
            "random numbers or branches on values have no graph; --format hub writes the whole model."
        ) from error


@contextlib.contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Hide the progress and the warnings of the exporters; their errors are still raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
