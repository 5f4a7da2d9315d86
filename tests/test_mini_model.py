"""The weights that ship: they follow poses and prompts, and they open wherever they should."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fyp_jax.config import SampleConfig, load_config
from fyp_jax.convert.pipeline_folder import find_folder
from fyp_jax.evaluation.eval_set import EvalCase, make_eval_cases
from fyp_jax.evaluation.synthetic_metrics import pose_scores, text_scores
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline, load_sampler
from fyp_jax.synthetic.scenes import caption

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "fixtures" / "golden_robot.png"
CONFIG = load_config(SampleConfig, ROOT / "configs" / "mini" / "sample.yaml", [])
FOLDER = find_folder("mini", ())
FRAMES = 4


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple[FollowYourPosePipeline, dict]]:
    """Compiled as users have it: many clips are made, and one is compared with theirs."""
    jax.config.update("jax_disable_most_optimizations", False)
    sampler, params, _ = load_sampler(CONFIG)
    yield sampler, params
    jax.config.update("jax_disable_most_optimizations", True)


def sample(
    loaded: tuple[FollowYourPosePipeline, dict], question: EvalCase, prompt: str, seed: int = 0
) -> np.ndarray:
    sampler, params = loaded
    names = ("steps", "guidance", "pose_guidance", "noise_correlation")
    how = {name: getattr(CONFIG, name) for name in names}
    return sampler(params, prompt, question.skeleton, seed=seed, **how)


@pytest.fixture(scope="module")
def answers(loaded: tuple[FollowYourPosePipeline, dict]) -> list[tuple[EvalCase, np.ndarray]]:
    """Six clips of the motion and of pairs that training has not seen."""
    asked = make_eval_cases(6, FRAMES, held_out_pairs=True)
    return [(question, sample(loaded, question, caption(question.scene))) for question in asked]


def test_clips_follow_the_given_pose_and_not_another(answers: list[tuple[EvalCase, np.ndarray]]):
    right = [pose_scores(video, q.keypoints, q.scene) for q, video in answers]
    others = [answers[(i + 3) % 6][0].keypoints for i in range(6)]
    wrong = [pose_scores(v, other, q.scene) for (q, v), other in zip(answers, others, strict=True)]
    accuracy, iou = np.mean(right, axis=0)
    chance, chance_iou = np.mean(wrong, axis=0)
    assert accuracy > 0.85
    assert iou > 0.5
    assert accuracy - chance > 0.25
    assert iou - chance_iou > 0.25


def test_clips_are_of_the_place_in_the_prompt(answers: list[tuple[EvalCase, np.ndarray]]):
    found = np.array([text_scores(video, q.keypoints, q.scene) for q, video in answers])
    assert found.mean(axis=0).min() >= 0.5, f"character, background, style: {found.tolist()}"


@pytest.mark.parametrize(
    ("field", "value"), [("character", "hulk"), ("background", "desert"), ("style", "van gogh")]
)
def test_another_prompt_makes_another_clip(
    loaded: tuple[FollowYourPosePipeline, dict], field: str, value: str
):
    """Of the same pose and noise; each of its words does what it says."""
    question = make_eval_cases(1, FRAMES, held_out_pairs=False)[0]
    first = question.scene._replace(character="robot", background="beach", style="none")
    second = first._replace(**{field: value})
    one, two = (sample(loaded, question, caption(scene)) for scene in (first, second))
    assert getattr(text_scores(one, question.keypoints, first), field)
    assert getattr(text_scores(two, question.keypoints, second), field)
    assert not getattr(text_scores(two, question.keypoints, first), field)


def test_the_golden_sample(loaded: tuple[FollowYourPosePipeline, dict]):
    """tests/fixtures/golden_robot.png: frames beside each other. Machines round differently, a little."""
    question = make_eval_cases(1, FRAMES, held_out_pairs=False)[0]
    video = sample(loaded, question, "A robot, on the beach")
    strip = np.concatenate(list(video), axis=1).astype(np.float32)
    golden = np.asarray(Image.open(GOLDEN), np.float32)
    assert strip.shape == golden.shape
    apart = np.abs(strip - golden)
    assert apart.mean() < 1.0, f"{apart.mean():.2f} grey levels on average, {apart.max():.0f} at most"


def test_the_weights_are_small():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    total = sum(file.stat().st_size for file in files)
    assert total < 20e6, f"{total / 1e6:.1f} MB"
    assert {file.name for file in files} >= {"follow_your_pose.safetensors", "model_index.json"}


@pytest.mark.slow
def test_pytorch_opens_the_folder_and_makes_the_same_picture(loaded: tuple[FollowYourPosePipeline, dict]):
    """One frame, no pose: what diffusers' pipeline makes of noise, our image UNet makes of it too."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(str(FOLDER), torch_dtype=torch.float32)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    noise = np.array(jax.random.normal(jax.random.key(0), (1, 1, 8, 8, 8)))
    prompt = "A panda, on the sea"
    theirs = pipe(
        prompt,
        latents=torch.from_numpy(noise[:, 0].transpose(0, 3, 1, 2).copy()),
        height=64,
        width=64,
        num_inference_steps=10,
        guidance_scale=4.0,
        output_type="np",
    ).images[0]
    from fyp_jax.convert.pipeline_folder import PipelineFolder
    from fyp_jax.evaluation.ablations import before_motion_stage

    sampler, params = loaded
    params = before_motion_stage(params, PipelineFolder("mini", ("unet",)).image_unet(sampler.unet.config))
    text, negative = (
        sampler.encode_text(params, sampler.frozen.tokenize(words)[0]) for words in (prompt, "")
    )
    latents = jnp.asarray(noise)
    for number in range(10):
        given = params, latents, jnp.int32(number), text, negative, None, jnp.float32(4.0), jax.random.key(0)
        latents = sampler.denoise(*given, steps=10)
    ours = np.asarray(sampler.decode(params, latents, chunk=1)[0, 0], np.float32) / 255
    assert np.abs(ours - theirs).mean() < 0.01


@pytest.mark.slow
def test_a_wheel_samples_from_another_folder(tmp_path: Path):
    """Built as users build it, put first on the path of a process elsewhere; its own weights are read."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "site"], check=True)
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from fyp_jax.config import SampleConfig; from fyp_jax.pipeline.pipeline import load_sampler\n"
        "sampler, params, record = load_sampler(SampleConfig(pretrained='mini'))\n"
        "video = sampler(params, 'A robot, on the sea', None, size=(1, 64, 64), steps=2, guidance=4.0)\n"
        "print(json.dumps([record['folder'], list(video.shape), record['crc32']]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    folder, shape, _ = json.loads(done.stdout.splitlines()[-1])
    assert Path(folder).is_relative_to(tmp_path / "site")
    assert shape == [1, 64, 64, 3]
