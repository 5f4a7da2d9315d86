"""Inversion and edit of a clip: from prompts, poses and options to what `ClipEditor` runs, and its result."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fyp_jax.editing.inversion import Inversion
from fyp_jax.editing.options import EditOptions
from fyp_jax.editing.plan import make_plan
from fyp_jax.editing.words import TokenizedPrompt
from fyp_jax.errors import UserError
from fyp_jax.media.images import frames_crc32
from fyp_jax.models.encoders import LatentEncoders
from fyp_jax.pipeline.clip_editor import ClipEditor
from fyp_jax.pipeline.noise import prepare_latents
from fyp_jax.pipeline.output import Frames, PipelineOutput
from fyp_jax.types import FeatureMaps, Latents


@dataclasses.dataclass(frozen=True, eq=False)
class EditOutput(PipelineOutput):
    """An edited clip, and what it was made of."""

    source: Frames
    """The source: the clip behind encoder and decoder, or the one that was generated beside the edit."""
    mask: Bool[np.ndarray, "f h w"] | None
    """Where the source's blend words are, in latents, halfway through; None without blend words."""


def invert_clip(
    editor: ClipEditor,
    clip: Frames,
    z: Latents,
    prompt: str,
    pose_images: Frames | None,
    map_level: int,
    on_step: Callable[[], Any] | None = None,
) -> Inversion:
    """The inversion of a clip, whose clean latents are `z`, with a source prompt.

    Raises UserError for a prompt that is empty or too long, for guidance, and for a level that the model does
    not have.
    """
    sampling, levels = editor.sampling, _levels(editor)
    if sampling.guidance_scale != 1:
        raise UserError(f"guidance_scale={sampling.guidance_scale}: a trajectory is made without guidance")
    if not 0 <= map_level < levels:
        raise UserError(f"map_level={map_level}: this model has levels 0 to {levels - 1}")
    tokens = tokenize_prompt(editor.programs.encoders, prompt)
    if not tokens.strings:
        raise UserError("the source prompt is empty: an edit needs a text that says what the clip shows")
    text, features = editor.encode_text([tokens.text]), editor.encode_pose(pose_images)
    trajectory, maps = editor.invert(z, tokens, text, features, map_level, on_step)
    made_for = _made_for(editor, pose_images, map_level) | {"clip": frames_crc32(clip)}
    return Inversion(trajectory, maps, tokens.text, made_for)


def check_inversion(
    editor: ClipEditor,
    inversion: Inversion,
    source: TokenizedPrompt,
    options: EditOptions,
    pose_images: Frames | None,
    what: str = "the inversion",
) -> None:
    """Raise UserError where an edit of this source would take an inversion that was made for something else.

    `what` names the inversion in the message.
    """
    made_for = _made_for(editor, pose_images, options.map_level)
    if not options.blend_words:
        del made_for["map_level"]  # nothing reads the maps
    inversion.check_made_for(made_for, what)
    if inversion.prompt != source.text:
        raise UserError(f"{what}: was made with source={inversion.prompt!r}, not {source.text!r}")


def edit_clip(
    editor: ClipEditor,
    inversion: Inversion | None,
    prompts: Sequence[str],
    options: EditOptions,
    pose_images: Sequence[Frames | None],
    on_step: Callable[[], Any] | None = None,
) -> EditOutput:
    """Edit a clip: `prompts` and `pose_images` are those of the source and of the edit.

    Raises UserError as `make_plan`, and where the inversion is missing or was made for something else.
    """
    encoders, sampling = editor.programs.encoders, editor.sampling
    source, target = (tokenize_prompt(encoders, prompt) for prompt in prompts)
    steps = sampling.num_inference_steps
    plan = make_plan(options, source, [target], steps, _levels(editor), encoders.spec.tokens)
    if (inversion is None) != (options.method == "generate"):
        raise UserError(
            f"method={options.method} needs the inversion of a clip"
            if inversion is None
            else "method=generate makes its source, and takes no inversion of a clip"
        )
    noise = None
    if inversion is not None:
        check_inversion(editor, inversion, source, options, pose_images[0])
    else:
        # The two keys are split as in a call without an edit, so that the source is the same clip.
        key, _ = jax.random.split(jax.random.key(sampling.seed))
        shape = editor.programs.latent_shape(sampling.num_frames, sampling.height, sampling.width)
        noise = prepare_latents(key, shape, sampling.noise_correlation)
    text, negative = (
        editor.encode_text([source.text, target.text]),
        editor.encode_text([sampling.negative_prompt]),
    )
    poses = edit_poses(pose_images, generated=inversion is None)
    first = editor.encode_pose(poses[0])
    other = first if poses[1] is poses[0] else editor.encode_pose(poses[1])
    run = editor.edit(plan, text, negative, stack_rows(first, other, 1), inversion, noise, on_step)
    return EditOutput(editor.decode(run.z[0]), run.z[0], poses[1], editor.decode(run.source), run.masks)


def edit_poses(pose_images: Sequence[Frames | None], generated: bool) -> tuple[Frames | None, Frames | None]:
    """The poses that source and edit follow, from those that are given for them.

    An edit without a pose of its own follows the source's. A source that is generated and has none follows
    the edit's, so that a pose that is given once steers both.
    """
    source, target = pose_images
    if source is None and generated:
        source = target
    return source, source if target is None else target


def _made_for(editor: ClipEditor, pose_images: Frames | None, map_level: int) -> dict[str, Any]:
    return {
        "weights": editor.weights,
        "schedule": repr(editor.programs.schedule),
        "num_inference_steps": editor.sampling.num_inference_steps,
        "map_level": map_level,
        "pose": None if pose_images is None else frames_crc32(pose_images),
    }


def _levels(editor: ClipEditor) -> int:
    return len(editor.programs.unet.config.block_out_channels)


def tokenize_prompt(encoders: LatentEncoders, text: str) -> TokenizedPrompt:
    """A prompt with single spaces, and its tokens, whose strings are the parts of the prompt that they
    cover. Raises UserError for a prompt that the text encoder would cut."""
    text = " ".join(text.split())
    encoding = encoders.tokenizer.encode(text)
    vectors = {encoders.tokenizer.token_to_id(name): n for name, n in encoders.added_tokens.items()}
    ids, strings, end = [], [], 0
    spans = encoding.offsets
    for i, (index, (start, stop)) in enumerate(zip(encoding.ids, spans, strict=True)):
        # Of several tokens of one character the last one stands for it, and of several vectors of a token.
        # The end token, which comes last, has no span.
        covered = i + 2 < len(spans) and spans[i + 1][0] < stop
        count = vectors.get(index, 1)
        ids += range(index, index + count)
        strings += [""] * (count - 1) + ["" if covered else text[max(start, end) : stop]]
        end = end if covered else max(stop, end)
    prompt = TokenizedPrompt(text, tuple(ids), tuple(strings[1:-1]))
    prompt.check_length(encoders.spec.tokens)
    return prompt


def stack_rows(
    source: Sequence[FeatureMaps] | None, target: Sequence[FeatureMaps] | None, targets: int
) -> list[Float[Array, "rows f _ _ _"]] | None:
    """Pose features of the rows of an edit; a row without a pose gets zeros where another has one."""
    if source is None and target is None:
        return None
    first = source or [jnp.zeros_like(x) for x in target or ()]
    rest = target or [jnp.zeros_like(x) for x in source or ()]
    return [jnp.concatenate([a, *[b] * targets]) for a, b in zip(first, rest, strict=True)]
