"""Tune-A-Video: the stage that trains on one clip, its validation, and sampling from inverted clips."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import tiny_models
from cli_utils import ROOT, SAMPLE, SCRIPTS, assert_mistake, assert_same, run_script
from fyp_jax.checkpoints.inference import load_inference
from fyp_jax.cli import sample as sample_cli
from fyp_jax.cli import train as train_cli
from fyp_jax.config import load_config
from fyp_jax.data.config import DataConfig
from fyp_jax.data.example_source import ExampleSource
from fyp_jax.data.one_clip import OneClipSource, open_one_clip
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.editing.inversion import Inversion
from fyp_jax.errors import UserError
from fyp_jax.media.errors import ClipTooShort
from fyp_jax.media.reading import read_frames
from fyp_jax.media.writing import write_mp4
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.parallel.mesh import make_mesh
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.inversions import InvertedLatents, read_inversion, read_source, save_inversion
from fyp_jax.pipeline.output import PipelineOutput
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pipeline.programs import SamplingPrograms
from fyp_jax.training import loop
from fyp_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from fyp_jax.training.init import InitialState, initialize_weights
from fyp_jax.training.logs import TrainingLog
from fyp_jax.training.stages import STAGES
from fyp_jax.training.state import init_state
from fyp_jax.training.validation import Validation

CAPTION = "a square moves"
SIDE, FRAMES = 64, 2
SD14, MINI = "configs/sd14/tune_a_video.yaml", "configs/mini/tune_a_video.yaml"


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine frames, each of a grey of its own: frame i has about 20 i."""
    file = tmp_path_factory.mktemp("clip") / "clip.mp4"
    greys = 20 * np.arange(9, dtype=np.uint8)
    write_mp4(file, np.broadcast_to(greys[:, None, None, None], (9, SIDE, SIDE, 3)), 8)
    return file


def data(clip_file: Path, **changes: Any) -> DataConfig:
    values = {
        "video": str(clip_file),
        "caption": CAPTION,
        "num_frames": FRAMES,
        "stride": 3,
        "height": SIDE,
        "width": SIDE,
        "batch_size": 1,
        "workers": 0,
    }
    return DataConfig(**{**values, **changes})


def greys(frames: np.ndarray) -> list[int]:
    return [round(float(frame.mean()) / 20) for frame in frames]


def test_one_clip_is_read_from_start_by_stride(clip_file: Path):
    source = open_one_clip(data(clip_file, num_frames=3, stride=2, start=1))
    assert greys(source.frames) == [1, 3, 5]


def test_every_example_is_the_clip_with_its_caption(clip_file: Path):
    """Other stages take a random window of a video."""
    config = data(clip_file)
    source = ExampleSource(open_one_clip(config), config, seed=5, with_pose=False)
    for index in (0, 1, 77):
        example = source[index].sample
        assert example is not None
        assert greys(example.video) == [0, 3]
        assert (example.pose_images, example.caption) == (None, CAPTION)


def test_clip_of_other_frames_or_caption_is_other_data(clip_file: Path):
    """So that no run resumes with another clip."""
    kinds = (data(clip_file), data(clip_file, start=1), data(clip_file, caption="another"))
    assert len({open_one_clip(config).fingerprint for config in kinds}) == 3


def test_clip_that_is_too_short_is_refused_with_what_fits(clip_file: Path):
    with pytest.raises(ClipTooShort, match=r"has 9 frames, but num_frames=4 stride=3 start=0 needs 10"):
        open_one_clip(data(clip_file, num_frames=4))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.video={clip}"], "clip.mp4: has no caption; say what it shows with data.caption=TEXT"),
        (["data.video={clip}", "data.caption= "], "clip.mp4: has no caption"),
        (["data.caption=a"], "this stage trains on one clip: give data.video=FILE and data.caption=TEXT"),
        (
            ["data.video={clip}", "data.caption=a", "data.path=records"],
            "data.path=records and data.video={clip} exclude each other",
        ),
        (["data.video={clip}", "data.caption=a", "data.start=-1"], "data.start=-1 must be at least 0"),
        (
            ["data.video={clip}", "data.caption=a", "stage=motion"],
            "data.video={clip}: this stage trains on records, data.path=FOLDER; stage=one_shot trains on one",
        ),
        (["stage=motion", "data.start=2"], "data.start=2: this stage trains on records"),
        (
            ["data.video={clip}", "data.caption=a", "validation.num_frames=8"],
            "validation.num_frames=8, but validation starts from the inverted clip, which has "
            "data.num_frames=24",
        ),
        (["data.video=nowhere.mp4", "data.caption=a"], "nowhere.mp4: no such file, and no bundled clip"),
        (
            ["data.video={clip}", "data.caption=a"],
            "has 9 frames, but num_frames=24 stride=2 start=0 needs 47",
        ),
    ],
)
def test_mistake_about_the_clip_ends_with_one_line_and_status_2(
    clip_file: Path, tmp_path: Path, overrides: list[str], message: str
):
    given = [x.format(clip=clip_file) for x in overrides]
    run = run_script(ROOT / "train.py", "--config", SD14, f"output_dir={tmp_path}/run", *given)
    assert_mistake(run, message.format(clip=clip_file))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_sd14_config_has_the_published_values():
    config = load_config(TrainConfig, ROOT / SD14, ["data.video=clip.mp4", "data.caption=a man is skiing"])
    config.check()
    optimizer = config.optimizer
    assert (config.stage, config.num_train_steps, config.data.num_frames) == ("one_shot", 500, 24)
    assert (optimizer.lr, optimizer.weight_decay, optimizer.max_grad_norm) == (3e-5, 1e-2, 1.0)
    assert (config.validation.num_inference_steps, config.validation.guidance_scale) == (50, 12.5)
    assert config.validation.pose.path is None


def one_shot(clip_file: Path, pipeline: Path, out: Path, **changes: Any) -> TrainConfig:
    values = {
        "stage": "one_shot",
        "pretrained": str(pipeline),
        "random_init": True,
        "output_dir": str(out),
        "num_train_steps": 2,
        "data": data(clip_file),
        "optimizer": OptimizerConfig(lr=1e-2),
        "checkpoint": CheckpointConfig(save_interval=2),
        "log": LogConfig(log_interval=1),
        "validation": ValidationConfig(
            sample_interval=2, prompt=["a circle"], num_frames=FRAMES, num_inference_steps=2
        ),
    }
    return TrainConfig(**{**values, **changes})


class Tuned(NamedTuple):
    """A run that has tuned a tiny model on the clip in two steps."""

    base: Path
    """The Stable Diffusion from which it started."""
    run: Path
    begin: InitialState
    window: int
    """Frames that its validation denoised together."""


@pytest.fixture(scope="module")
def tuned(clip_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("tuned")
    base = tiny_models.write_weights(tiny_models.write_pipeline(folder / "configs"), folder / "sd")
    config = one_shot(clip_file, base, folder / "run", random_init=False)
    config.check()
    begin = initialize_weights(config, STAGES["one_shot"], None)
    one_device = functools.partial(make_mesh, devices=jax.devices()[:1])
    with (
        mock.patch.object(loop, "make_mesh", one_device),
        mock.patch.object(loop, "Validation", wraps=Validation) as validation,
    ):
        loop.train(config)
    return Tuned(base, folder / "run", begin, validation.call_args.args[3])


@pytest.mark.slow
def test_run_on_one_clip_trains_its_layers_and_is_sampled_from(clip_file: Path, tuned: Tuned, tmp_path: Path):
    begin, run = tuned.begin, tuned.run
    _, params, provenance = load_inference(run)
    assert provenance["clip"]["stride"] == 3
    assert provenance["num_frames"] == tuned.window == FRAMES, "sample.py takes the same window"
    before = begin.trainable | begin.frozen
    changed = {p for p, x in flatten_dict(params, sep="/").items() if not np.array_equal(x, before[p])}
    assert changed
    assert changed <= begin.trainable.keys()
    assert all("to_q" in path or "attn_temp" in path for path in changed)
    assert (run / "validation" / "000002-00.png").is_file()

    saved = read_inversion(run / "inv_latents" / "ddim_latent-2.npz")
    assert saved.num_inference_steps == 2
    sizes = [f"num_frames={FRAMES}", f"height={SIDE}", f"width={SIDE}", "num_inference_steps=2"]
    common = [f"pretrained={tuned.base}", f"checkpoint={run}", f"output_dir={tmp_path}/out", *sizes]
    for invert in (clip_file, run / "inv_latents" / "ddim_latent-2.npz"):
        done = run_script(SAMPLE, *common, f"invert={invert}", "--prompt", "a circle")
        assert done.status == 0, done.err
    again = read_inversion(tmp_path / "out" / "0000" / "inverted.npz")
    np.testing.assert_allclose(again.latents, saved.latents, atol=1e-4)  # stride 3, as in the training
    first, second = (
        read_frames(next((tmp_path / "out" / n).glob("*.mp4")), range(2)) for n in ("0000", "0001")
    )
    assert np.abs(first.astype(int) - second).max() <= 2
    written = load_config(SampleConfig, tmp_path / "out" / "0000" / "config.yaml", [])
    assert (written.invert, written.pose.path) == (str(clip_file), None)


@pytest.mark.slow
def test_tuned_model_is_exported_imported_and_edits_its_clip(
    clip_file: Path, tuned: Tuned, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    exported, imported = tmp_path / "exported", tmp_path / "imported"
    for script, *args in (
        ("export_pytorch.py", "--checkpoint", tuned.run, "--out", exported, "--format", "tuneavideo"),
        ("import_pytorch.py", "--pipeline", exported, "--out", imported),
    ):
        done = run_script(SCRIPTS / script, *args)
        assert done.status == 0, done.err
    (_, before, _), (_, after, provenance) = (load_inference(folder) for folder in (tuned.run, imported))
    assert_same(after["unet"], before["unet"])
    assert (provenance["clip"]["stride"], provenance["num_frames"]) == (3, FRAMES)

    sizes = [f"num_frames={FRAMES}", f"height={SIDE}", f"width={SIDE}", "num_inference_steps=2"]
    common = [f"pretrained={exported}", f"output_dir={tmp_path}/out", *sizes]
    done = run_script(SAMPLE, *common, f"invert={clip_file}", "--prompt", "a circle")
    assert done.status == 0, done.err
    again = read_inversion(tmp_path / "out" / "0000" / "inverted.npz")
    saved = read_inversion(tuned.run / "inv_latents" / "ddim_latent-2.npz")
    np.testing.assert_allclose(again.latents, saved.latents, atol=1e-4)  # stride 3, as in the training

    texts = ["--video", clip_file, "--source", CAPTION, "--prompt", "a circle moves"]
    windows = ["edit.cross_replace_steps=1", "edit.self_replace_steps=1"]
    options = ["--method", "p2p", *windows, f"inversion={tmp_path}/clip.npz"]
    done = run_script(SCRIPTS / "edit.py", *common, *texts, *options)
    assert done.status == 0, done.err
    assert "video_start=0 video_stride=3 edits these" in caplog.text
    assert Inversion.load(tmp_path / "clip.npz").latents.shape == (3, FRAMES, 8, 8, 4)
    assert next((tmp_path / "out" / "0001").glob("*.mp4")).is_file()


def test_validation_starts_from_the_inverted_clip(
    clip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The cheap sibling of a whole run: no model is called."""
    calls: list[Any] = []

    def invert(self: Any, clip: np.ndarray, prompt: str, sampling: Any) -> np.ndarray:
        calls.append((clip, prompt, sampling.num_frames, self.programs.window(sampling)))
        return np.full((FRAMES, 8, 8, 4), clip.mean(), np.float32)

    def sample(self: Any, prompt: str, pose: Any, *, latents: np.ndarray) -> PipelineOutput:
        calls.append((prompt, latents))
        return PipelineOutput(np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8), latents, None)

    monkeypatch.setattr(FollowYourPosePipeline, "invert", invert)
    monkeypatch.setattr(FollowYourPosePipeline, "__call__", sample)
    validation = ValidationConfig(sample_interval=1, prompt=["a circle", "a star"], num_frames=FRAMES)
    validation.pose.path = None
    config = one_shot(clip_file, tmp_path, tmp_path / "run", validation=validation)
    frames = open_one_clip(config.data).frames
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = init_state({}, {}, optax.sgd(1.0), use_ema=False, mesh=mesh)
    log = TrainingLog(tmp_path, 0, 1, LogConfig(), active=False)
    models = tiny_models.models("one_shot", ExecutionConfig())
    Validation(config, models, mesh, 12, frames).run(7, state, log)
    (clip, prompt, count, window), (first, z), (second, _) = calls
    assert (prompt, count, first, second) == ("", FRAMES, "a circle", "a star")
    assert window == 12, "the frames of training"
    assert greys(clip) == [0, 3]
    saved = read_inversion(tmp_path / "run" / "inv_latents" / "ddim_latent-7.npz")
    np.testing.assert_array_equal(saved.latents, z)
    assert saved.num_inference_steps == validation.num_inference_steps


def test_published_inverted_latents_are_read_with_their_axes(tmp_path: Path):
    torch = pytest.importorskip("torch")
    latents = np.random.default_rng(0).standard_normal((1, 4, 3, 8, 16)).astype(np.float16)
    torch.save(torch.from_numpy(latents), tmp_path / "ddim_latent-500.pt")
    found = read_inversion(tmp_path / "ddim_latent-500.pt")
    assert found.num_inference_steps is None
    np.testing.assert_array_equal(found.latents, latents[0].transpose(1, 2, 3, 0).astype(np.float32))


class Evil:
    def __reduce__(self) -> Any:
        return print, ("a pickle ran",)


def test_file_that_is_no_inversion_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(2)}, tmp_path / "dict.pt")
    torch.save(torch.zeros(3, 4), tmp_path / "flat.pt")
    torch.save(Evil(), tmp_path / "evil.pt")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    save_inversion(
        tmp_path / "nan.npz",
        InvertedLatents(np.full((2, 8, 8, 4), np.nan, np.float32), num_inference_steps=2),
    )
    for name, message in (
        ("dict.pt", "not the inverted latents of one clip"),
        ("flat.pt", r"a tensor \[1 c f h w\] \(found \[3, 4\]\)"),
        ("evil.pt", "holds more than tensors; refused"),
        ("text.npz", "not an inversion that train.py or sample.py wrote"),
        ("other.npz", "not an inversion that train.py or sample.py wrote"),
        ("nan.npz", "not finite"),
        ("missing.npz", "no such file"),
    ):
        with pytest.raises(UserError, match=f"{name}: .*{message}"):
            read_inversion(tmp_path / name)
    assert "a pickle ran" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def pipeline() -> FollowYourPosePipeline:
    """Without weights: no model of it is called."""
    models = tiny_models.models("pose", ExecutionConfig())
    assert models.pose_encoder is not None
    programs = SamplingPrograms(models.encoders, models.schedule, models.unet, models.pose_encoder)
    return FollowYourPosePipeline(programs, {}, SamplingParams())


def test_clip_to_invert_is_taken_as_the_weights_were_tuned_on_it(
    clip_file: Path, pipeline: FollowYourPosePipeline
):
    tuned = dataclasses.replace(pipeline, weights={"provenance": {"clip": {"stride": 2, "start": 1}}})
    for each, changes, expected in (
        (pipeline, {}, [0, 1, 2]),
        (tuned, {}, [1, 3, 5]),
        (tuned, {"invert_stride": 1}, [1, 2, 3]),
        (tuned, {"invert_start": 0}, [0, 2, 4]),
    ):
        config = SampleConfig(invert=str(clip_file), num_frames=3, height=SIDE, width=SIDE, **changes)
        found = read_source(config, each)
        assert isinstance(found, np.ndarray)
        assert greys(found) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_inference_steps": 50}, "was inverted in 20 steps; give num_inference_steps=20 and not 50"),
        ({"num_frames": 4}, r"\[8, 8, 8, 4\], but this model's are \[4, 8, 8, 4\] for num_frames=4"),
    ],
)
def test_inversion_that_does_not_fit_is_refused(
    pipeline: FollowYourPosePipeline, tmp_path: Path, changes: dict[str, int], message: str
):
    save_inversion(tmp_path / "z.npz", InvertedLatents(np.zeros((8, 8, 8, 4), np.float32), 20))
    fitting = {"num_inference_steps": 20, "num_frames": 8, "height": 64, "width": 64}
    config = SampleConfig(invert=str(tmp_path / "z.npz"), **(fitting | changes))
    with pytest.raises(UserError, match=message):
        read_source(config, pipeline)


def test_inversion_by_other_weights_is_refused(pipeline: FollowYourPosePipeline, tmp_path: Path):
    latents, file = np.zeros((8, 8, 8, 4), np.float32), tmp_path / "z.npz"
    config = SampleConfig(invert=str(file), num_inference_steps=20, num_frames=8, height=64, width=64)
    pipeline = dataclasses.replace(pipeline, weights={"crc32": 7})
    for crc32 in (7, None):
        save_inversion(file, InvertedLatents(latents, 20, crc32))
        found = read_source(config, pipeline)
        assert isinstance(found, InvertedLatents)
        assert found.weights_crc32 == crc32
    save_inversion(file, InvertedLatents(latents, 20, 8))
    with pytest.raises(UserError, match="was inverted with other weights"):
        read_source(config, pipeline)
    save_inversion(file, InvertedLatents(latents, 20, 7, repr(pipeline.programs.schedule)))
    assert read_source(config, pipeline) is not None
    save_inversion(file, InvertedLatents(latents, 20, 7, repr(ScheduleConfig(prediction_type="sample"))))
    with pytest.raises(UserError, match="was inverted with another noise schedule or prediction_type"):
        read_source(config, pipeline)


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["invert=clip.mp4"], None),
        (["invert=clip.mp4", "--pose", "dance"], "dance"),
        (["invert=clip.mp4", "pose.path=dance"], "dance"),
        ([], "dance"),
    ],
)
def test_clip_that_is_inverted_has_no_pose_unless_one_is_given(arguments: list[str], path: str | None):
    """The default config has one."""
    assert sample_cli.parse([*arguments, "--prompt", "A robot"]).pose.path == path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["invert_stride=2"], "invert_stride=2: there is no clip to invert; give invert=FILE"),
        (["invert=nowhere.mp4"], "nowhere.mp4: no such file, and no bundled clip"),
        (["invert={clip}", "invert_stride=0"], "invert_stride=0 must be at least 1"),
        (["invert={clip}", "num_frames=10"], "has 9 frames, but num_frames=10 stride=1 start=0 needs 10"),
    ],
)
def test_mistake_about_the_clip_to_invert_ends_with_one_line_and_no_folder(
    clip_file: Path, tmp_path: Path, arguments: list[str], message: str
):
    given = [x.format(clip=clip_file) for x in arguments]
    run = run_script(SAMPLE, *given, "pose.path=null", f"output_dir={tmp_path}/out", "--prompt", "A robot")
    assert_mistake(run, message)
    assert not (tmp_path / "out").exists()


def test_mini_config_is_ready_with_its_bundled_clip():
    config = train_cli.parse(["--config", str(ROOT / MINI)])
    source = open_one_clip(config.data)
    assert isinstance(source, OneClipSource)
    assert source.frames.shape == (config.data.num_frames, 128, 128, 3)
