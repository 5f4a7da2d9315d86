"""The evaluation set, its scores, the ablations, and the scripts that evaluate and show the bundled model."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import tiny_models
from cli_utils import SCRIPTS, assert_mistake, run_script
from fyp_jax.cli import evaluate
from fyp_jax.errors import UserError
from fyp_jax.evaluation import ablations, part_segmenter, report, rows, scene_set
from fyp_jax.evaluation.clip_records import ClipRecords
from fyp_jax.evaluation.scene_metrics import TextScores
from fyp_jax.evaluation.scene_set import Kind, SceneScores, Score
from fyp_jax.media import images
from fyp_jax.media.reading import read_frames
from fyp_jax.models.attention import CrossFrameAttention
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet import UNet3D, unet_shapes
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.synthetic.looks import OPEN
from fyp_jax.synthetic.motions import HELD_OUT_MOTION
from fyp_jax.synthetic.pairs import HELD_OUT_PAIRS, TRAIN_PAIRS
from fyp_jax.synthetic.places import PLACES
from fyp_jax.synthetic.styles import STYLES


@pytest.fixture
def fake_segmenter(tmp_path: Path) -> Iterator[Path]:
    """In place of the network: whatever is not black is a figure. Gives the file of its weights."""
    weights = tmp_path / "segmenter"
    weights.write_bytes(b"1")
    with (
        mock.patch.object(part_segmenter, "WEIGHTS", weights),
        mock.patch.object(scene_set, "segment_parts", lambda video: (video.max(-1) > 0).astype(np.uint8)),
    ):
        yield weights


def test_scene_cases_have_the_held_out_motion_and_pairs_of_their_kind():
    opened = {(name, place) for name in OPEN for place in PLACES}
    for kind, pairs in (
        (Kind.NAMED, TRAIN_PAIRS),
        (Kind.HELD_OUT_PAIRS, HELD_OUT_PAIRS),
        (Kind.OPEN, opened),
    ):
        cases = scene_set.make_scene_cases(4, 2, kind)
        assert {(case.scene.characters[0], case.scene.place) for case in cases} <= set(pairs)
        assert {case.scene.motion for case in cases} == {HELD_OUT_MOTION}
        assert {case.scene.style for case in cases} == set(STYLES)
        assert len({case.scene.seed for case in cases}) == 4
        assert all(case.pose_images.shape == (2, 128, 128, 3) for case in cases)


@pytest.mark.slow
@pytest.mark.parametrize("kind", Kind)
def test_drawings_score_high_and_noise_low(kind: Kind):
    cases = scene_set.make_scene_cases(4, 2, kind)
    drawn = scene_set.drawings(cases)
    noise = [np.random.default_rng(i).integers(0, 256, x.shape).astype(np.uint8) for i, x in enumerate(drawn)]
    good, bad = (scene_set.score_scenes(clips, cases) for clips in (drawn, noise))
    means = {name: value.mean for name, value in good._asdict().items() if value is not None}
    assert means["pose_accuracy"] > 0.93
    assert means["sharpness"] == 1
    assert bad.iou is not None
    assert bad.iou.mean < means["iou"] - 0.35
    if kind is Kind.OPEN:
        assert good.character is good.place is good.style is None
    else:
        assert means["character"] == 1
        assert min(means["place"], means["style"]) >= 0.75
    table = list(report.table_rows({"drawn": good, "noise": bad}))
    assert len(table) == 4
    assert {row.count("|") for row in table} == {len(SceneScores._fields) + 2}


def test_without_cross_frame_attention_a_frame_attends_only_to_itself():
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 8))
    whole_clip, single = (CrossFrameAttention(2, 8, cross_frame=cross) for cross in (True, False))
    params = whole_clip.init(jax.random.key(1), x)
    other = x.at[:, 0].add(1.0)
    changed = [
        np.abs(module.apply(params, x) - module.apply(params, other)).max((0, 2, 3))
        for module in (whole_clip, single)
    ]
    assert (changed[0] > 0.01).all(), "every frame reads frame 0"
    assert changed[1][0] > 0.01
    assert not changed[1][1:].any()
    alone = jnp.concatenate([single.apply(params, x[:, i : i + 1]) for i in range(3)], axis=1)
    np.testing.assert_allclose(single.apply(params, x), alone, atol=1e-6)


@pytest.mark.slow
def test_without_temporal_layers_and_cross_frame_attention_equal_frames_stay_as_they_are_alone():
    """Norms over all frames of a clip have the statistics of one frame where all are equal."""
    params = random_params(unet_shapes(tiny_models.UNET), seed=0)
    zeroed = ablations.without_temporal_layers(params)
    assert {path for path, x in flatten_dict(zeroed, sep="/").items() if not np.any(x)} >= {
        path for path in flatten_dict(params, sep="/") if "conv_temporal/up" in path
    }
    config = dataclasses.replace(tiny_models.UNET, cross_frame_attention=False)
    frame = jax.random.normal(jax.random.key(2), (1, 1, 8, 8, 4))
    text = jax.random.normal(jax.random.key(3), (1, 5, 8))

    @jax.jit
    def run(params: dict, clip: jax.Array) -> jax.Array:
        return UNet3D(config).apply({"params": params}, clip, jnp.array([500]), text)

    one, two = run(zeroed, frame), run(zeroed, jnp.concatenate([frame, frame], axis=1))
    np.testing.assert_allclose(two, jnp.concatenate([one, one], axis=1), atol=1e-4)
    with_time = run(params, jnp.concatenate([frame, frame], axis=1))
    assert np.abs(with_time - two).max() > 0.01


def test_before_the_motion_stage_queries_are_those_of_the_image_model():
    params = {"unet": random_params(unet_shapes(tiny_models.UNET), seed=0)}
    image = {
        "down_blocks_0": {
            "attentions_0": {"transformer_blocks_0": {"attn1": {"to_q": {"kernel": jnp.ones((16, 16))}}}}
        }
    }
    before = ablations.before_motion_stage(params, image)["unet"]
    block = before["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]
    assert (block["attn1"]["to_q"]["kernel"] == 1).all()
    assert not np.any(block["conv_temporal"]["up"]["kernel"])
    assert np.any(block["attn2"]["to_q"]["kernel"])


def some_scores(mean: float, **others: Score | None) -> SceneScores:
    value = Score(mean, mean - 0.1, mean + 0.1, (mean - 0.05, mean + 0.05))
    return SceneScores(**{**dict.fromkeys(SceneScores._fields, value), **others})


def test_figures_have_a_row_for_each_model(tmp_path: Path):
    scores = some_scores(0.5, character=None, pose_accuracy_shuffled=None)
    clips = [np.zeros((2, 32, 32, 3), np.uint8)] * 2
    sizes = []
    for count in (2, 5):
        names = [f"model {i}" for i in range(count)]
        report.plot_scores(dict.fromkeys(names, scores), tmp_path / "scores.png")
        report.plot_clips(dict.fromkeys(names, clips), tmp_path / "clips.png", 2)
        sizes.append([Image.open(tmp_path / f"{name}.png").height for name in ("scores", "clips")])
    assert (np.array(sizes[1]) > sizes[0]).all(), "a row for each"


def test_clips_of_all_models_play_side_by_side(tmp_path: Path):
    """The first clip of each row is in the GIF, at its place and with all of its frames."""
    greys = {"poses": (10, 60), "full model": (110, 160), "ablation, open": (210, 250)}
    shown = {
        name: [np.stack([np.full((32, 32, 3), grey, np.uint8) for grey in pair])]
        for name, pair in greys.items()
    }
    report.animate_clips(shown, tmp_path / "clips.gif", fps=8)
    frames = read_frames(tmp_path / "clips.gif", range(2))
    assert frames.shape[2] == 3 * 32 + 2 * images.CLIP_GAP
    corners = frames[:, 16, [16 + i * (32 + images.CLIP_GAP) for i in range(3)], 0]
    np.testing.assert_array_equal(corners, np.array(list(greys.values())).T)
    assert (frames[:, 32:, :32] < 128).any(), "the name is below"
    with pytest.raises(ValueError, match="longer|shorter"):
        images.side_by_side([shown["poses"][0]] * 2, ["one"])


def test_table_leaves_the_cell_of_a_missing_score_empty():
    *_, row = report.table_rows({"open": some_scores(0.5, character=None)})
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert [not cell for cell in cells] == [name == "character" for name in SceneScores._fields]


def test_differences_are_taken_clip_by_clip_over_clips_that_both_have():
    """Clips differ by 0.5 and more, and the ablation from the full model by 0.01 each: that can be told."""
    clips = np.linspace(0.1, 0.9, 9)
    base = Score(0.5, 0.3, 0.7, tuple(clips))
    other = Score(0.49, 0.29, 0.69, (None, *(clips[1:] - 0.01)))
    results = {
        "full model": some_scores(0.5, sharpness=base, style=None),
        "less": some_scores(0.3, sharpness=other),
    }
    *_, row = report.difference_rows(results, {"less": "full model"})
    name, minus, *cells = (cell.strip() for cell in row.split("|")[1:-1])
    assert (name, minus) == ("less", "full model")
    differences = dict(zip(SceneScores._fields, cells, strict=True))
    assert differences["sharpness"] == "-0.010 (-0.010 to -0.010)"
    assert differences["iou"] == "-0.200 (-0.200 to -0.200)"
    assert differences["style"] == ""


def test_each_ablation_is_compared_with_the_full_model_on_the_same_cases():
    planned = rows.plan_rows(["full model", "less", ablations.WITHOUT_TEMPORAL], 8, [24])
    assert rows.baselines(planned) == {
        "less": "full model",
        "without temporal layers": "full model",
        "without temporal layers, open captions": "full model, open captions",
    }


def test_scores_of_each_clip_are_in_the_json():
    scores = {"a": some_scores(0.5, character=None, edge_width=Score(1.0, 1.0, 1.0, (None, 1.0)))}
    text = json.dumps(rows.scores_json(scores))
    assert rows.scores_from_json(json.loads(text)) == scores
    with pytest.raises(TypeError, match="clips"):
        rows.scores_from_json({"a": {"iou": {"mean": 1.0, "low": 1.0, "high": 1.0}}})


def test_rows_are_the_ablations_on_named_captions_and_those_on_open_ones():
    names = (ablations.FULL_MODEL, ablations.FRAME_BY_FRAME)
    assert [row.name for row in rows.plan_rows(names, 8, [24])] == [
        "ground truth", "full model", "pose stage only, frame by frame",
        "ground truth, held-out pairs", "full model, held-out pairs",
        "ground truth, open captions", "full model, open captions",
        "pose stage only, frame by frame, open captions",
        "ground truth, 24 frames", "full model, 24 frames",
    ]  # fmt: skip
    planned = rows.plan_rows([*rows.OPEN_MODELS, "without pose"], 8, [])
    of = {kind: {row.model for row in planned if row.kind is kind} for kind in Kind}
    assert of[Kind.OPEN] == {rows.GROUND_TRUTH, *rows.OPEN_MODELS}
    assert of[Kind.NAMED] == of[Kind.OPEN] | {"without pose"}


def test_clips_of_equal_weights_and_options_are_sampled_and_scored_once(fake_segmenter: Path, tmp_path: Path):
    sampled: list[tuple[str, int]] = []

    def model(name: str, weights: str) -> rows.Model:
        def sample(case: Any, seed: int) -> np.ndarray:
            sampled.append((name, seed))
            return np.roll(case.pose_images, seed, axis=2)

        return rows.Model(sample, weights)

    def run(config: SampleConfig, num_clips: int = 3, **weights: str) -> dict[str, list[int]]:
        """The clips of each model that were sampled."""
        sampled.clear()
        models = {name: model(name, value) for name, value in weights.items()}
        planned = [rows.Row(name, Kind.OPEN, 2) for name in models]
        with mock.patch.object(rows, "score_clip", return_value={"iou": 0.5}):
            results, shown = rows.score_rows(planned, models, num_clips, config, tmp_path)
        assert list(results) == [row.name for row in planned]
        assert all(len(scores.iou.clips) == num_clips for scores in results.values() if scores.iou)
        for name, clips in shown[Kind.OPEN].items():
            assert len(clips) == 2
            if name in models:
                poses = shown[Kind.OPEN][rows.GIVEN_POSE]
                assert all((x == np.roll(poses[i], i, axis=2)).all() for i, x in enumerate(clips))
        assert list(json.loads((tmp_path / "scores.json").read_text())) == list(results)
        again = {name: [seed for other, seed in sampled if other == name] for name in models}
        return {name: seeds for name, seeds in again.items() if seeds}

    assert run(SampleConfig(), a="1", b="1") == {"a": [0, 1, 2], "b": [0, 1, 2]}
    assert run(SampleConfig(output_dir="elsewhere"), a="1", b="1") == {}
    assert run(SampleConfig(), num_clips=5, a="1") == {"a": [3, 4]}, "more clips of the same"
    assert run(SampleConfig(), a="1", b="2") == {"b": [0, 1, 2]}
    assert run(SampleConfig(guidance_scale=2.0), a="1") == {"a": [0, 1, 2]}
    fake_segmenter.write_bytes(b"2")
    assert run(SampleConfig(), a="1") == {"a": [0, 1, 2]}


def test_clips_that_were_kept_before_a_stop_are_there_after_it(tmp_path: Path):
    """A process that is killed leaves a line, or a picture, of which the end is missing."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    records = ClipRecords(tmp_path)
    for i in range(3):
        records.add("key", i, {"iou": i / 2, "style": None}, frames)
    file, picture = tmp_path / "clips.jsonl", next(tmp_path.glob("shown/*-1.png"))
    file.write_bytes(file.read_bytes()[:-5])
    picture.write_bytes(picture.read_bytes()[:100])
    again = ClipRecords(tmp_path)
    assert [again.scores("key", i) for i in range(3)] == [
        {"iou": 0.0, "style": None},
        {"iou": 0.5, "style": None},
        None,
    ]
    kept = [again.frames("key", i, 3) for i in range(2)]
    assert kept[0] is not None
    assert (kept[0] == frames).all()
    assert kept[1] is None
    again.add("key", 2, {"iou": 1.0})
    assert ClipRecords(tmp_path).scores("key", 2) == {"iou": 1.0}
    assert again.scores("other", 0) is again.frames("other", 0, 3) is None


def test_weights_checksum_changes_with_a_name_or_a_value():
    params = {"unet": {"a": np.ones(3), "b": np.zeros(2)}}
    others = ({"unet": {"a": np.ones(3), "c": np.zeros(2)}}, {"unet": {"a": np.ones(3), "b": np.ones(2)}})
    checksum = rows.weights_checksum(params)
    assert checksum == rows.weights_checksum({"unet": dict(reversed(params["unet"].items()))})
    assert checksum not in [rows.weights_checksum(other) for other in others]


TINY_OPTIONS = ["--num-clips", "2", "--frames", "2"]


@pytest.fixture
def fake_pipeline() -> Any:
    """A pipeline without weights, for cheap tests: its clips are the pose images."""

    def sample(prompt: str, pose: np.ndarray, sampling: Any) -> Any:
        assert sampling.num_frames == len(pose)
        return SimpleNamespace(frames=pose)

    pipeline = mock.Mock(side_effect=sample)
    with mock.patch.object(FollowYourPosePipeline, "from_config", return_value=pipeline):
        yield pipeline


@pytest.mark.slow
def test_evaluate_writes_table_scores_and_figures(fake_pipeline: Any, fake_segmenter: Path, tmp_path: Path):
    def text_is_right(*_: Any) -> TextScores:
        return TextScores(True, True, True)

    models = {
        ablations.FULL_MODEL: rows.Model(lambda case, seed: scene_set.drawings([case])[0], "1"),
        "skeletons": rows.Model(lambda case, seed: case.pose_images, "1"),
    }
    args = [*TINY_OPTIONS, "--out", tmp_path / "new", "--long", "3", "4"]
    with (
        mock.patch.object(evaluate, "models_of", return_value=models),
        mock.patch.object(scene_set, "text_scores", text_is_right),
    ):
        done = run_script(SCRIPTS / "evaluate.py", *args)
        assert done.status == 0, done.err
        again = run_script(SCRIPTS / "evaluate.py", *args)
    assert again.out == done.out
    scores = json.loads((tmp_path / "new" / "scores.json").read_text())
    names = ["ground truth", "full model", "skeletons", "ground truth, held-out pairs"]
    names += ["full model, held-out pairs", "ground truth, open captions", "full model, open captions"]
    names += [f"{model}, {n} frames" for n in (3, 4) for model in ("ground truth", "full model")]
    assert list(scores) == names
    assert scores["full model"] == scores["ground truth"]
    assert scores["full model"]["character"]["mean"] == 1
    assert scores["full model, open captions"]["character"] is None
    assert scores["skeletons"]["sharpness"]["mean"] != scores["full model"]["sharpness"]["mean"]
    assert (tmp_path / "new" / "scores.md").read_text() in done.out + "\n"
    assert "| skeletons | full model |" in done.out
    assert len(scores["skeletons"]["sharpness"]["clips"]) == 2
    for name in ("scores", "clips", "clips_open", "clips_held_out_pairs"):
        with Image.open(tmp_path / "new" / f"{name}.png") as figure:
            assert min(figure.size) > 100
    for name in ("clips", "clips_open", "clips_held_out_pairs"):
        with Image.open(tmp_path / "new" / f"{name}.gif") as clips:
            assert getattr(clips, "n_frames", 1) == 2, "all frames play"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num-clips", "0"], "give at least one clip"),
        (["--frames", "1"], "clips of at least two frames"),
        (["--compare", "runs/mine"], "--compare runs/mine: give NAME=DIR"),
        (["--compare", "run=a", "--compare", "run=b"], "--compare run=DIR is there twice"),
        (["num_frames=24"], "num_frames=24: the clips that are scored do not depend on it"),
        (["seed=5"], "seed=5: the clips that are scored do not depend on it"),
        (["pose.path=dance"], "pose.path=dance: the clips that are scored do not depend on it"),
        (["num_inference_step=3"], "unknown key num_inference_step"),
        (["--out", "{file}"], "file: cannot be written"),
    ],
)
def test_evaluate_refuses_before_it_loads_weights(
    fake_pipeline: Any, tmp_path: Path, args: list, message: str
):
    (tmp_path / "file").touch()
    args = [arg.format(file=tmp_path / "file") for arg in args]
    assert_mistake(run_script(SCRIPTS / "evaluate.py", *args), message)
    FollowYourPosePipeline.from_config.assert_not_called()


@pytest.mark.parametrize("name", ["full model", "ground truth", "given pose"])
def test_another_checkpoint_does_not_take_the_name_of_a_row(tmp_path: Path, name: str):
    base = tiny_models.write_weights(tiny_models.write_pipeline(tmp_path / "configs"), tmp_path / "model")
    config = SampleConfig(pretrained=str(base), random_init=True)
    pipeline = FollowYourPosePipeline.from_config(config)
    with pytest.raises(UserError, match=f"--compare {name}=runs/x: {name} is a row already"):
        evaluate.models_of(config, pipeline, False, {name: "runs/x"})


@pytest.mark.release
def test_evaluate_scores_the_bundled_model_and_its_ablations(tmp_path: Path):
    args = ["--num-clips", "1", "--frames", "2", "--ablations", "--compare", f"again={tmp_path / 'nowhere'}"]
    done = run_script(SCRIPTS / "evaluate.py", *args, "--out", tmp_path)
    assert_mistake(done, "nowhere: no such folder")
    done = run_script(SCRIPTS / "evaluate.py", *args[:-2], "num_inference_steps=5", "--out", tmp_path)
    assert done.status == 0, done.err
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert len(scores) == 1 + 8 + 2 + 6  # drawings, models, held-out pairs, open captions
    full = scores.pop("full model")
    assert full["pose_accuracy"]["mean"] > 0.7
    assert all(row != full for row in scores.values()), "each ablation changes the clip"


def test_ablations_change_one_part_of_the_model_each(tmp_path: Path):
    tiny_models.write_weights(tiny_models.write_pipeline(tmp_path / "configs"), tmp_path / "model")
    config = SampleConfig(
        pretrained=str(tmp_path / "model"), random_init=True, noise_correlation=1.0, pose_guidance=True
    )
    pipeline = FollowYourPosePipeline.from_config(config)
    parts: dict[Callable, tuple[FollowYourPosePipeline, SamplingParams]] = {}

    def recorded(pipeline: FollowYourPosePipeline, sampling: SamplingParams) -> Callable:
        model = mock.Mock()
        parts[model] = pipeline, sampling
        return model

    with mock.patch.object(ablations, "full_model", recorded):
        models = {
            name: model.sample for name, model in evaluate.models_of(config, pipeline, True, {}).items()
        }
    used = {name: parts[model] for name, model in models.items() if model in parts}
    assert len(models) == 8
    full, sampling = used["full model"]
    assert full is pipeline
    no_correlation = dataclasses.replace(sampling, noise_correlation=0.0)
    assert used["own noise for each frame"] == (pipeline, no_correlation)
    text_guidance = dataclasses.replace(sampling, pose_guidance=False)
    assert used["guidance on the text alone"] == (pipeline, text_guidance)
    assert sampling not in (no_correlation, text_guidance)
    pose_stage = flatten_dict(used["pose stage only, correlated noise"][0].params, sep="/")
    silent = flatten_dict(used["without temporal layers"][0].params, sep="/")
    for path, x in flatten_dict(pipeline.params, sep="/").items():
        temporal = "attn_temp/to_out_0" in path or "conv_temporal/up" in path
        assert np.array_equal(silent[path], 0 * x if temporal else x)
        queries = "attn1/to_q" in path or "attn2/to_q" in path
        assert np.any(pose_stage[path]) <= (not temporal)
        assert not queries or not np.array_equal(pose_stage[path], x), "the image model's"
    single, _ = used["without cross-frame attention"]
    assert not single.programs.unet.config.cross_frame_attention
    assert single.params is pipeline.params


def test_frame_by_frame_samples_each_frame_with_its_own_noise():
    calls = []

    def sample(prompt: str, pose: np.ndarray, sampling: Any) -> Any:
        calls.append((len(pose), sampling.num_frames, sampling.seed))
        return SimpleNamespace(frames=pose)

    case = scene_set.make_scene_cases(1, 3, Kind.NAMED)[0]
    params = SampleConfig()
    pipeline: Any = sample
    frames = ablations.frame_by_frame.__wrapped__(pipeline, params)(case, 2)
    np.testing.assert_array_equal(frames, case.pose_images)
    assert calls == [(1, 1, 2000), (1, 1, 2001), (1, 1, 2002)]


def test_teaser_has_the_pose_and_a_clip_for_each_prompt(fake_pipeline: Any, tmp_path: Path):
    args = ["--frames", "3", "--prompt", "A robot, on the sea", "Hulk, on the beach"]
    done = run_script(SCRIPTS / "make_teaser.py", *args, "--out", tmp_path / "teaser.gif")
    assert done.status == 0, done.err
    assert done.out.startswith(f"{tmp_path / 'teaser.gif'}: 0.")
    assert [call.args[0] for call in fake_pipeline.call_args_list] == args[3:]
    with Image.open(tmp_path / "teaser.gif") as gif:
        assert gif.n_frames == 3
        frame = np.asarray(gif.convert("RGB"))
    column = 128 + 6  # with the gap
    assert frame.shape[1] == 3 * column - 6
    np.testing.assert_array_equal(frame[:128, :128], frame[:128, column : column + 128])
    assert (frame[:128, :128].max(axis=-1) > 0).any(), "a skeleton"


def test_teaser_takes_the_poses_of_sample_py(fake_pipeline: Any, tmp_path: Path):
    args = ["--frames", "2", "--prompt", "A robot, on the sea", "--out", tmp_path / "teaser.gif", "--pose"]
    assert run_script(SCRIPTS / "make_teaser.py", *args, "dance").status == 0
    assert_mistake(run_script(SCRIPTS / "make_teaser.py", *args, "nowhere.mp4"), "nowhere.mp4")


@pytest.mark.slow
def test_teaser_of_the_bundled_model(tmp_path: Path):
    args = ["--frames", "2", "--prompt", "A robot, on the sea", "--out", tmp_path / "teaser.gif"]
    assert run_script(SCRIPTS / "make_teaser.py", *args).status == 0
    with Image.open(tmp_path / "teaser.gif") as gif:
        frame = np.asarray(gif.convert("RGB"))
    assert np.abs(frame[:128, :128].astype(int) - frame[:128, 134:]).mean() > 20
