"""PyTorch weight files in all formats of repositories, and files that must be refused."""

import json
import logging
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file
from transformers import CLIPTextModel

from fyp_jax.convert.encoder_names import VAE_ATTENTION
from fyp_jax.convert.pipeline_folder import PipelineFolder, PipelineOptions
from fyp_jax.convert.torch_files import WeightsError, find_weights, read_weights
from fyp_jax.errors import UserError
from fyp_jax.trees import TreeMismatch

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def vae(pipeline_folder: Path) -> Arrays:
    return load_file(pipeline_folder / "vae" / "diffusion_pytorch_model.safetensors")


def assert_same(found: Arrays, expected: Arrays) -> None:
    """Names, the dtype float32, and all values are equal."""
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float32, f"{name} is {found[name].dtype}"
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# ---- formats of the same weights

SAVE_OPTIONS = {
    "safetensors": {},
    "pickle": {"safe_serialization": False},
    "sharded safetensors": {"max_shard_size": "40KB"},
    "sharded pickle": {"max_shard_size": "40KB", "safe_serialization": False},
}


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("saved_as", SAVE_OPTIONS)
@pytest.mark.parametrize(("part", "kind"), [("vae", AutoencoderKL), ("text_encoder", CLIPTextModel)])
def test_all_formats_are_read(
    pipeline_folder: Path, tmp_path: Path, part: str, kind: Any, saved_as: str, variant: str | None
):
    """Diffusers and transformers write the files. From fp16, values become float32 unchanged."""
    model = kind.from_pretrained(pipeline_folder / part)
    if variant == "fp16":
        model = model.half()
    model.save_pretrained(tmp_path, variant=variant, **SAVE_OPTIONS[saved_as])
    file = find_weights(tmp_path)
    assert (file.suffix == ".json") == saved_as.startswith("sharded"), f"{file.name} is in another format"
    expected = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    assert_same(read_weights(file), expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_bfloat16_becomes_float32(vae: Arrays, tmp_path: Path, suffix: str):
    tensors = {name: torch.from_numpy(array).bfloat16() for name, array in vae.items()}
    file = tmp_path / f"model{suffix}"
    save_torch_file(tensors, file) if suffix == ".safetensors" else torch.save(tensors, file)
    assert_same(read_weights(file), {name: tensor.float().numpy() for name, tensor in tensors.items()})


def test_integers_keep_their_dtype(tmp_path: Path):
    torch.save({"position_ids": torch.arange(77)}, tmp_path / "model.bin")
    assert read_weights(tmp_path / "model.bin")["position_ids"].dtype == np.int64


def test_torch_parameters_and_views_are_read(tmp_path: Path):
    """`dict(model.named_parameters())` has such tensors, which require gradients or are not contiguous."""
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
    torch.save({"weight": weight}, tmp_path / "model.pth")
    assert read_weights(tmp_path / "model.pth")["weight"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_find_weights_prefers_float32_then_safetensors(tmp_path: Path):
    names = [f"model{suffix}" for suffix in (".fp16.bin", ".fp16.safetensors", ".bin", ".safetensors")]
    for name in names:
        (tmp_path / name).touch()
        assert find_weights(tmp_path).name == name


NON_EMA, FP16, BF16 = ("model.non_ema.safetensors", "model.fp16.bin", "model.bf16.safetensors")


@pytest.mark.parametrize(
    ("files", "variant", "found", "message"),
    [
        (("model.bin", FP16), None, "model.bin", ""),
        (
            ("model.bin", NON_EMA),
            "non_ema",
            NON_EMA,
            "the variant non_ema is taken (model.non_ema.safetensors)",
        ),
        (("model.bin", FP16), "non_ema", "model.bin", "has no variant non_ema; model.bin is taken"),
        ((FP16,), None, FP16, "only model.fp16.bin is there; it is taken, as with variant=fp16"),
        (
            ("model.safetensors.index.fp16.json", "model.fp16-00001-of-00002.safetensors"),
            None,
            "model.safetensors.index.fp16.json",
            "variant=fp16",
        ),
    ],
)
def test_variant_is_chosen_and_told(
    tmp_path: Path,
    files: tuple[str, ...],
    variant: str | None,
    found: str,
    message: str,
    caplog: pytest.LogCaptureFixture,
):
    for name in files:
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING):
        assert find_weights(tmp_path, variant).name == found
    assert message in caplog.text if message else not caplog.text


@pytest.mark.parametrize(("variant", "asked"), [(None, ""), ("fp8", " and no variant fp8")])
def test_several_variants_without_a_flag_are_refused_with_the_flags(
    tmp_path: Path, variant: str | None, asked: str
):
    for name in (FP16, BF16):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=f"without a variant{asked}; give variant=bf16, variant=fp16$"):
        find_weights(tmp_path, variant)


def test_variant_that_no_part_has_is_refused(pipeline_folder: Path, tmp_path: Path):
    """One part with the variant is enough: the published non_ema weights are of the UNet alone."""
    folder = shutil.copytree(pipeline_folder, tmp_path / "pipeline")
    options = PipelineOptions(variant="non_ema")
    with pytest.raises(UserError, match=r"no part has the variant non_ema \(there are: none\)"):
        PipelineFolder(str(folder), options=options)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    arrays = {name: x + 1 for name, x in load_file(unet).items()}
    save_file(arrays, unet.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    found = PipelineFolder(str(folder), options=options).lazy_state_dict("unet")
    np.testing.assert_array_equal(found["conv_in.bias"].read(), arrays["conv_in.bias"])
    with pytest.raises(UserError, match=r"no part has the variant fp16 \(there are: unet: non_ema\)"):
        PipelineFolder(str(folder), options=PipelineOptions(variant="fp16"))


def test_given_prediction_type_is_exported(pipeline_folder: Path):
    given = PipelineFolder(str(pipeline_folder), options=PipelineOptions(prediction_type="v_prediction"))
    assert given.schedule().prediction_type == "v_prediction"
    plan = given.export_plan({}, {})
    assert json.loads(plan.text_files["scheduler/scheduler_config.json"])["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("made", "root"),
    [
        (("zero_to_fp32.py", "global_step9/mp_rank_00_model_states.pt"), ""),
        (("zero_to_fp32.py", "pytorch_model/mp_rank_00_model_states.pt"), ""),
        (("../zero_to_fp32.py", "mp_rank_00_model_states.pt"), ".."),
    ],
)
def test_deepspeed_folder_is_named_with_the_command(tmp_path: Path, made: tuple[str, ...], root: str):
    folder = tmp_path / "run" / "checkpoint-9"
    for name in made:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    command = f"cd {folder.parent if root else folder} && python zero_to_fp32.py . ."
    for read in (find_weights, lambda path: PipelineFolder(str(path)).json("unet")):
        with pytest.raises(UserError, match=f"{folder}: a checkpoint of DeepSpeed; .*{command}"):
            read(folder)


def test_folder_of_single_files_names_one_as_the_pipeline(tmp_path: Path):
    (tmp_path / "v1-5-pruned.safetensors").touch()
    with pytest.raises(UserError, match=f"{tmp_path}: a folder of single files; name one .*v1-5-pruned"):
        PipelineFolder(str(tmp_path)).json("unet")


@pytest.mark.parametrize("flat", [True, False], ids=["dense", "1x1 convolution"])
def test_old_names_of_vae_attention_are_read(pipeline_folder: Path, vae: Arrays, tmp_path: Path, flat: bool):
    folder = shutil.copytree(pipeline_folder, tmp_path / "old")
    old = {}
    for name, array in vae.items():
        if ".attentions." in name and array.ndim == 2 and not flat:
            array = array[:, :, None, None]
        for new_name, old_name in VAE_ATTENTION.items():
            name = name.replace(f".{new_name}.", f".{old_name}.")
        old[name] = array
    assert {name.split(".")[-2] for name in old if ".attentions." in name} == {
        "group_norm", "query", "key", "value", "proj_attn"
    }  # fmt: skip
    save_file(old, folder / "vae" / "diffusion_pytorch_model.safetensors")
    found, expected = (encoder_params(path) for path in (folder, pipeline_folder))
    assert_same(flatten_dict(found, sep="/"), flatten_dict(expected, sep="/"))


def test_position_ids_of_old_text_encoders_are_ignored(pipeline_folder: Path, tmp_path: Path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "old")
    file = folder / "text_encoder" / "model.safetensors"
    save_file(load_file(file) | {"text_model.embeddings.position_ids": np.arange(77)[None]}, file)
    assert_same(
        flatten_dict(encoder_params(folder), sep="/"), flatten_dict(encoder_params(pipeline_folder), sep="/")
    )


def test_text_encoder_without_text_model_prefix_is_read(pipeline_folder: Path, tmp_path: Path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "new")
    file = folder / "text_encoder" / "model.safetensors"
    save_file({name.removeprefix("text_model."): x for name, x in load_file(file).items()}, file)
    assert_same(
        flatten_dict(encoder_params(folder), sep="/"), flatten_dict(encoder_params(pipeline_folder), sep="/")
    )


def encoder_params(folder: Path) -> dict[str, Any]:
    pipeline = PipelineFolder(str(folder))
    return pipeline.encoder_params(pipeline.latent_encoders())


# ---- files that are refused


def assert_refused(file: Path, *said: str) -> None:
    """The error is one line that starts with the path."""
    with pytest.raises(WeightsError) as caught:
        read_weights(file)
    message = str(caught.value)
    assert message.startswith(str(file)), message
    assert "\n" not in message, message
    for words in said:
        assert words in message, message


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, -1])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".legacy.bin"])
def test_truncated_file_is_refused(vae: Arrays, tmp_path: Path, suffix: str, kept: float):
    """The file keeps nothing, less than its header, its header, half of its bytes, or all but one byte."""
    file = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(vae, file)
    else:
        tensors = {name: torch.from_numpy(array) for name, array in vae.items()}
        torch.save(tensors, file, _use_new_zipfile_serialization=suffix == ".bin")
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    assert_refused(file, "not a complete safetensors file" if suffix == ".safetensors" else "damaged")


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model.safetensors.index.json"])
def test_git_lfs_pointer_is_refused(tmp_path: Path, name: str):
    """Without git-lfs, a clone has this text in place of a large file."""
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 492265879\n")
    assert_refused(tmp_path / name)


class Code:
    """An object whose pickle creates `file` when it is loaded."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("written_by", ["torch", "pickle"])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, written_by: str):
    trace, file = tmp_path / "code has run", tmp_path / "model.bin"
    content = {"weight": torch.zeros(2), "code": Code(trace)}
    if written_by == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=2))
    assert_refused(file, "refused")
    assert not trace.exists(), "the code in the pickle has run"
    torch.load(file, weights_only=False) if written_by == "torch" else pickle.loads(file.read_bytes())
    assert trace.exists(), "the code of this file does not run at all"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], "it holds list"),
        ({"epoch": 3, "step": 4}, "it holds epoch, step"),
        ({"weight": torch.zeros(2), "epoch": 3}, "it holds weight, epoch"),
        ({"unet": {"weight": torch.zeros(2)}}, "it holds unet"),
        ({"state_dict": {"model": {"module": {"state_dict": {}}}}}, "not a state dict"),
        ({"state_dict": {"a": torch.zeros(2)}, "model": {"a": torch.zeros(2)}}, "several state dicts"),
        (torch.zeros(2), "it holds Tensor"),
    ],
)
def test_pickle_of_other_objects_is_refused(tmp_path: Path, content: Any, said: str):
    torch.save(content, tmp_path / "model.pth")
    assert_refused(tmp_path / "model.pth", said)


@pytest.mark.parametrize("entry", ["state_dict", "model", "module", "model_state_dict"])
def test_dictionary_of_a_trainer_is_taken_off(tmp_path: Path, entry: str):
    torch.save({"epoch": 3, entry: {"a.weight": torch.ones(2)}}, tmp_path / "model.pth")
    assert {name: x.tolist() for name, x in read_weights(tmp_path / "model.pth").items()} == {
        "a.weight": [1, 1]
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("form", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "module.module.{}"])
def test_prefixes_of_data_parallelism_and_compilation_are_taken_off(tmp_path: Path, form: str, suffix: str):
    tensors = {form.format(name): torch.ones(2) for name in ("a.weight", "module_b.bias")}
    file = tmp_path / f"model{suffix}"
    save_torch_file(tensors, file) if suffix == ".safetensors" else torch.save({"model": tensors}, file)
    assert sorted(read_weights(file)) == ["a.weight", "module_b.bias"]


def test_prefix_that_not_all_names_have_is_kept(tmp_path: Path):
    torch.save({"module.a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "model.pth")
    assert sorted(read_weights(tmp_path / "model.pth")) == ["b", "module.a"]


def test_two_arrays_that_get_one_name_are_refused(tmp_path: Path):
    torch.save({"_orig_mod.a": torch.ones(2), "a": torch.ones(2)}, tmp_path / "model.pth")
    assert_refused(tmp_path / "model.pth", "with and without _orig_mod.")


def test_pickle_without_torch_says_what_to_install(
    tmp_path: Path, vae: Arrays, monkeypatch: pytest.MonkeyPatch
):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.bin")
    save_file(vae, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    assert_refused(tmp_path / "model.bin", "needs torch", ".[torch]", "safetensors")
    assert_same(read_weights(tmp_path / "model.safetensors"), vae)


def test_missing_file_is_refused(tmp_path: Path):
    assert_refused(tmp_path / "model.safetensors", "no such file")


def test_unknown_suffix_is_refused(tmp_path: Path):
    (tmp_path / "model.msgpack").touch()
    assert_refused(tmp_path / "model.msgpack", "not a weight file")


def test_folder_without_weights_is_refused(tmp_path: Path):
    (tmp_path / "config.json").touch()
    with pytest.raises(WeightsError, match=f"{tmp_path}: no weights"):
        find_weights(tmp_path)


def test_missing_shard_is_named(pipeline_folder: Path, tmp_path: Path):
    model = CLIPTextModel.from_pretrained(pipeline_folder / "text_encoder")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(WeightsError, match=f"{lost}: no such file"):
        read_weights(find_weights(tmp_path))


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": 3}', '{"weight_map": {"weight": 3}}', "{"])
def test_damaged_index_is_refused(tmp_path: Path, index: str):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert_refused(tmp_path / "model.safetensors.index.json", "not an index of shards")


# ---- complete files of another model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", r"1 missing \(decoder\.conv_out\.bias\)"),
        ("extra", r"1 unexpected \(loss\.logvar\)"),
        ("shape", r"1 wrong shape \(decoder\.conv_out\.bias is \(5,\) but should be \(3,\)\)"),
    ],
)
def test_vae_weights_that_do_not_fit_are_listed(
    pipeline_folder: Path, vae: Arrays, tmp_path: Path, change: str, said: str
):
    folder = shutil.copytree(pipeline_folder, tmp_path / "other")
    changed = {
        "missing": {name: array for name, array in vae.items() if name != "decoder.conv_out.bias"},
        "extra": vae | {"loss.logvar": np.zeros(1, np.float32)},
        "shape": vae | {"decoder.conv_out.bias": np.zeros(5, np.float32)},
    }[change]
    save_file(changed, folder / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(TreeMismatch, match=f"{folder}, vae: {said}$"):
        encoder_params(folder)


def test_long_list_of_differences_is_shortened(pipeline_folder: Path, tmp_path: Path):
    """The message counts the names that it leaves out."""
    folder = shutil.copytree(pipeline_folder, tmp_path / "other")
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "vae")
    with pytest.raises(TreeMismatch) as caught:
        encoder_params(folder)
    assert " more); " in str(caught.value)
    assert len(str(caught.value)) < 2000
