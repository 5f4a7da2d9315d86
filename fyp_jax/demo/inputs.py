"""The left-hand side of both tabs: inputs with the names of the config fields that they set."""

from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from fyp_jax.demo.limits import KEYPOINTS, VIDEOS
from fyp_jax.demo.service import ClipService
from fyp_jax.demo.values import CONFIGURED, FILM, NO_POSE, UPLOAD, bundled_names

SIZES = (("num_frames", "Frames"), ("height", "Height"), ("width", "Width"))
SAMPLING = (("num_inference_steps", "Steps"), ("guidance_scale", "Guidance"), ("seed", "Seed"))


class SampleInputs(NamedTuple):
    """Inputs of a new clip."""

    components: dict[str, Any]
    """By the names that `values.sample_values` takes."""
    upload: gr.File
    shape_preview: tuple[Any, ...]
    """Those whose change shows another preview."""

    @classmethod
    def build(cls, service: ClipService) -> "SampleInputs":
        config = service.sample_config
        prompt = gr.Textbox(
            config.prompt[0] if config.prompt else "", label="Prompt", lines=2, elem_id="sample-prompt"
        )
        choices = [(f"{name} (bundled)", name) for name in bundled_names("poses", ".json")]
        choices += [("Skeleton video or keypoints", UPLOAD)]
        choices += [("Film of people", FILM)] if service.film is not None else []
        choices += [("No pose", NO_POSE)]
        chosen = config.pose.path or NO_POSE
        if chosen not in [value for _, value in choices]:
            choices, chosen = [(Path(chosen).name, CONFIGURED), *choices], CONFIGURED
        pose = gr.Radio(choices, value=chosen, label="Pose", elem_id="sample-pose")
        upload = _upload("pose", [*VIDEOS, *KEYPOINTS])
        pose.change(
            _visible(UPLOAD, FILM), [pose], [upload], show_progress="hidden", api_visibility="private"
        )
        components: dict[str, Any] = {"prompt": prompt, "pose": pose}
        with gr.Row():
            components |= _numbers(config, SIZES[:1])
            components["pose.stride"] = _number("pose.stride", "Stride", config.pose.stride)
        with gr.Row():
            components |= _numbers(config, SIZES[1:])
        with gr.Row():
            components |= _numbers(config, SAMPLING)
        with gr.Accordion("More settings", open=False):
            components["negative_prompt"] = gr.Textbox(
                config.negative_prompt, label="Negative prompt", elem_id="sample-negative-prompt"
            )
            components["pose.start"] = _number("pose.start", "First frame of the pose", config.pose.start)
            components["pose.size"] = gr.Textbox(
                "",
                label="Size of the film, for keypoints that do not say it",
                placeholder="1280x720",
                elem_id="sample-pose-size",
            )
        shape = ("pose", "num_frames", "pose.stride", "height", "width", "pose.start", "pose.size")
        return cls(components, upload, tuple(components[name] for name in shape))


class EditInputs(NamedTuple):
    """Inputs of an edit."""

    components: dict[str, Any]
    """By the names that `values.edit_values` takes."""
    upload: gr.File
    shape_preview: tuple[Any, ...]

    @classmethod
    def build(cls, service: ClipService) -> "EditInputs":
        config = service.edit_config
        names = bundled_names("clips", ".mp4")
        choices = [*((f"{name} (bundled)", name) for name in names), ("Upload", UPLOAD)]
        chosen = config.video if config.video in names else UPLOAD
        video = gr.Radio(choices, value=chosen, label="Clip", elem_id="edit-video")
        upload = _upload("clip", list(VIDEOS), visible=chosen == UPLOAD)
        video.change(_visible(UPLOAD), [video], [upload], show_progress="hidden", api_visibility="private")
        source = gr.Textbox(config.source, label="What the clip shows", elem_id="edit-source")
        prompt = gr.Textbox(
            config.prompt[0] if config.prompt else "", label="What the edit shows", elem_id="edit-prompt"
        )
        words = gr.Textbox(
            ", ".join(config.edit.blend_words),
            label="Words of the part that changes",
            info="of both texts, with commas; the rest of the picture is kept. Empty: all may change",
            elem_id="edit-words",
        )
        methods = [("FateZero", "fatezero"), ("prompt-to-prompt", "p2p")]
        method = gr.Radio(methods, value=config.edit.method, label="Method", elem_id="edit-method")
        components: dict[str, Any] = {"video": video, "source": source, "prompt": prompt, "words": words}
        components["method"] = method
        with gr.Row():
            components |= _numbers(config, SIZES[:1], "edit")
            components["video_stride"] = _number("video_stride", "Stride", config.video_stride, "edit")
            components["video_start"] = _number("video_start", "First frame", config.video_start, "edit")
        with gr.Row():
            components |= _numbers(config, SIZES[1:], "edit")
        with gr.Row():
            components |= _numbers(config, SAMPLING, "edit")
        shape = ("video", "num_frames", "video_stride", "video_start", "height", "width")
        return cls(components, upload, tuple(components[name] for name in shape))


def _upload(name: str, suffixes: list[str], visible: bool = False) -> gr.File:
    return gr.File(label="File", file_types=suffixes, visible=visible, height=110, elem_id=f"{name}-upload")


def _visible(*choices: str) -> Any:
    def update(choice: str) -> Any:
        return gr.update(visible=choice in choices)

    return update


def _numbers(config: Any, fields: tuple[tuple[str, str], ...], tab: str = "sample") -> dict[str, Any]:
    return {name: _number(name, label, getattr(config, name), tab) for name, label in fields}


def _number(name: str, label: str, value: float, tab: str = "sample") -> gr.Number:
    number = name.replace(".", "-").replace("_", "-")
    # Messages call the input by its field, so the page shows that name, too.
    return gr.Number(value, label=label, info=name, min_width=130, elem_id=f"{tab}-{number}")
