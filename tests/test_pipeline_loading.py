"""FollowYourPosePipeline.from_pretrained: bundled name, folder, checkpoint of ours; and what it refuses."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import single_files
import tiny_models
from cli_utils import SCRIPTS, assert_mistake, assert_same, run_script
from fyp_jax.checkpoints.inference import inference_shapes, load_inference, save_inference
from fyp_jax.cli import export_pytorch, import_pytorch
from fyp_jax.convert.delta_weights import DELTA_FILE
from fyp_jax.convert.lazy import Weights
from fyp_jax.convert.open_pipeline import base_pipeline, recorded_options
from fyp_jax.convert.pipeline_folder import PipelineOptions
from fyp_jax.errors import UserError
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.random_params import random_params
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.params import SamplingParams, trained_frames
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.tpu.programs import sampling_programs
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.init import initialize_weights
from fyp_jax.training.stages import get_stage
from single_files import Sizes

STEP = 7


class Saved(NamedTuple):
    """Weights of a tiny model on disk."""

    base: Path
    """A Stable Diffusion in diffusers' layout, without pose encoder and temporal layers."""
    checkpoint: Path
    """A checkpoint whose provenance names `base`."""
    params: dict[str, Any]
    """Its UNet and pose encoder."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("loading")
    tiny_models.write_weights(tiny_models.write_pipeline(folder / "configs"), folder / "base")
    params = random_params(inference_shapes(tiny_models.UNET), seed=5)
    provenance = {"stage": "motion", "pretrained": str(folder / "base")}
    save_inference(folder / "checkpoint", STEP, tiny_models.UNET, params, provenance)
    return Saved(folder / "base", folder / "checkpoint", params)


def test_checkpoint_finds_its_base_pipeline(saved: Saved):
    pipeline = FollowYourPosePipeline.from_pretrained(saved.checkpoint)
    assert_same({part: pipeline.params[part] for part in saved.params}, saved.params)
    assert pipeline.weights["pretrained"] == str(saved.base)
    assert pipeline.weights["checkpoint"] == str(saved.checkpoint)
    assert pipeline.weights["provenance"]["step"] == STEP
    both = FollowYourPosePipeline.from_pretrained(saved.base, checkpoint=saved.checkpoint)
    assert both.weights == pipeline.weights


def test_weights_that_predict_something_else_than_the_pipeline_says_are_refused(saved: Saved, tmp_path: Path):
    """The pipeline's noise schedule says epsilon."""
    out, other = tmp_path / "out", {"prediction_type": "v_prediction"}
    save_inference(out, STEP, tiny_models.UNET, saved.params, {"pretrained": str(saved.base), **other})
    message = (
        "trained with prediction_type=v_prediction, but the pipeline says epsilon; give prediction_type="
    )
    with pytest.raises(UserError, match=message):
        FollowYourPosePipeline.from_pretrained(saved.base, checkpoint=out)
    config = TrainConfig(stage="motion", pretrained=str(saved.base), init_checkpoint=str(out))
    with pytest.raises(UserError, match=message):
        initialize_weights(config, get_stage("motion"), frame_axis=None)
    for name, options in ((out, {}), (saved.base, {"checkpoint": out, **other})):
        pipeline = FollowYourPosePipeline.from_pretrained(name, **options)
        assert pipeline.programs.schedule.prediction_type == "v_prediction"
    weights = Weights(tiny_models.UNET, {}, other)
    folder = export_pytorch.find_pipeline(str(saved.base), weights, ["pipeline"])
    assert folder is not None
    assert folder.schedule().prediction_type == "v_prediction", "an export says it"


def test_encoders_of_a_checkpoint_stay_float32(saved: Saved, tmp_path: Path):
    """`dtype` is that of UNet and pose encoder, wherever the encoders are from."""
    encoders = tiny_models.models("motion", ExecutionConfig()).encoders
    params = saved.params | random_params(encoders.spec.shapes, seed=6)
    save_inference(tmp_path / "out", STEP, tiny_models.UNET, params, {})
    _, found, _ = load_inference(tmp_path / "out", "bfloat16")
    dtypes = {name: {str(x.dtype) for x in jax.tree.leaves(tree)} for name, tree in found.items()}
    halved, whole = {"bfloat16"}, {"float32"}
    assert dtypes == {"unet": halved, "pose_encoder": halved, "vae": whole, "text_encoder": whole}


def delta_folder(saved: Saved, folder: Path, provenance: dict[str, Any]) -> Path:
    """As an export of format `pipeline` writes it."""
    shutil.copytree(saved.base, folder)
    arrays = {path: np.asarray(x) for path, x in flatten_dict(saved.params, sep="/").items()}
    save_file(arrays, folder / DELTA_FILE, {"provenance": json.dumps(provenance)})
    return folder


def test_import_of_an_exported_pipeline_has_that_as_its_base(saved: Saved, tmp_path: Path):
    """And not the one on which it was trained, whose encoders may differ."""
    earlier = {"stage": "image", "pretrained": "elsewhere", "prediction_type": "epsilon", "num_frames": 24}
    folder = delta_folder(saved, tmp_path / "model", earlier)
    args = import_pytorch.parse(["--pipeline", str(folder), "--out", str(tmp_path / "out")])
    _, _, provenance = import_pytorch.read_weights(args)
    assert base_pipeline(provenance) == str(folder)
    assert recorded_options(provenance) == PipelineOptions(prediction_type="epsilon")
    assert (provenance["stage"], provenance["num_frames"]) == ("image", 24)
    other = delta_folder(saved, tmp_path / "other", {"prediction_type": "v_prediction"})
    args = import_pytorch.parse(["--pipeline", str(other), "--out", str(tmp_path / "out")])
    with pytest.raises(
        UserError, match="trained with prediction_type=v_prediction, but the pipeline says ep"
    ):
        import_pytorch.read_weights(args)
    state = initialize_weights(
        TrainConfig(stage="motion", pretrained=str(saved.base)), get_stage("motion"), None
    )
    assert state.provenance["prediction_type"] == "epsilon", "a run says what its UNet predicts"


def test_compile_check_of_an_exported_pipeline_has_the_windows_of_a_run(saved: Saved, tmp_path: Path):
    folder = delta_folder(saved, tmp_path / "model", {"num_frames": 24})
    config = SampleConfig(pretrained=str(folder), prompt=["x"], num_frames=24, height=64, width=64)
    in_windows = dataclasses.replace(config, pretrained=str(saved.base))
    for each, expected in ((config, False), (in_windows, True)):
        names = [program.name for program in sampling_programs(each, jax.devices()).programs]
        assert ("add_windows" in names) == expected


def test_folder_with_delta_weights_has_its_own_sampling_defaults(saved: Saved, tmp_path: Path):
    """As the folder of a bundled model has them."""
    folder = tmp_path / "model"
    folder.mkdir()
    for part in saved.base.iterdir():
        (folder / part.name).symlink_to(part)
    save_file(
        {path: np.asarray(x) for path, x in flatten_dict(saved.params, sep="/").items()}, folder / DELTA_FILE
    )
    (folder / "sampling_params.json").write_text(json.dumps({"guidance_scale": 3.0, "width": 128}))
    pipeline = FollowYourPosePipeline.from_pretrained(folder, dtype="bfloat16")
    side = tiny_models.UNET.sample_size * 8
    assert pipeline.defaults == SamplingParams(height=side, width=128, guidance_scale=3.0)
    assert pipeline.weights["checkpoint"] is None
    assert pipeline.params["unet"]["conv_in"]["kernel"].dtype == "bfloat16"
    kernel = np.asarray(saved.params["pose_encoder"]["conv_in"]["kernel"])
    np.testing.assert_array_equal(
        pipeline.params["pose_encoder"]["conv_in"]["kernel"], kernel.astype("bfloat16")
    )


@pytest.mark.slow
def test_step_of_a_run_is_chosen(saved: Saved, tmp_path: Path):
    """By the run's folder, or by the folder of one step, as `checkpoint` and as the pipeline's name."""
    run = tmp_path / "run"
    shutil.copytree(saved.checkpoint, run / "checkpoints")
    newer = jax.tree.map(lambda x: x + 1, saved.params)
    save_inference(run / "checkpoints", 20, tiny_models.UNET, newer, {"pretrained": str(saved.base)})
    for name, options in (
        (run, {"step": STEP}),
        (saved.base, {"checkpoint": run, "step": STEP}),
        (run / "checkpoints" / str(STEP), {}),
    ):
        pipeline = FollowYourPosePipeline.from_pretrained(name, **options)
        assert pipeline.weights["provenance"]["step"] == STEP
    assert_same({part: pipeline.params[part] for part in saved.params}, saved.params)
    assert FollowYourPosePipeline.from_pretrained(run).weights["provenance"]["step"] == 20
    with pytest.raises(UserError, match=r"has no step 8 \(there are: 20, 7\)"):
        FollowYourPosePipeline.from_pretrained(saved.base, checkpoint=run, step=8)


def save_with_frames(saved: Saved, folder: Path, frames: int) -> Path:
    provenance = {"stage": "motion", "pretrained": str(saved.base), "num_frames": frames}
    save_inference(folder, STEP, tiny_models.UNET, saved.params, provenance)
    return folder


def test_clips_of_training_give_the_window_of_sampling(saved: Saved, tmp_path: Path):
    pipeline = FollowYourPosePipeline.from_pretrained(save_with_frames(saved, tmp_path / "five", 5))
    assert pipeline.programs.window(pipeline.defaults) == 5
    assert pipeline.programs.window(dataclasses.replace(pipeline.defaults, window=6)) == 6
    assert trained_frames({"stage": "motion"}) == 8, "where a checkpoint does not say it"


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "frames", "expected"), [("pose", 1, 5), ("motion", 7, 7)])
def test_checkpoint_says_how_many_frames_its_temporal_layers_saw(
    saved: Saved, tmp_path: Path, stage: str, frames: int, expected: int
):
    """A stage on images leaves the number as it was."""
    start = str(save_with_frames(saved, tmp_path / "five", 5))
    config = TrainConfig(stage=stage, pretrained=str(saved.base), init_checkpoint=start)
    config.data.num_frames = frames
    begin = initialize_weights(config, get_stage(stage), frame_axis=None)
    assert begin.provenance["num_frames"] == expected


SINGLE = Sizes(vae_widths=(32,) * 4)
"""Its VAE has 8 pixels a latent, as our models need."""


@pytest.mark.slow
def test_single_file_is_imported_and_its_checkpoint_finds_it_again(tmp_path: Path):
    """The checkpoint remembers file and tokenizer, and how the file was read."""
    arrays = single_files.single_file(SINGLE._replace(text_layers=3), is_sd2=False)
    file = single_files.save(arrays, tmp_path / "model.ckpt", {"state_dict": arrays})
    out = tmp_path / "checkpoint"
    args = ["--pipeline", file, "--out", out]
    assert_mistake(run_script(SCRIPTS / "import_pytorch.py", *args), "give tokenizer=FOLDER")
    assert not out.exists()
    args += ["--tokenizer", tiny_models.TOKENIZER, "--prediction-type", "v_prediction"]
    run = run_script(SCRIPTS / "import_pytorch.py", *args)
    assert run.status == 0, run.err
    pipeline = FollowYourPosePipeline.from_pretrained(out)
    assert pipeline.programs.schedule.prediction_type == "v_prediction"
    assert pipeline.weights["options"]["tokenizer"] == str(tiny_models.TOKENIZER)
    for path, name in (
        ("unet/conv_in/kernel", "model.diffusion_model.input_blocks.0.0.weight"),
        ("vae/decoder/conv_out/kernel", "first_stage_model.decoder.conv_out.weight"),
    ):
        kernel = np.asarray(flatten_dict(pipeline.params, sep="/")[path])
        np.testing.assert_array_equal(kernel, arrays[name].numpy().transpose(2, 3, 1, 0))
    given = FollowYourPosePipeline.from_pretrained(
        file, checkpoint=out, tokenizer=tiny_models.TOKENIZER, prediction_type="v_prediction"
    )
    assert given.weights["crc32"] == pipeline.weights["crc32"]


@pytest.mark.slow
def test_single_file_trains(tmp_path: Path):
    """The start of a stage has the file's weights, and its provenance names what the file needs."""
    arrays = single_files.single_file(SINGLE)
    file = single_files.save(arrays, tmp_path / "model.safetensors")
    config = TrainConfig(stage="motion", pretrained=str(file), tokenizer=str(tiny_models.TOKENIZER))
    state = initialize_weights(config, get_stage("motion"), frame_axis=None)
    found = (state.trainable | state.frozen)["unet/conv_in/kernel"]
    expected = arrays["model.diffusion_model.input_blocks.0.0.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found, expected)
    assert state.provenance["pretrained"] == str(file)
    assert state.provenance["tokenizer"] == str(tiny_models.TOKENIZER)


def test_checkpoint_that_names_no_pipeline_is_refused(saved: Saved, tmp_path: Path):
    save_inference(tmp_path / "checkpoint", STEP, tiny_models.UNET, saved.params, {"stage": "motion"})
    with pytest.raises(UserError, match="does not say which pipeline it was made with; .*pretrained=NAME"):
        FollowYourPosePipeline.from_pretrained(tmp_path / "checkpoint")


def test_checkpoint_whose_pipeline_is_gone_is_refused(saved: Saved, tmp_path: Path):
    provenance = {"pretrained": str(tmp_path / "gone")}
    save_inference(tmp_path / "checkpoint", STEP, tiny_models.UNET, saved.params, provenance)
    with pytest.raises(UserError, match="gone: no such folder, and no bundled model"):
        FollowYourPosePipeline.from_pretrained(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sd14", {}, "sd14: has no trained pose encoder and temporal layers; give checkpoint=FOLDER"),
        ("{base}", {}, "base: has no trained pose encoder and temporal layers"),
        ("nowhere", {}, "nowhere: no such folder, and no bundled model of this name .*mini, sd14"),
        ("{base}", {"checkpoint": "nowhere"}, "nowhere: no such folder"),
        ("{base}", {"checkpoint": "{base}"}, "base: .*no checkpoint in it"),
        ("{base}", {"step": 3}, "step=3: .*base is no checkpoint of ours; give checkpoint=FOLDER"),
        ("{base}", {"variant": "fp16"}, "base: no part has the variant fp16"),
        ("missing.safetensors", {}, "missing.safetensors: no such file"),
        ("{base}/vae/diffusion_pytorch_model.safetensors", {}, "a VAE alone, not a pipeline"),
        ("{base}", {"dtype": "float16"}, "dtype=float16 is not float32 or bfloat16"),
        ("{base}", {"mesh": MeshConfig(data=4)}, "mesh.data=4 .*sampling takes mesh.data=1 or 2"),
        ("{base}", {"mesh": MeshConfig(data=2, frame=8)}, "needs 16 devices; there are 8"),
    ],
)
def test_what_loads_no_pipeline_is_refused(saved: Saved, name: str, options: dict, message: str):
    options = {k: x.format(base=saved.base) if isinstance(x, str) else x for k, x in options.items()}
    with pytest.raises(UserError, match=message):
        FollowYourPosePipeline.from_pretrained(name.format(base=saved.base), **options)


def test_sampling_options_become_defaults_of_calls(saved: Saved):
    """They also say how many devices a clip may take: 24 frames are made in windows."""
    mesh = MeshConfig(data=4)
    pipeline = FollowYourPosePipeline.from_pretrained(saved.checkpoint, num_frames=24, seed=3, mesh=mesh)
    assert (pipeline.defaults.num_frames, pipeline.defaults.seed) == (24, 3)
    assert pipeline.programs.mesh.shape["data"] == 4
    with pytest.raises(UserError, match="num_inference_steps=0 must be at least 1"):
        FollowYourPosePipeline.from_pretrained(saved.checkpoint, num_inference_steps=0)
    with pytest.raises(TypeError, match="fps: is of a run of sample.py"):
        FollowYourPosePipeline.from_pretrained(saved.checkpoint, fps=8)


def test_mesh_may_have_any_number_of_devices_for_frames(saved: Saved):
    """The number of frames is that of a call, which need not be the default of a config."""
    pipeline = FollowYourPosePipeline.from_pretrained(saved.checkpoint, mesh=MeshConfig(data=1, frame=3))
    assert dict(pipeline.programs.mesh.shape)["frame"] == 3
    with pytest.raises(UserError, match="num_frames=8 is not a multiple of mesh.frame=3"):
        pipeline("a robot", height=64, width=64)
