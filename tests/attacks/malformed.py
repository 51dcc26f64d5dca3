"""Ways to spoil a checkpoint: each takes a sound one and writes another file."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

Content = dict[str, Any]
Kind = Callable[[Content, Path], Path]
"""Writes a spoilt copy of a checkpoint into a folder and returns its path."""
KINDS: dict[str, Kind] = {}
WHOLE: set[str] = set()
"""Kinds that are no damage: their file must load."""


def kind(name: str, whole: bool = False) -> Callable[[Kind], Kind]:
    def add(function: Kind) -> Kind:
        assert name not in KINDS
        KINDS[name] = function
        if whole:
            WHOLE.add(name)
        return function

    return add


def saved(content: Any, folder: Path, **options: Any) -> Path:
    path = folder / "spoilt.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, path, **options)
    return path


def victims(state: dict[str, Tensor]) -> dict[str, str]:
    """Return names of weights of different kinds, which every entry needs; of adapters three that are alike."""
    names = [name for name, x in state.items() if "lora_" in name]
    if names:
        return {"matrix": names[0], "norm": names[1], "projection": names[-1]}
    ends = {"matrix": ".encoder.0.attn.qkv.weight", "norm": ".encoder.0.norm1.weight", "projection": "proj.weight"}
    return {part: next(name for name in state if name.endswith(end)) for part, end in ends.items()}


# The outer parts.

SETTINGS = {"none": None, "list": [1], "empty list": [], "text": "abc", "number": 5, "tensor": torch.zeros(2)}
for label, value in {**SETTINGS, "whole numbers as keys": {1: 2}}.items():
    KINDS[f"hyper_parameters: {label}"] = lambda c, f, v=value: saved({**c, "hyper_parameters": v}, f)
    KINDS[f"model_args: {label}"] = lambda c, f, v=value: saved({**c, "hyper_parameters": {"model_args": v}}, f)
    KINDS[f"backbone_kwargs: {label}"] = lambda c, f, v=value: saved(
        {**c, "hyper_parameters": {"model_args": {"backbone_kwargs": v}}}, f
    )
    KINDS[f"class_names: {label}"] = lambda c, f, v=value: saved(
        {**c, "hyper_parameters": {**(c.get("hyper_parameters") or {}), "class_names": v}}, f
    )
WHOLE |= {"hyper_parameters: none", "model_args: none", "backbone_kwargs: none", "class_names: none"}
BANDS = {**SETTINGS, "number": {"S2L2A": 5}, "word": {"S2L2A": "B02"}, "none inside": {"S2L2A": [None]}, "empty": {}}
BANDS |= {"lists inside": {"S2L2A": [["B02"]]}, "key": {3: ["B02"]}, "no bands": {"S2L2A": []}, "unknown": {"X": ["B"]}}
BANDS |= {"unknown bands": {"S2L2A": ["B02"] * 12}}
for label, value in BANDS.items():
    KINDS[f"backbone_bands: {label}"] = lambda c, f, v=value: saved(
        {**c, "hyper_parameters": {"model_args": {"backbone_bands": v}}}, f
    )
STATES = {**SETTINGS, "empty": {}, "nested": {"state_dict": {}}}
for label, value in STATES.items():
    KINDS[f"state_dict: {label}"] = lambda c, f, v=value: saved({**c, "state_dict": v}, f)
    KINDS[f"model: {label}"] = lambda c, f, v=value: saved({"model": v}, f)
    KINDS[f"everything: {label}"] = lambda c, f, v=value: saved(v, f)
for label, key in {"number": 7, "bytes": b"x", "tuple": ("a", 1), "none": None, "empty": ""}.items():
    KINDS[f"name: {label}"] = lambda c, f, k=key: saved({**c, "state_dict": {**c["state_dict"], k: torch.zeros(1)}}, f)
WHOLE.add("name: empty")
for label, value in {"none": None, "list": [1.0], "number": 1.0, "mapping": {"weight": torch.zeros(1)}}.items():
    KINDS[f"entry: {label}"] = lambda c, f, v=value: saved(
        {**c, "state_dict": {**c["state_dict"], victims(c["state_dict"])["matrix"]: v}}, f
    )


@kind("state_dict: missing")
def _(content: Content, folder: Path) -> Path:
    return saved({key: value for key, value in content.items() if key != "state_dict"}, folder)


@kind("state_dict: by module")
def _(content: Content, folder: Path) -> Path:
    nested: dict[str, Any] = {}
    for name, value in content["state_dict"].items():
        place = nested
        *parents, last = name.split(".")
        for word in parents:
            place = place.setdefault(word, {})
        place[last] = value
    return saved({**content, "state_dict": nested}, folder)


@kind("state_dict: twice inside itself")
def _(content: Content, folder: Path) -> Path:
    return saved({**content, "state_dict": {"state_dict": content["state_dict"]}}, folder)


@kind("names: a million letters long")
def _(content: Content, folder: Path) -> Path:
    extra = {f"model.encoder.{'x' * 10**6}.{number}": torch.zeros(1) for number in range(3)}
    return saved({**content, "state_dict": extra}, folder)


@kind("names: twenty thousand")
def _(content: Content, folder: Path) -> Path:
    one = torch.zeros(1)
    return saved({**content, "state_dict": {f"encoder_embeddings.{number}": one for number in range(20_000)}}, folder)


@kind("names: all with a space")
def _(content: Content, folder: Path) -> Path:
    state = {f" {name.replace('.', ' .')}": value for name, value in content["state_dict"].items()}
    return saved({**content, "state_dict": state}, folder)


# Single weights.


def quantised(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)


def with_value(number: float) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x.view(-1)[-1] = number
        return x

    return change


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda x: x.to_sparse(),
    "sparse rows": lambda x: x.reshape(len(x), -1).to_sparse_csr(),
    "meta": lambda x: x.to("meta"),
    "quantised": quantised,
    "complex": lambda x: x.to(torch.complex64),
    "int64": lambda x: x.to(torch.int64),
    "int8": lambda x: x.to(torch.int8),
    "boolean": lambda x: x > 0,
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "one NaN": with_value(float("nan")),
    "one inf": with_value(float("inf")),
    "one -inf": with_value(float("-inf")),
    "float16 NaN": lambda x: with_value(float("nan"))(x).half(),
    "bfloat16 inf": lambda x: with_value(float("inf"))(x).bfloat16(),
    "float64 NaN": lambda x: with_value(float("nan"))(x).double(),
    "float16 overflow": lambda x: (x * 1e9).half(),
    "all NaN": lambda x: torch.full_like(x, float("nan")),
    "no elements": lambda x: x[:0],
    "no dimension": lambda x: x.reshape(-1)[0],
    "one row less": lambda x: x[:-1].clone(),
    "one dimension more": lambda x: x[None].clone(),
    "flat": lambda x: x.reshape(-1)[: x.numel() - 1].clone(),
    "nested": lambda x: torch.nested.nested_tensor([x, x[:1]]),
}
FINE: dict[str, Callable[[Tensor], Tensor]] = {
    "parameter": lambda x: torch.nn.Parameter(x.clone()),
    "float64": lambda x: x.double(),
    "not contiguous": lambda x: (
        x.t().contiguous().t() if x.ndim == 2 else x.repeat_interleave(2)[::2] if x.ndim == 1 else x
    ),
}
for part in ("matrix", "norm", "projection"):
    for label, change in {**CHANGES, **FINE}.items():

        def _spoil(content: Content, folder: Path, part: str = part, change: Any = change) -> Path:
            state = dict(content["state_dict"])
            name = victims(state)[part]
            state[name] = change(state[name].detach())
            return saved({**content, "state_dict": state}, folder)

        KINDS[f"{part}: {label}"] = _spoil
        if label in FINE:
            WHOLE.add(f"{part}: {label}")

    def _remove(content: Content, folder: Path, part: str = part) -> Path:
        state = dict(content["state_dict"])
        del state[victims(state)[part]]
        return saved({**content, "state_dict": state}, folder)

    def _rename(content: Content, folder: Path, part: str = part) -> Path:
        state = dict(content["state_dict"])
        name = victims(state)[part]
        state[f"{name}s"] = state.pop(name)
        return saved({**content, "state_dict": state}, folder)

    KINDS[f"{part}: removed"] = _remove
    KINDS[f"{part}: renamed"] = _rename


# Bytes.


def _bytes(content: Content, folder: Path) -> bytes:
    return saved(content, folder).read_bytes()


def _write(folder: Path, data: bytes, name: str = "spoilt.ckpt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _legacy(content: Content, folder: Path) -> bytes:
    return saved(content, folder, _use_new_zipfile_serialization=False).read_bytes()


def _plain(content: Content) -> bytes:
    state = {name: value.detach().clone().contiguous() for name, value in content["state_dict"].items()}
    return save_safetensors(state)


CONSTANT = {
    "empty": b"",
    "one byte": b"\x80",
    "two letters": b"PK",
    "zeros": bytes(5000),
    "web page": b"<!DOCTYPE html><html>404</html>",
    "json": json.dumps({"state_dict": {}}).encode(),
    "pointer of git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "noise": random.Random(0).randbytes(5000),
    "pickle of a number": pickle.dumps(3),
    "pickle of a list": pickle.dumps([1, 2]),
    "pickle that stops": b"\x80\x02}q\x00",
    "pickle of bytes": pickle.dumps(b"x" * 100),
    "pickle with wrong mark": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "pickle of depth": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "pickle that pops nothing": b"0.",
    "pickle that runs a command": b"cos\nsystem\n(S'exit 1'\ntR.",
    "pickle of a class": pickle.dumps(io.BytesIO),
    "pickle memo": b"\x80\x02h\x05.",
    "end of an archive": b"PK\x05\x06" + bytes(18),
}
for label, data in CONSTANT.items():
    for suffix in (".ckpt", ".safetensors"):
        KINDS[f"bytes: {label}{suffix}"] = lambda c, f, d=data, s=suffix: _write(f, d, f"spoilt{s}")
for share in (1, 10, 30, 50, 90, 99):
    KINDS[f"cut: {share} %"] = lambda c, f, s=share: _write(f, (d := _bytes(c, f))[: len(d) * s // 100])
    KINDS[f"legacy, cut: {share} %"] = lambda c, f, s=share: _write(f, (d := _legacy(c, f))[: len(d) * s // 100])
    KINDS[f"safetensors, cut: {share} %"] = lambda c, f, s=share: _write(
        f, (d := _plain(c))[: len(d) * s // 100], "spoilt.safetensors"
    )
KINDS["cut: last byte"] = lambda c, f: _write(f, _bytes(c, f)[:-1])
KINDS["cut: first byte"] = lambda c, f: _write(f, _bytes(c, f)[1:])
KINDS["halves exchanged"] = lambda c, f: _write(f, (d := _bytes(c, f))[len(d) // 2 :] + d[: len(d) // 2])
KINDS["gzip"] = lambda c, f: _write(f, gzip.compress(_bytes(c, f), 1))
KINDS["legacy"] = lambda c, f: _write(f, _legacy(c, f))
KINDS["safetensors"] = lambda c, f: _write(f, _plain(c), "spoilt.safetensors")
WHOLE |= {"legacy", "safetensors"}
KINDS["safetensors named ckpt"] = lambda c, f: _write(f, _plain(c))
KINDS["zip named safetensors"] = lambda c, f: _write(f, _bytes(c, f), "spoilt.safetensors")


@kind("tar")
def _(content: Content, folder: Path) -> Path:
    inner = saved(content, folder)
    with tarfile.open(folder / "spoilt.tar", "w") as archive:
        archive.add(inner, "best.ckpt")
    return _write(folder, (folder / "spoilt.tar").read_bytes())


def _flip(data: bytes, seed: int, count: int) -> bytes:
    """Return bytes with some changed, where the weights are."""
    drawn, out = random.Random(seed), bytearray(data)
    for _ in range(count):
        out[drawn.randrange(len(out) // 10, len(out) * 9 // 10)] ^= 1 << drawn.randrange(8)
    return bytes(out)


for seed in range(25):
    KINDS[f"bits turned: {seed}"] = lambda c, f, s=seed: _write(f, _flip(_bytes(c, f), s, 1 + s % 5))


def _overwrite(data: bytes, seed: int) -> bytes:
    drawn, out = random.Random(seed), bytearray(data)
    length = drawn.choice([64, 4096, 100_000])
    begin = drawn.randrange(max(1, len(out) - length))
    out[begin : begin + length] = drawn.choice([bytes(length), drawn.randbytes(length), b"\xff" * length])
    return bytes(out[: len(data)])


for seed in range(25):
    KINDS[f"overwritten: {seed}"] = lambda c, f, s=seed: _write(f, _overwrite(_bytes(c, f), s))


def _header(content: Content, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Return a safetensors file with another header."""
    data = _plain(content)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    made = change(header)
    made = made if isinstance(made, bytes) else json.dumps(made).encode()
    return _write(folder, struct.pack("<Q", len(made)) + made + data[8 + length :], "spoilt.safetensors")


def _each(field: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: {name: {**entry, field: value} for name, entry in header.items() if name != "__metadata__"}


for label, change in {
    "offsets beyond": _each("data_offsets", [0, 10**12]),
    "offsets that overlap": _each("data_offsets", [0, 4]),
    "offsets reversed": _each("data_offsets", [8, 0]),
    "offsets missing": _each("data_offsets", []),
    "unknown type": _each("dtype", "F7"),
    "another type": _each("dtype", "I8"),
    "shape of text": _each("shape", "abc"),
    "negative shape": _each("shape", [-1, 2]),
    "huge shape": _each("shape", [2**62, 2**62]),
    "list": lambda header: list(header),
    "no JSON": lambda header: b"{" * 100,
    "no text": lambda header: b"\xff\xfe" * 50,
    "empty": lambda header: {},
}.items():
    KINDS[f"header: {label}"] = lambda c, f, change=change: _header(c, f, change)
KINDS["header: longer than the file"] = lambda c, f: _write(
    f, struct.pack("<Q", 2**60) + _plain(c)[8:], "a.safetensors"
)


def _repack(content: Content, folder: Path, change: Callable[[str, bytes], Any], method: int = 0) -> Path:
    """Return a zip file whose members are changed, with right checksums."""
    source = io.BytesIO(_bytes(content, folder))
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(folder / "spoilt.ckpt", "w", method) as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return folder / "spoilt.ckpt"


def _largest(content: Content) -> int:
    return max(value.numel() * value.element_size() for value in content["state_dict"].values())


for label, change in {
    "without the pickle": lambda name, data: None if name.endswith("data.pkl") else data,
    "without a member": lambda name, data: None if name.endswith("data/2") else data,
    "without members": lambda name, data: None if "/data/" in name else data,
    "short members": lambda name, data: data[:-8] if "/data/" in name and len(data) > 64 else data,
    "long members": lambda name, data: data + bytes(64) if "/data/" in name else data,
    "empty members": lambda name, data: b"" if "/data/" in name else data,
    "another byte order": lambda name, data: b"middle" if name.endswith("byteorder") else data,
    "another version": lambda name, data: b"99\n" if name.endswith("version") else data,
    "pickle cut": lambda name, data: data[: len(data) // 2] if name.endswith("data.pkl") else data,
    "pickle empty": lambda name, data: b"" if name.endswith("data.pkl") else data,
    "pickle that runs a command": lambda name, data: (
        CONSTANT["pickle that runs a command"] if name.endswith("data.pkl") else data
    ),
    "pickle of another kind": lambda name, data: pickle.dumps([1]) if name.endswith("data.pkl") else data,
    "storage of another type": lambda name, data: (
        data.replace(b"FloatStorage", b"LongStorage ") if name.endswith("data.pkl") else data
    ),
    "more numbers than stored": lambda name, data: data.replace(b"K@", b"K\xf0") if name.endswith("data.pkl") else data,
}.items():
    KINDS[f"archive: {label}"] = lambda c, f, change=change: _repack(c, f, change)
KINDS["archive: compressed"] = lambda c, f: _repack(c, f, lambda name, data: data, zipfile.ZIP_DEFLATED)


@kind("archive: two members of one name")
def _(content: Content, folder: Path) -> Path:
    path = saved(content, folder)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("spoilt/data/0", b"\x00" * 64)
    return path


@kind("archive: written without checksums", whole=True)
def _(content: Content, folder: Path) -> Path:
    torch.serialization.set_crc32_options(False)
    try:
        return saved(content, folder)
    finally:
        torch.serialization.set_crc32_options(True)


class Code:
    """Something that is neither a tensor nor a plain value."""


@kind("archive: holds an object")
def _(content: Content, folder: Path) -> Path:
    return saved({**content, "callback": Code()}, folder)


@kind("archive: holds a function")
def _(content: Content, folder: Path) -> Path:
    return saved({**content, "callback": os.path.join}, folder)


# Paths.


@kind("path: folder")
def _(content: Content, folder: Path) -> Path:
    (folder / "spoilt.ckpt").mkdir()
    return folder / "spoilt.ckpt"


@kind("path: nothing there")
def _(content: Content, folder: Path) -> Path:
    return folder / "spoilt.ckpt"


@kind("path: below a file")
def _(content: Content, folder: Path) -> Path:
    return saved(content, folder) / "spoilt.ckpt"


@kind("path: broken link")
def _(content: Content, folder: Path) -> Path:
    (folder / "spoilt.ckpt").symlink_to(folder / "nowhere")
    return folder / "spoilt.ckpt"


@kind("path: link to itself")
def _(content: Content, folder: Path) -> Path:
    (folder / "spoilt.ckpt").symlink_to(folder / "spoilt.ckpt")
    return folder / "spoilt.ckpt"


@kind("path: pipe")
def _(content: Content, folder: Path) -> Path:
    os.mkfifo(folder / "spoilt.ckpt")
    return folder / "spoilt.ckpt"


@kind("path: device")
def _(content: Content, folder: Path) -> Path:
    return Path("/dev/null")


@kind("path: name too long")
def _(content: Content, folder: Path) -> Path:
    return folder / ("x" * 300 + ".ckpt")
