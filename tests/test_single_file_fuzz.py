"""Damaged and altered single files end in a UserError or in a pipeline, never in a traceback or a hang."""

import json
import logging
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flax.traverse_util import flatten_dict

from faults import TIMEOUT, time_limit
from fyp_jax import trees
from fyp_jax.convert.open_pipeline import open_pipeline
from fyp_jax.convert.pipeline_folder import PipelineOptions
from fyp_jax.convert.torch_key_mapping import torch_layout
from fyp_jax.errors import UserError
from fyp_jax.models.unet import TEMPORAL, unet_shapes
from single_files import SD1, SD2, save, single_file

FEW, MANY = 10, 500
NAMES = ("weight", "model.diffusion_model.x", "input_blocks.99999999999.0.in_layers.0.weight", "module.", "")

Tensors = dict[str, torch.Tensor]


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flipped_header(content: bytes, rng: random.Random) -> bytes:
    """A few bytes of the first 4000, where the header or the first records are."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(min(4000, len(changed)))] = rng.randrange(256)
    return bytes(changed)


def flipped_anywhere(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 50)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def other_header(content: bytes, rng: random.Random) -> bytes:
    """A header of safetensors with other numbers, of a right length."""
    (length,) = struct.unpack("<Q", content[:8])
    if length > len(content):  # not safetensors
        return flipped_header(content, rng)
    header = json.loads(content[8 : 8 + length])
    name = rng.choice(list(header))
    entry = rng.choice([{}, 3, None, [], {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}])
    header[name] = rng.choice([entry, {**header[name], "shape": [-1]}, {**header[name], "dtype": "F8_E4M3"}])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def missing_arrays(arrays: Tensors, rng: random.Random) -> Tensors:
    lost = set(rng.sample(sorted(arrays), rng.choice([1, 3, len(arrays) // 2])))
    return {name: x for name, x in arrays.items() if name not in lost}


def missing_part(arrays: Tensors, rng: random.Random) -> Tensors:
    prefix = rng.choice(["model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "model.", ""])
    return {name: x for name, x in arrays.items() if not name.startswith(prefix)}


def extra_arrays(arrays: Tensors, rng: random.Random) -> Tensors:
    name = rng.choice(sorted(arrays))
    extra = rng.choice([name + ".x", "x." + name, name.replace("0", "99999999999"), *NAMES])
    return {**arrays, extra: torch.zeros(rng.choice([(), (0,), (3,), (1, 2, 3)]))}


def wrong_shapes(arrays: Tensors, rng: random.Random) -> Tensors:
    def other(x: torch.Tensor) -> torch.Tensor:
        return rng.choice([x[None], x.reshape(-1), torch.cat([x, x]) if x.ndim else x[None], torch.zeros(0)])

    return {**arrays, **{name: other(arrays[name]) for name in rng.sample(sorted(arrays), 3)}}


def wrong_names(arrays: Tensors, rng: random.Random) -> Tensors:
    name = rng.choice(sorted(arrays))
    parts = name.split(".")
    i = rng.randrange(len(parts))
    parts[i] = rng.choice(["", "0", "7", "99999999999", "x", parts[i] * 2])
    return {".".join(parts) if key == name else key: x for key, x in arrays.items()}


def wrong_dtypes(arrays: Tensors, rng: random.Random) -> Tensors:
    dtype = rng.choice([torch.int8, torch.bool, torch.float16, torch.bfloat16, torch.float64, torch.int64])
    return {**arrays, **{name: arrays[name].to(dtype) for name in rng.sample(sorted(arrays), 5)}}


BYTES: list[Callable[..., bytes]] = [truncated, flipped_header, flipped_anywhere, other_header]
ARRAYS: list[Callable[..., Tensors]] = [
    *(missing_arrays, missing_part, extra_arrays, wrong_shapes, wrong_names, wrong_dtypes)
]


def read_all(file: Path) -> None:
    """All that sampling reads of a file, as far as it goes without compiling."""
    pipeline = open_pipeline(str(file), options=PipelineOptions(prediction_type="epsilon"))
    pipeline.schedule()
    for part in ("vae", "text_encoder"):
        pipeline.json(part)
    spatial = {
        path: shape
        for path, shape in flatten_dict(unet_shapes(pipeline.unet_config()), sep="/").items()
        if not TEMPORAL.search(path)
    }
    trees.check_same(pipeline.lazy_state_dict("unet"), _layout(spatial), "UNet")
    for part in ("unet", "vae", "text_encoder"):
        pipeline._read(part)


def _layout(flat: dict[str, Any]) -> dict[str, Any]:
    from flax.traverse_util import unflatten_dict

    return torch_layout(unflatten_dict(flat, sep="/"))


@pytest.fixture(scope="module")
def models() -> list[Tensors]:
    return [single_file(SD1), single_file(SD2, is_sd2=True)]


@pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.release)])
def test_altered_files_are_read_or_refused(
    models: list[Tensors], tmp_path: Path, cases: int, caplog: pytest.LogCaptureFixture
):
    """Both outcomes occur; each refusal is one line."""
    caplog.set_level(logging.CRITICAL)
    read, messages = 0, []
    contents = {}
    for suffix in (".safetensors", ".ckpt"):
        for i, arrays in enumerate(models):
            contents[i, suffix] = save(arrays, tmp_path / f"whole{suffix}").read_bytes()
    for case in range(cases):
        rng = random.Random(case)
        i, suffix = rng.randrange(2), rng.choice([".safetensors", ".ckpt"])
        file, alter = tmp_path / f"model{suffix}", [*BYTES, *ARRAYS][case % 10]
        if alter in BYTES:
            file.write_bytes(alter(contents[i, suffix], rng))
        else:
            save(alter(models[i], rng), file)
        try:
            with time_limit(TIMEOUT):
                read_all(file)
            read += 1
        except UserError as error:
            messages.append(str(error))
        except Exception as error:
            raise AssertionError(f"case {case}, {alter.__name__}, {suffix}: {error!r}") from error
    assert read > 0
    assert messages
    assert all(message.strip() and message.count("\n") == 0 for message in messages)
