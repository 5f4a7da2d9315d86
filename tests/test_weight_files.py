"""Weight files that are written array by array, against the libraries whose forms they are."""

import errno
import json
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
from fyp_jax.checkpoints.inference import inference_shapes
from fyp_jax.convert.lazy import LazyArray, Weights, to_lazy, to_lazy_tree
from fyp_jax.convert.native_safetensors import native_plan, open_native, read_native
from fyp_jax.convert.safetensors_files import WeightsError, write_safetensors
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
STORED = {name: to_lazy(array) for name, array in ARRAYS.items()}


def same(found: Any, expected: Any) -> bool:
    """Dtype, shape and bits."""
    found, expected = np.asarray(found), np.asarray(expected)
    return found.dtype == expected.dtype and found.shape == expected.shape and np.array_equal(found, expected)


# ---- one file


def test_safetensors_as_the_library_reads_them(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    write_safetensors(file, STORED, {"made_by": "a test"})
    loaded = load_file(file)
    assert sorted(loaded) == sorted(ARRAYS)
    assert all(same(loaded[name], array) for name, array in ARRAYS.items())
    with safe_open(file, "np") as opened:
        assert opened.metadata() == {"made_by": "a test"}


@pytest.mark.parametrize("mmap", [False, True])
def test_pickle_as_torch_reads_it(tmp_path: Path, mmap: bool):
    """Without running anything that stands in it, and mapped into memory."""
    file = tmp_path / "model.bin"
    write_torch(file, STORED)
    loaded = torch.load(file, weights_only=True, mmap=mmap)
    assert list(loaded) == list(ARRAYS)
    for name, array in ARRAYS.items():
        tensor = loaded[name]
        assert str(tensor.dtype) == f"torch.{np.asarray(array).dtype.name}"
        assert tensor.is_contiguous()
        wide = tensor.float() if tensor.is_floating_point() else tensor
        assert same(wide.numpy().astype(np.asarray(array).dtype), array), name
    assert zipfile.ZipFile(file).testzip() is None, "a record has another checksum than the archive says"


def test_numbers_begin_where_torch_wants_them(tmp_path: Path):
    file = tmp_path / "model.bin"
    write_torch(file, STORED)
    weight = torch.load(file, weights_only=True, mmap=True)["weight"]
    assert weight.data_ptr() % 64 == 0


@pytest.mark.parametrize(
    "write", [lambda file: write_safetensors(file, STORED, {}), lambda f: write_torch(f, STORED)]
)
def test_the_same_arrays_give_the_same_file(tmp_path: Path, write: Callable[[Path], Any]):
    sums = [write(tmp_path / name) for name in ("a", "b")]
    assert sums[0] == sums[1]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_arrays_are_read_one_after_the_other(tmp_path: Path, ending: str):
    """One is read while the one before is written, so that there are never more than two in memory."""
    alive: list[int] = [0]

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive[0] -= self.base is None

    def read() -> np.ndarray:
        assert alive[0] <= 1, f"{alive[0]} arrays are in memory"
        alive[0] += 1
        return Counted((4, 4), np.float32)

    arrays = {f"x{i}": LazyArray((4, 4), np.dtype(np.float32), read) for i in range(10)}
    WeightWriter().write_folder(
        ExportPlan([StateDictFile(f"model{ending}", arrays)], {}, {}), tmp_path / "out", {}
    )


# ---- folders


def contents(ending: str = ".safetensors", arrays: dict[str, LazyArray] = STORED) -> ExportPlan:
    return ExportPlan([StateDictFile(f"part/model{ending}", arrays)], {"part/config.json": "{}"}, {})


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_shards(tmp_path: Path, ending: str):
    """As their index says, none larger than asked for but where one array is."""
    written = WeightWriter(max_shard_size=200).write_folder(contents(ending), tmp_path / "out", {})
    index = tmp_path / "out" / "part" / f"model{ending}.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    assert sorted(weight_map) == sorted(ARRAYS)
    assert len(written) == len(set(weight_map.values())) > 2
    for file in written:
        data = sum(STORED[name].nbytes for name in file.arrays)
        assert data <= 200 or len(file.arrays) == 1
    expected = {name: np.asarray(x) for name, x in ARRAYS.items()}
    for name, array in read_weights(index).items():
        floats = jnp.issubdtype(expected[name].dtype, jnp.floating)
        assert same(array, expected[name].astype(np.float32) if floats else expected[name])


def test_manifest_has_a_checksum_for_each_array(tmp_path: Path):
    WeightWriter(np.float16).write_folder(contents(), tmp_path / "out", {"step": 7})
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["step"] == 7
    (arrays,) = manifest["files"].values()
    for name, array in open_weights(tmp_path / "out" / "part" / "model.safetensors").items():
        assert arrays[name]["crc32"] == zlib.crc32(array.read().tobytes())
        assert arrays[name]["dtype"] == array.dtype.name
    assert arrays["weight"]["dtype"] == "float16"
    assert arrays["ids"]["dtype"] == "int64"


def test_numbers_that_float16_has_not(tmp_path: Path):
    large = {"layer.weight": to_lazy(np.asarray([1e5, np.inf], np.float32))}
    with pytest.raises(UserError, match=r"layer\.weight: .* too large for float16"):
        WeightWriter(np.float16).write_folder(contents(arrays=large), tmp_path / "out", {})
    assert not any(tmp_path.iterdir())
    infinite = {"layer.weight": to_lazy(np.asarray([np.inf], np.float32))}
    WeightWriter(np.float16).write_folder(contents(arrays=infinite), tmp_path / "out", {})


def test_disk_full(tmp_path: Path):
    """On the way: nothing stays, and an export that was there is as it was."""
    out = tmp_path / "out"
    WeightWriter().write_folder(contents(), out, {})
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}

    def full() -> np.ndarray:
        raise OSError(errno.ENOSPC, "No space left on device")

    arrays = STORED | {"last": LazyArray((2,), np.dtype(np.float32), full)}
    with pytest.raises(UserError, match=f"^{out}: cannot be written .No space left on device"):
        WeightWriter().write_folder(contents(arrays=arrays), out, {}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_what_is_there_is_not_overwritten(tmp_path: Path):
    out = tmp_path / "out"
    WeightWriter().write_folder(contents(), out, {"run": 1})
    (out / "stale").touch()
    with pytest.raises(UserError, match="is there already .--overwrite"):
        WeightWriter().write_folder(contents(), out, {"run": 2})
    WeightWriter().write_folder(contents(), out, {"run": 3}, overwrite=True)
    assert json.loads((out / MANIFEST).read_text())["run"] == 3
    assert not (out / "stale").exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="was not exported"):
        WeightWriter().write_folder(contents(), precious, {}, overwrite=True)
    assert (precious / "letter.txt").read_text() == "dear"


# ---- our own form


@pytest.fixture(scope="module")
def weights() -> Weights:
    flat = flatten_dict(inference_shapes(tiny_models.UNET), sep="/")
    arrays = unflatten_dict({path: synthesise(path, leaf.shape) for path, leaf in flat.items()}, sep="/")
    return Weights(tiny_models.UNET, to_lazy_tree(arrays), {"stage": "motion", "step": 12})


def write_own(weights: Weights, folder: Path, writer: WeightWriter = WeightWriter()) -> Path:  # noqa: B008
    writer.write_folder(native_plan(weights), folder, {})
    return folder


@pytest.mark.parametrize("max_shard_size", [10**9, 20_000])
def test_own_form_and_back(weights: Weights, tmp_path: Path, max_shard_size: int):
    config, params, provenance = read_native(
        write_own(weights, tmp_path / "out", WeightWriter(max_shard_size=max_shard_size))
    )
    assert (config, provenance) == (weights.config, weights.provenance)
    flat = flatten_dict(params, sep="/")
    assert sorted(flat) == sorted(flatten_dict(weights.models, sep="/"))
    assert all(
        same(flat[path], array.read()) for path, array in flatten_dict(weights.models, sep="/").items()
    )


def test_own_form_in_another_dtype(weights: Weights, tmp_path: Path):
    folder = write_own(weights, tmp_path / "out", WeightWriter(jnp.bfloat16))
    assert {x.dtype.name for x in flatten_dict(open_native(folder).models, sep="/").values()} == {"bfloat16"}
    _, params, _ = read_native(folder)
    for path, array in flatten_dict(params, sep="/").items():
        assert same(
            array, flatten_dict(weights.models, sep="/")[path].read().astype(jnp.bfloat16).astype(np.float32)
        )


def test_own_form_that_is_not_whole(weights: Weights, tmp_path: Path):
    folder = write_own(weights, tmp_path / "out")
    file = folder / "pose_encoder.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match=f"^{file}: not a whole safetensors file"):
        read_native(folder)
    file.unlink()
    with pytest.raises(WeightsError, match=f"^{file}: no such file"):
        read_native(folder)
    arrays = {
        path: to_lazy(x.read()) for path, x in flatten_dict(weights.models["pose_encoder"], sep="/").items()
    }
    write_safetensors(file, arrays, {"format": "pt"})
    with pytest.raises(WeightsError, match=f"^{file}: not in our form"):
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
