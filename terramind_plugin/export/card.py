"""The model card of an exported folder."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from terramind_plugin._version import __version__
from terramind_plugin.export.subject import Input, Subject

PIPELINES = {
    "segmentation": "image-segmentation",
    "classification": "image-classification",
    "features": "image-feature-extraction",
}
"""The hub's names of the tasks that it knows."""


def write_card(subject: Subject) -> str:
    """Return the text of README.md: how to run the model, its inputs and its outputs.

    The section 'To be filled in' lists what only the user knows: training data, scores and the licence.
    """
    head = {"library_name": "terratorch", "tags": ["terramind", "terratorch", "earth-observation"]}
    if subject.kind in PIPELINES:
        head["pipeline_tag"] = PIPELINES[subject.kind]
    if subject.base is not None:
        head["base_model"] = subject.base
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {subject.name}",
        f"Task: {subject.kind}. Weights: {subject.weights}. Written by terramind_plugin {__version__}.",
        "## Use",
        _use(subject),
        "## Inputs",
        _table(("input", "shape", "bands", "units", "mean", "std"), [_row(one) for one in subject.inputs]),
        "Values are standardised with these means and standard deviations; pixels without data are set to the mean.",
    ]
    if subject.class_names:
        rows = [(str(number), name) for number, name in enumerate(subject.class_names)]
        parts += ["## Classes", _table(("id", "class"), rows)]
    parts += ["## To be filled in", "Training data, scores on test data, limits, and the licence of the weights."]
    return "\n\n".join(parts) + "\n"


def _use(subject: Subject) -> str:
    scenes = " ".join(f"--scene {one.name}={one.name}.tif" for one in subject.inputs)
    names = ",".join(one.name for one in subject.inputs)
    if subject.kind == "features":
        command = (
            f"terramind embed {subject.inputs[0].name}.tif --modality {names} --model hub:ORG/NAME --out embeddings"
        )
        return f"```bash\npip install terramind-plugin\n{command}\n```"
    lines = ["pip install terramind-plugin"]
    if subject.kind in ("segmentation", "regression"):
        lines.append(f"terramind map --model hub:ORG/NAME {scenes} --out maps")
    lines.append(f"terramind export --model hub:ORG/NAME --modalities {names} --format onnx --out model.onnx")
    text = "```bash\n" + "\n".join(lines) + "\n```"
    if subject.kind == "segmentation":
        text += (
            "\n\nTo serve it with vLLM, install terramind-plugin beside TerraTorch and vLLM:\n\n```bash\n"
            "vllm serve ORG/NAME --skip-tokenizer-init --enforce-eager --enable-mm-embeds --dtype float32 \\\n"
            "  --io-processor-plugin terratorch_tm_segmentation\n```"
        )
    return text


def _row(one: Input) -> tuple[str, ...]:
    numbers = [", ".join(f"{value:g}" for value in values) for values in (one.mean, one.std)]
    return (one.name, " x ".join(map(str, one.shape)), ", ".join(one.bands), one.units, *numbers)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
