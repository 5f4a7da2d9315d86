"""Serves the page with a pipeline that only paints: a clip has the colour of its prompt.

`python tests/page_server.py PORT SECONDS_A_STEP`; the tests of the page start it."""

import sys
import threading
import time
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np

from fyp_jax.demo.service import ClipService
from fyp_jax.demo.sessions import Sessions
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.edit_config import EditConfig
from fyp_jax.pipeline.output import PipelineOutput
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline

VALUES: dict[str, Any] = {
    "prompt": "a robot",
    "negative_prompt": "",
    "pose": "dance",
    "pose.size": "",
    "pose.start": 0,
    "pose.stride": 5,
    "num_frames": 2,
    "height": 64,
    "width": 64,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "seed": 0,
}


def colour(prompt: str) -> tuple[int, int, int]:
    """A grey of the prompt, which survives compression."""
    return (zlib.crc32(prompt.encode()) % 200 + 28,) * 3


class Painter(FollowYourPosePipeline):
    """Paints all frames in the colour of the prompt, step by step."""

    seconds_a_step = 0.0

    def __call__(self, prompt: str, pose: Any = None, sampling: Any = None, **options: Any) -> PipelineOutput:
        for _ in range(sampling.num_inference_steps):
            time.sleep(self.seconds_a_step)
            options["on_step"]()
        shape = sampling.num_frames, sampling.height, sampling.width, 3
        frames = np.broadcast_to(np.uint8(colour(prompt)), shape).copy()
        return PipelineOutput(frames, np.zeros((len(frames), 8, 8, 4), np.float32), pose)


def painter(seconds_a_step: float = 0.0) -> Painter:
    pipeline = object.__new__(Painter)
    tokenizer = SimpleNamespace(encode=lambda text: SimpleNamespace(ids=[]))
    encoders = SimpleNamespace(added_tokens={}, tokenizer=tokenizer)
    programs = SimpleNamespace(check=lambda config: None, encoders=encoders)
    fields = {"programs": programs, "params": {}, "defaults": SamplingParams(height=64, width=64)}
    for name, value in {**fields, "weights": {}, "seconds_a_step": seconds_a_step}.items():
        object.__setattr__(pipeline, name, value)
    return pipeline


def service(pipeline: Painter, **options: Any) -> ClipService:
    config = SampleConfig(prompt=["a robot"], height=64, width=64, num_frames=2, num_inference_steps=3)
    edit = EditConfig(video="robot", height=64, width=64)
    return ClipService(pipeline, config, edit, **options)


def main() -> None:
    from fyp_jax.demo import jobs, server

    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    server.SWEEP_S, jobs.UNWATCHED_S = 1.0, 3.0
    sweep = Sessions.sweep
    Sessions.sweep = lambda self: sweep(self, idle_s=5.0, stray_s=2.0)  # pyright: ignore
    with server.serve(service(painter(seconds)), "A test.", port=port) as served:
        print(f"Open {served.url}", flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
