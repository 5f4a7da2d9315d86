"""Delta weights in a pipeline folder: they hold no array twice, and the folder can be sampled from."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import tiny_models
from cli_utils import SCRIPTS, run_script
from fyp_jax.checkpoints.inference import inference_shapes, load_inference
from fyp_jax.convert.delta_weights import DELTA_FILE, delta_weights, read_delta_weights
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.weight_writer import ExportPlan, WeightWriter
from fyp_jax.errors import UserError
from fyp_jax.models.random_params import random_params
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.loading import load_components
from fyp_jax.training.stages import STAGES


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with weights."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_models.write_weights(tiny_models.write_pipeline(folder / "pipeline"), folder / "weights")
    return folder / "weights"


def after_both_stages(folder: PipelineFolder) -> dict[str, dict]:
    """The folder's image UNet, with new random values for all parameters that the two stages train."""
    random = flatten_dict(random_params(inference_shapes(tiny_models.UNET), seed=9), sep="/")
    image = {
        f"unet/{path}": x for path, x in flatten_dict(folder.image_unet(tiny_models.UNET), sep="/").items()
    }
    encoders = {path: 0 for path in flatten_dict(folder.latent_encoders().spec.shapes, sep="/")}
    trained = [STAGES[name].trains(random | encoders) for name in ("pose", "motion")]
    changed = {path for path in random if any(stage[path] for stage in trained)}
    return unflatten_dict(
        {path: x if path in changed else image.get(path, x) for path, x in random.items()}, sep="/"
    )


@pytest.fixture(scope="module")
def packaged(weights: Path) -> tuple[Path, dict[str, dict]]:
    """The folder with float16 delta weights, and the parameters that it represents."""
    folder = PipelineFolder(str(weights))
    params = after_both_stages(folder)
    parts = delta_weights(params, folder.image_unet(tiny_models.UNET), jnp.float16, {"step": 7})
    WeightWriter(jnp.float16).write_folder(ExportPlan([parts], {}, {}), weights.parent / "parts", {})
    (weights.parent / "parts" / DELTA_FILE).rename(weights / DELTA_FILE)
    return weights, params


def test_delta_weights_hold_only_queries_of_the_image_unet(packaged: tuple[Path, dict[str, dict]]):
    folder, params = packaged
    image = flatten_dict(PipelineFolder(str(folder)).image_unet(tiny_models.UNET), sep="/")
    parts = delta_weights(params, unflatten_dict(image, sep="/"), jnp.float16, {})
    names = set(parts.arrays)
    queries = {f"unet/{path}" for path in image if "/to_q/" in path}
    assert queries
    assert queries <= names
    assert {path for path in names if path.removeprefix("unet/") in image} == queries
    pose_encoder = flatten_dict({"pose_encoder": params["pose_encoder"]}, sep="/")
    assert {path for path in names if path.startswith("pose_encoder/")} == set(pose_encoder)


def test_delta_weights_read_back_are_the_rounded_parameters(packaged: tuple[Path, dict[str, dict]]):
    folder, params = packaged
    found = read_delta_weights(PipelineFolder(str(folder)))
    assert found is not None
    config, again, provenance = found
    assert config.block_out_channels == tiny_models.UNET.block_out_channels
    assert provenance == {"step": 7}
    for path, x in flatten_dict(again, sep="/").items():
        given = np.asarray(flatten_dict(params, sep="/")[path])
        np.testing.assert_allclose(x, given, rtol=1e-3, atol=1e-6, err_msg=path)


def test_folder_with_delta_weights_needs_no_checkpoint(packaged: tuple[Path, dict[str, dict]]):
    folder, params = packaged
    components = load_components(SampleConfig(pretrained=str(folder)))
    assert components.weights["provenance"] == {"step": 7}
    path = "down_blocks_0/attentions_0/transformer_blocks_0/attn_temp/to_out_0/kernel"
    np.testing.assert_allclose(
        flatten_dict(components.params["unet"], sep="/")[path],
        flatten_dict(params["unet"], sep="/")[path],
        rtol=1e-3,
        atol=1e-6,
    )


def test_incomplete_delta_weights_are_refused(packaged: tuple[Path, dict[str, dict]], tmp_path: Path):
    folder, params = packaged
    less = {"unet": params["unet"], "pose_encoder": {"conv_in": params["pose_encoder"]["conv_in"]}}
    parts = delta_weights(less, PipelineFolder(str(folder)).image_unet(tiny_models.UNET), jnp.float16, {})
    original = (folder / DELTA_FILE).read_bytes()
    WeightWriter().write_folder(ExportPlan([parts], {}, {}), tmp_path / "parts", {})
    try:
        (folder / DELTA_FILE).write_bytes((tmp_path / "parts" / DELTA_FILE).read_bytes())
        with pytest.raises(
            UserError, match=r"follow_your_pose.safetensors: \d+ missing \(pose_encoder/body_0"
        ):
            read_delta_weights(PipelineFolder(str(folder)))
        (folder / DELTA_FILE).write_bytes(original[:1000])
        with pytest.raises(UserError, match="not a complete safetensors file"):
            read_delta_weights(PipelineFolder(str(folder)))
    finally:
        (folder / DELTA_FILE).write_bytes(original)


def test_import_of_mini_has_all_delta_weights(tmp_path: Path):
    """The bundled model can then be trained further and exported, like any other checkpoint."""
    script = SCRIPTS / "import_pytorch.py"
    run = run_script(script, "--pipeline", "mini", "--out", tmp_path / "checkpoints")
    assert run.status == 0, run
    _, imported, _ = load_inference(tmp_path / "checkpoints")
    found = read_delta_weights(PipelineFolder("mini", ()))
    assert found is not None
    both = {part: imported[part] for part in ("unet", "pose_encoder")}
    expected, actual = flatten_dict(found[1], sep="/"), flatten_dict(both, sep="/")
    assert expected.keys() == actual.keys()
    for path, x in expected.items():
        np.testing.assert_array_equal(x, actual[path], err_msg=path)
