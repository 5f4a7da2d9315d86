"""What the stages add to a pipeline folder: nothing twice, read back, and sampled from as it stands."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import tiny_models
from cli_utils import SCRIPTS, run_script
from fyp_jax.checkpoints.inference import inference_shapes, load_inference
from fyp_jax.config import SampleConfig
from fyp_jax.convert.delta_weights import FILE, delta_weights, read_delta_weights
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.weight_writer import ExportPlan, WeightWriter
from fyp_jax.errors import UserError
from fyp_jax.models.random_params import random_params
from fyp_jax.pipeline.pipeline import load_sampler
from fyp_jax.training.stages import STAGES


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with weights."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_models.write_weights(tiny_models.write_pipeline(folder / "pipeline"), folder / "weights")
    return folder / "weights"


def after_both_stages(folder: PipelineFolder) -> dict[str, dict]:
    """The folder's image UNet, with everything drawn anew that the two stages train."""
    drawn = flatten_dict(random_params(inference_shapes(tiny_models.UNET), seed=9), sep="/")
    image = {
        f"unet/{path}": x for path, x in flatten_dict(folder.image_unet(tiny_models.UNET), sep="/").items()
    }
    encoders = {path: 0 for path in flatten_dict(folder.latent_encoders().spec.shapes, sep="/")}
    trained = [STAGES[name].trains(drawn | encoders) for name in ("pose", "motion")]
    changed = {path for path in drawn if any(stage[path] for stage in trained)}
    return unflatten_dict(
        {path: x if path in changed else image.get(path, x) for path, x in drawn.items()}, sep="/"
    )


@pytest.fixture(scope="module")
def shipped(weights: Path) -> tuple[Path, dict[str, dict]]:
    """The folder with what the stages added, in float16, and the parameters that it stands for."""
    folder = PipelineFolder(str(weights))
    params = after_both_stages(folder)
    parts = delta_weights(params, folder.image_unet(tiny_models.UNET), jnp.float16, {"step": 7})
    WeightWriter(jnp.float16).write_folder(ExportPlan([parts], {}, {}), weights.parent / "parts", {})
    (weights.parent / "parts" / FILE).rename(weights / FILE)
    return weights, params


def test_nothing_stands_twice(shipped: tuple[Path, dict[str, dict]]):
    folder, params = shipped
    image = flatten_dict(PipelineFolder(str(folder)).image_unet(tiny_models.UNET), sep="/")
    parts = delta_weights(params, unflatten_dict(image, sep="/"), jnp.float16, {})
    names = set(parts.arrays)
    queries = {f"unet/{path}" for path in image if "/to_q/" in path}
    assert queries
    assert queries <= names
    assert {path for path in names if path.removeprefix("unet/") in image} == queries
    assert {path for path in names if path.startswith("pose_encoder/")}


def test_read_back_they_are_what_was_written_rounded(shipped: tuple[Path, dict[str, dict]]):
    folder, params = shipped
    found = read_delta_weights(PipelineFolder(str(folder)))
    assert found is not None
    config, again, provenance = found
    assert config.block_out_channels == tiny_models.UNET.block_out_channels
    assert provenance == {"step": 7}
    for path, x in flatten_dict(again, sep="/").items():
        given = np.asarray(flatten_dict(params, sep="/")[path])
        np.testing.assert_allclose(x, given, rtol=1e-3, atol=1e-6, err_msg=path)


def test_a_sampler_needs_no_checkpoint_where_they_are(shipped: tuple[Path, dict[str, dict]]):
    folder, params = shipped
    _, loaded, record = load_sampler(SampleConfig(pretrained=str(folder)))
    assert record["provenance"] == {"step": 7}
    path = "down_blocks_0/attentions_0/transformer_blocks_0/attn_temp/to_out_0/kernel"
    np.testing.assert_allclose(
        flatten_dict(loaded["unet"], sep="/")[path],
        flatten_dict(params["unet"], sep="/")[path],
        rtol=1e-3,
        atol=1e-6,
    )


def test_parts_of_another_model_are_refused(shipped: tuple[Path, dict[str, dict]], tmp_path: Path):
    folder, params = shipped
    less = {"unet": params["unet"], "pose_encoder": {"conv_in": params["pose_encoder"]["conv_in"]}}
    parts = delta_weights(less, PipelineFolder(str(folder)).image_unet(tiny_models.UNET), jnp.float16, {})
    kept = (folder / FILE).read_bytes()
    WeightWriter().write_folder(ExportPlan([parts], {}, {}), tmp_path / "parts", {})
    try:
        (folder / FILE).write_bytes((tmp_path / "parts" / FILE).read_bytes())
        with pytest.raises(
            UserError, match=r"follow_your_pose.safetensors: \d+ missing \(pose_encoder/body_0"
        ):
            read_delta_weights(PipelineFolder(str(folder)))
        (folder / FILE).write_bytes(kept[:1000])
        with pytest.raises(UserError, match="not a whole safetensors file"):
            read_delta_weights(PipelineFolder(str(folder)))
    finally:
        (folder / FILE).write_bytes(kept)


def test_the_mini_model_imports_whole(tmp_path: Path):
    """So it can be trained on, and exported, like any other checkpoint."""
    script = SCRIPTS / "import_pytorch.py"
    run = run_script(script, "--pipeline", "mini", "--out", tmp_path / "checkpoints")
    assert run.status == 0, run
    _, imported, _ = load_inference(tmp_path / "checkpoints")
    found = read_delta_weights(PipelineFolder("mini", ()))
    assert found is not None
    ours = {part: imported[part] for part in ("unet", "pose_encoder")}
    shipped, theirs = flatten_dict(found[1], sep="/"), flatten_dict(ours, sep="/")
    assert shipped.keys() == theirs.keys()
    for path, x in shipped.items():
        np.testing.assert_array_equal(x, theirs[path], err_msg=path)
