"""The bundled model `mini`: its clips follow poses and prompts, and it loads wherever it should."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import load_file

from cli_utils import run_script
from fyp_jax.checkpoints.inference import save_inference
from fyp_jax.config import load_config
from fyp_jax.convert.pipeline_folder import PipelineFolder, find_folder
from fyp_jax.evaluation.ablations import before_motion_stage
from fyp_jax.evaluation.scene_metrics import TextScores, drawn_parts, text_scores
from fyp_jax.evaluation.scene_set import Kind, SceneCase, make_scene_cases, score_scenes
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.params import sampling_params
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.synthetic.scenes import Scene, caption
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.init import initialize_weights
from fyp_jax.training.stages import get_stage
from make_golden import GOLDEN, golden_strip

ROOT = Path(__file__).parents[1]
FOLDER = find_folder("mini", ())
FRAMES, STEPS = 4, 10


@pytest.fixture(scope="module")
def pipeline() -> FollowYourPosePipeline:
    return FollowYourPosePipeline.from_pretrained("mini")


@pytest.fixture(scope="module")
def clips(pipeline: FollowYourPosePipeline) -> list[tuple[SceneCase, np.ndarray]]:
    """Clips of the motion and of pairs that are not in the training data."""
    cases = make_scene_cases(4, FRAMES, Kind.HELD_OUT_PAIRS)
    return [(case, sample(pipeline, case.scene, case)) for case in cases]


def sample(pipeline: FollowYourPosePipeline, scene: Scene, case: SceneCase) -> np.ndarray:
    return pipeline(caption(scene), case.pose_images, num_inference_steps=STEPS).frames


def test_bundled_model_has_the_sampling_options_of_its_config(pipeline: FollowYourPosePipeline):
    config = load_config(SampleConfig, ROOT / "configs" / "mini" / "sample.yaml", [])
    assert pipeline.defaults == sampling_params(config)
    assert pipeline.weights["folder"] == str(FOLDER)
    assert set(pipeline.weights["provenance"]) == {"motion", "pose"}


def test_training_begins_with_the_trained_pose_encoder_and_temporal_layers(pipeline: FollowYourPosePipeline):
    start = initialize_weights(TrainConfig(stage="motion", pretrained="mini"), get_stage("motion"), None)
    found = start.trainable | start.frozen
    trained: dict[str, Any] = flatten_dict(pipeline.params, sep="/")
    assert found.keys() == trained.keys()
    for path, x in trained.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)


@pytest.mark.slow
def test_clips_follow_the_given_pose_and_not_another(clips: list[tuple[SceneCase, np.ndarray]]):
    scores = score_scenes([video for _, video in clips], [case for case, _ in clips])
    assert scores.pose_accuracy is not None
    assert scores.pose_accuracy_shuffled is not None
    assert scores.pose_accuracy.mean > 0.85
    assert scores.pose_accuracy.mean - scores.pose_accuracy_shuffled.mean > 0.25


@pytest.mark.slow
def test_clips_show_character_place_and_style_of_the_prompt(clips: list[tuple[SceneCase, np.ndarray]]):
    scores = np.array([text_of(video, case, case.scene) for case, video in clips])
    assert scores.mean(axis=0).min() >= 0.8, f"character, place, style: {scores.tolist()}"


class Sampled(NamedTuple):
    """A clip of a scene, in the pose and from the noise of a case."""

    case: SceneCase
    scene: Scene
    video: np.ndarray


@pytest.fixture(scope="module")
def robot_on_the_beach(pipeline: FollowYourPosePipeline) -> Sampled:
    (case,) = make_scene_cases(1, FRAMES, Kind.NAMED)
    scene = case.scene._replace(characters=("robot",), place="beach", style="none")
    return Sampled(case, scene, sample(pipeline, scene, case))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"), [("characters", ("hulk",)), ("place", "desert"), ("style", "van gogh")]
)
def test_each_word_of_the_prompt_changes_what_it_names(
    pipeline: FollowYourPosePipeline, robot_on_the_beach: Sampled, field: str, value: Any
):
    """The two clips have the same pose and noise."""
    case, first, one = robot_on_the_beach
    second = first._replace(**{field: value})
    two = sample(pipeline, second, case)
    score = {"characters": "character"}.get(field, field)
    assert getattr(text_of(one, case, first), score)
    assert getattr(text_of(two, case, second), score)
    assert not getattr(text_of(two, case, first), score)


def text_of(video: np.ndarray, case: SceneCase, scene: Scene) -> TextScores:
    drawn = drawn_parts(scene, case.keypoints, video.shape[1])
    return text_scores(video, case.keypoints, scene._replace(seed=0), drawn)


def test_sample_equals_the_golden_one(pipeline: FollowYourPosePipeline):
    """make_golden.py says what the picture shows. Machines round a little differently."""
    strip = golden_strip(pipeline).astype(np.float32)
    golden = np.asarray(Image.open(GOLDEN), np.float32)
    assert strip.shape == golden.shape
    difference = np.abs(strip - golden)
    assert difference.mean() < 1.0, f"{difference.mean():.2f} grey levels, {difference.max():.0f} at most"


def test_weights_are_under_30_mebibytes():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    total = sum(file.stat().st_size for file in files)
    assert total < 30 * 2**20, f"{total / 2**20:.1f} MiB"
    assert {file.name for file in files} >= {"follow_your_pose.safetensors", "model_index.json"}


@pytest.mark.slow
def test_package_mini_writes_the_folder_that_its_checkpoints_came_from(
    pipeline: FollowYourPosePipeline, tmp_path: Path
):
    """But for the VAE, which the decoder stage has changed."""
    image = PipelineFolder("mini", ("unet",)).image_unet(pipeline.programs.unet.config)
    first = before_motion_stage(pipeline.params, image)
    decoder = {**first, "vae": jax.tree.map(lambda x: 2 * x, first["vae"])}
    stages = {"image": first, "pose": pipeline.params, "motion": pipeline.params, "decoder": decoder}
    options = []
    for name, params in stages.items():
        save_inference(tmp_path / name, 7, pipeline.programs.unet.config, params, {"stage": name})
        options += [f"--{name}", str(tmp_path / name)]
    run = run_script(ROOT / "scripts" / "package_mini.py", *options, "--out", tmp_path / "model")
    assert run.status == 0, run.err
    for file in (file for file in FOLDER.rglob("*") if file.is_file()):
        written = tmp_path / "model" / file.relative_to(FOLDER)
        if file.suffix == ".safetensors":
            factor = 2 if file.parent.name == "vae" else 1
            expected, found = load_file(file), load_file(written)
            assert expected.keys() == found.keys()
            for key, x in expected.items():
                np.testing.assert_array_equal(found[key], factor * x, err_msg=f"{file.name} {key}")
        elif file.name != "conversion.json":
            texts = [path.read_text() for path in (file, written)]
            a, b = map(json.loads, texts) if file.suffix == ".json" else texts
            assert a == b, file.name


@pytest.mark.slow
def test_pytorch_loads_the_folder_and_makes_the_same_image(pipeline: FollowYourPosePipeline):
    """One frame without a pose: the image UNet makes of a noise what diffusers' pipeline makes of it."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(str(FOLDER), torch_dtype=torch.float32)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    size, channels = pipeline.defaults.height, pipeline.programs.unet.config.in_channels
    noise = np.array(jax.random.normal(jax.random.key(0), (1, size // 8, size // 8, channels)))
    prompt = "A panda, on the sea"
    torch_image = pipe(
        prompt,
        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
        height=size,
        width=size,
        num_inference_steps=10,
        guidance_scale=4.0,
        output_type="np",
    ).images[0]
    image_unet = PipelineFolder("mini", ("unet",)).image_unet(pipeline.programs.unet.config)
    params = before_motion_stage(pipeline.params, image_unet)
    pose_stage = dataclasses.replace(pipeline, params=params)
    result = pose_stage(prompt, latents=noise, num_inference_steps=10, guidance_scale=4.0)
    assert np.abs(result.frames[0].astype(np.float32) / 255 - torch_image).mean() < 0.01


@pytest.mark.slow
def test_wheel_samples_from_an_empty_folder(tmp_path: Path):
    """The wheel, first on the path of a process in another folder, has the weights and the configs."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, site], check=True)
    code = (
        "import sys, fyp_jax; from fyp_jax.config import find_config\n"
        "pipeline = fyp_jax.FollowYourPosePipeline.from_pretrained('mini')\n"
        "result = pipeline('A robot, on the beach', num_frames=1)\n"
        "print(fyp_jax.__file__, find_config('mini/sample.yaml'), result.save('r.gif'), result.frames.shape)"
    )
    folder = tmp_path / "empty"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    )
    package = site / "fyp_jax"
    config = package / "configs" / "mini" / "sample.yaml"
    assert done.stdout.splitlines()[-1] == f"{package / '__init__.py'} {config} r.gif (1, 128, 128, 3)"
    assert (folder / "r.gif").stat().st_size > 1000
