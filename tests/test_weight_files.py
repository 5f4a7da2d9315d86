"""Weight files that are written array by array, compared with the libraries that define their formats."""

import errno
import json
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import load_file

import tiny_models
from conftest import synthesise
from faults import flip_byte
from fyp_jax.checkpoints.inference import inference_shapes
from fyp_jax.convert.lazy import LazyArray, Weights, to_lazy, to_lazy_tree
from fyp_jax.convert.native_safetensors import native_plan, open_native, read_native
from fyp_jax.convert.safetensors_files import WeightsError, open_safetensors, write_safetensors
from fyp_jax.convert.torch_files import open_weights, read_weights
from fyp_jax.convert.torch_pickle import write_torch
from fyp_jax.convert.weight_writer import MANIFEST, ExportPlan, StateDictFile, WeightWriter
from fyp_jax.errors import UserError
from fyp_jax.models.unet import UNet3DConfig
from fyp_jax.trees import TreeMismatch

ARRAYS = {
    "scalar": np.float32(3),
    "empty": np.zeros((0, 4), np.float32),
    "ids": np.arange(77),
    "byte": np.asarray([1, 2, 3], np.uint8),
    "weight": synthesise("weight", (3, 5, 2)),
    "transposed": synthesise("transposed", (7, 5)).T,
    "half": synthesise("half", (9,)).astype(np.float16),
    "brain": synthesise("brain", (3, 3)).astype(jnp.bfloat16),
}
LAZY = {name: to_lazy(array) for name, array in ARRAYS.items()}


def same(found: Any, expected: Any) -> bool:
    """Whether dtype, shape and all values are equal."""
    found, expected = np.asarray(found), np.asarray(expected)
    return found.dtype == expected.dtype and found.shape == expected.shape and np.array_equal(found, expected)


# ---- one file


def test_safetensors_are_read_by_the_library(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    write_safetensors(file, LAZY, {"made_by": "a test"})
    loaded = load_file(file)
    assert sorted(loaded) == sorted(ARRAYS)
    assert all(same(loaded[name], array) for name, array in ARRAYS.items())
    with safe_open(file, "np") as opened:
        assert opened.metadata() == {"made_by": "a test"}


@pytest.mark.parametrize("mmap", [False, True])
def test_pickle_is_read_by_torch(tmp_path: Path, mmap: bool):
    """With `weights_only`, so that no code in it is run; also memory-mapped."""
    file = tmp_path / "model.bin"
    write_torch(file, LAZY)
    loaded = torch.load(file, weights_only=True, mmap=mmap)
    assert list(loaded) == list(ARRAYS)
    for name, array in ARRAYS.items():
        tensor = loaded[name]
        assert str(tensor.dtype) == f"torch.{np.asarray(array).dtype.name}"
        assert tensor.is_contiguous()
        wide = tensor.float() if tensor.is_floating_point() else tensor
        assert same(wide.numpy().astype(np.asarray(array).dtype), array), name
    assert zipfile.ZipFile(file).testzip() is None, "the checksum of a record is wrong"


def test_tensor_bytes_in_pickle_are_aligned(tmp_path: Path):
    file = tmp_path / "model.bin"
    write_torch(file, LAZY)
    weight = torch.load(file, weights_only=True, mmap=True)["weight"]
    assert weight.data_ptr() % 64 == 0


@pytest.mark.parametrize(
    "write", [lambda file: write_safetensors(file, LAZY, {}), lambda f: write_torch(f, LAZY)]
)
def test_equal_arrays_give_equal_files(tmp_path: Path, write: Callable[[Path], Any]):
    checksums = [write(tmp_path / name) for name in ("a", "b")]
    assert checksums[0] == checksums[1]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_at_most_two_arrays_are_in_memory(tmp_path: Path, suffix: str):
    """An array is read while the one before it is written."""
    alive: list[int] = [0]

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive[0] -= self.base is None

    def read() -> np.ndarray:
        assert alive[0] <= 1, f"{alive[0]} arrays are in memory"
        alive[0] += 1
        return Counted((4, 4), np.float32)

    arrays = {f"x{i}": LazyArray((4, 4), np.dtype(np.float32), read) for i in range(10)}
    WeightWriter().write_folder(ExportPlan([StateDictFile(f"model{suffix}", arrays)]), tmp_path / "out", {})


# ---- folders


def make_plan(suffix: str = ".safetensors", arrays: dict[str, LazyArray] = LAZY) -> ExportPlan:
    return ExportPlan([StateDictFile(f"part/model{suffix}", arrays)], {"part/config.json": "{}"}, {})


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_no_larger_than_asked_and_match_their_index(tmp_path: Path, suffix: str):
    """Only a shard with a single array may be larger."""
    written = WeightWriter(max_shard_size=200).write_folder(make_plan(suffix), tmp_path / "out", {})
    index = tmp_path / "out" / "part" / f"model{suffix}.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    assert sorted(weight_map) == sorted(ARRAYS)
    assert len(written) == len(set(weight_map.values())) > 2
    for file in written:
        data = sum(LAZY[name].nbytes for name in file.arrays)
        assert data <= 200 or len(file.arrays) == 1
    expected = {name: np.asarray(x) for name, x in ARRAYS.items()}
    for name, array in read_weights(index).items():
        floats = jnp.issubdtype(expected[name].dtype, jnp.floating)
        assert same(array, expected[name].astype(np.float32) if floats else expected[name])


def test_manifest_has_a_checksum_for_each_array(tmp_path: Path):
    WeightWriter(np.float16).write_folder(make_plan(), tmp_path / "out", {"step": 7})
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["step"] == 7
    (arrays,) = manifest["files"].values()
    for name, array in open_weights(tmp_path / "out" / "part" / "model.safetensors").items():
        assert arrays[name]["crc32"] == zlib.crc32(array.read().tobytes())
        assert arrays[name]["dtype"] == array.dtype.name
    assert arrays["weight"]["dtype"] == "float16"
    assert arrays["ids"]["dtype"] == "int64"


def test_overflow_in_float16_is_refused(tmp_path: Path):
    large = {"layer.weight": to_lazy(np.asarray([1e5, np.inf], np.float32))}
    with pytest.raises(UserError, match=r"layer\.weight: .* too large for float16"):
        WeightWriter(np.float16).write_folder(make_plan(arrays=large), tmp_path / "out", {})
    assert not any(tmp_path.iterdir())
    infinite = {"layer.weight": to_lazy(np.asarray([np.inf], np.float32))}
    WeightWriter(np.float16).write_folder(make_plan(arrays=infinite), tmp_path / "out", {})


def test_full_disk_leaves_the_earlier_export(tmp_path: Path):
    """The disk fills up while arrays are written. No other file is left."""
    out = tmp_path / "out"
    WeightWriter().write_folder(make_plan(), out, {})
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}

    def full() -> np.ndarray:
        raise OSError(errno.ENOSPC, "No space left on device")

    arrays = LAZY | {"last": LazyArray((2,), np.dtype(np.float32), full)}
    with pytest.raises(UserError, match=f"^{out}: cannot be written .No space left on device"):
        WeightWriter().write_folder(make_plan(arrays=arrays), out, {}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_existing_folder_is_replaced_only_if_it_was_exported(tmp_path: Path):
    out = tmp_path / "out"
    WeightWriter().write_folder(make_plan(), out, {"run": 1})
    with pytest.raises(UserError, match="exists already .--overwrite"):
        WeightWriter().write_folder(make_plan(), out, {"run": 2})
    WeightWriter().write_folder(make_plan(), out, {"run": 3}, overwrite=True)
    assert json.loads((out / MANIFEST).read_text())["run"] == 3
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="was not exported"):
        WeightWriter().write_folder(make_plan(), precious, {}, overwrite=True)
    assert (precious / "letter.txt").read_text() == "dear"


# ---- the native format


@pytest.fixture(scope="module")
def weights() -> Weights:
    flat = flatten_dict(inference_shapes(tiny_models.UNET), sep="/")
    arrays = unflatten_dict({path: synthesise(path, leaf.shape) for path, leaf in flat.items()}, sep="/")
    return Weights(tiny_models.UNET, to_lazy_tree(arrays), {"stage": "motion", "step": 12})


def write_native(weights: Weights, folder: Path, writer: WeightWriter = WeightWriter()) -> Path:  # noqa: B008
    writer.write_folder(native_plan(weights), folder, {})
    return folder


@pytest.mark.parametrize("max_shard_size", [10**9, 20_000])
def test_native_format_round_trip_is_bitwise(weights: Weights, tmp_path: Path, max_shard_size: int):
    config, params, provenance = read_native(
        write_native(weights, tmp_path / "out", WeightWriter(max_shard_size=max_shard_size))
    )
    assert (config, provenance) == (weights.config, weights.provenance)
    flat = flatten_dict(params, sep="/")
    assert sorted(flat) == sorted(flatten_dict(weights.models, sep="/"))
    assert all(
        same(flat[path], array.read()) for path, array in flatten_dict(weights.models, sep="/").items()
    )


def test_native_format_in_bfloat16_is_rounded(weights: Weights, tmp_path: Path):
    folder = write_native(weights, tmp_path / "out", WeightWriter(jnp.bfloat16))
    assert {x.dtype.name for x in flatten_dict(open_native(folder).models, sep="/").values()} == {"bfloat16"}
    _, params, _ = read_native(folder)
    for path, array in flatten_dict(params, sep="/").items():
        assert same(
            array, flatten_dict(weights.models, sep="/")[path].read().astype(jnp.bfloat16).astype(np.float32)
        )


def test_damaged_native_files_are_refused(weights: Weights, tmp_path: Path):
    folder = write_native(weights, tmp_path / "out")
    file = folder / "pose_encoder.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match=f"^{file}: not a complete safetensors file"):
        read_native(folder)
    file.unlink()
    with pytest.raises(WeightsError, match=f"^{file}: no such file"):
        read_native(folder)
    arrays = {
        path: to_lazy(x.read()) for path, x in flatten_dict(weights.models["pose_encoder"], sep="/").items()
    }
    write_safetensors(file, arrays, {"format": "pt"})
    with pytest.raises(WeightsError, match=f"^{file}: not the native format"):
        read_native(folder)
    metadata = native_plan(weights).weights[1].metadata
    extra = arrays | {"surprise": to_lazy(np.zeros(1))}
    del extra["conv_in/bias"]
    write_safetensors(file, extra, metadata)
    with pytest.raises(TreeMismatch, match=r"missing \(conv_in/bias\); .* unexpected \(surprise\)"):
        read_native(folder)
    other = weights._replace(config=UNet3DConfig(**tiny_models.UNET.to_json() | {"norm_eps": 1e-3}))
    write_safetensors(file, arrays, native_plan(other).weights[1].metadata)
    with pytest.raises(WeightsError, match="different configs"):
        read_native(folder)


def test_safetensors_of_an_export_with_a_changed_byte_are_refused_by_the_name_of_the_array(tmp_path: Path):
    arrays = {name: to_lazy(np.arange(100, dtype=np.float32)) for name in ("a", "b")}
    plan = ExportPlan([StateDictFile("unet/model.safetensors", arrays)])
    WeightWriter().write_folder(plan, tmp_path / "out", {})
    file = tmp_path / "out" / "unet" / "model.safetensors"
    flip_byte(file, offset=file.stat().st_size - 10)
    found, _ = open_safetensors(file)
    np.testing.assert_array_equal(found["a"].read(), arrays["a"].read())
    with pytest.raises(WeightsError, match=f"^{re.escape(str(file))}: b is not what was written"):
        found["b"].read()
    (tmp_path / "out" / MANIFEST).unlink()
    open_safetensors(file)[0]["b"].read()


def test_overwriting_removes_what_an_export_wrote_and_keeps_and_names_all_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The published sampling script writes its clips into the folder of the export."""
    first = make_plan()
    first = first._replace(
        weights=[*first.weights, StateDictFile("old.safetensors", {"x": to_lazy(np.ones(3))})],
        text_files={**first.text_files, "old/config.json": "{}"},
    )
    out = tmp_path / "out"
    WeightWriter().write_folder(first, out, {})
    clip = out / "old" / "inference" / "clip.gif"
    clip.parent.mkdir()
    clip.write_bytes(b"precious")
    WeightWriter().write_folder(make_plan(), out, {}, overwrite=True)
    assert clip.read_bytes() == b"precious"
    assert "old/inference/clip.gif" in caplog.text
    assert not (out / "old.safetensors").exists()
    assert not (out / "old" / "config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert load_file(out / make_plan().weights[0].file)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "sub/x.safetensors"])
def test_index_of_shards_that_names_a_file_elsewhere_is_refused(tmp_path: Path, name: str):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(WeightsError, match=f"^{re.escape(str(index))}: .*no file beside it"):
        open_weights(index)
