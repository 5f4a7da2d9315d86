"""Open a web page that makes and edits clips: python scripts/demo.py, then http://127.0.0.1:7860.

It runs on this machine without the network. It needs the extra [demo]: pip install 'fyp_jax[demo]'.
"""

import argparse
import dataclasses
import importlib.util
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fyp_jax.cli.film_arguments import add_extraction_arguments, check_people
from fyp_jax.config import load_config, make_parser, override_config
from fyp_jax.console import run_console
from fyp_jax.errors import UserError
from fyp_jax.pipeline.config import RANDOM_WEIGHTS, SampleConfig
from fyp_jax.pipeline.edit_config import EditConfig
from fyp_jax.pipeline.params import SAMPLING_FIELDS

if TYPE_CHECKING:
    from fyp_jax.demo.service import ClipService
    from fyp_jax.pipeline.film_poses import FilmOptions

BUNDLED = "mini"
MINI_EDIT = "configs/mini/edit.yaml"
PORT = 7860
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MODEL_FIELDS = (
    "pretrained",
    "variant",
    "tokenizer",
    "prediction_type",
    "checkpoint",
    "step",
    "lora",
    "embedding",
    "random_init",
    "dtype",
    "attention_implementation",
    "verify",
    "mesh",
    "fps",
)
"""Fields that the edits take from the config of the clips: there is one model."""
ABOUT_MINI = (
    "The bundled model draws small clips of “CHARACTER, PLACE, STYLE”, and nothing else. "
    "Characters: {characters}. Places: {places}. Styles: {styles}, or none."
)


class Command(NamedTuple):
    """A command line of demo.py."""

    sample: SampleConfig
    edit: EditConfig
    has_edit_config: bool
    """Whether a file gives the values of the edits."""
    given: frozenset[str]
    """Fields of the config that the command line or a config file sets; the model says the others."""
    args: argparse.Namespace


def parse(argv: list[str]) -> Command:
    """The configs from which the page starts, and the options of a command line. Raises UserError."""
    parser = make_parser(SampleConfig, __doc__)
    add = parser.add_argument
    add("--pipeline", metavar="NAME", help="same as pretrained=NAME (default: the bundled model)")
    add("--checkpoint", metavar="DIR", help="same as checkpoint=DIR: a checkpoint of ours")
    add("--edit-config", metavar="FILE", help=f"config of the edits (default: {MINI_EDIT} for {BUNDLED})")
    add("--host", default=LOOPBACK[0], help="address to serve at; 0.0.0.0: for other machines, too")
    add("--port", type=int, default=PORT, metavar="N", help=f"port to serve at (default: {PORT})")
    add("--share", action="store_true", help="make a public address, by way of gradio's servers")
    add_extraction_arguments(parser.add_argument_group("poses from a film (extra [pose])"))
    args = parser.parse_intermixed_args(argv)
    if not 0 < args.port < 2**16:
        raise UserError(f"--port {args.port} is not between 1 and {2**16 - 1}")
    check_people(args.people)
    flags = {"pretrained": args.pipeline, "checkpoint": args.checkpoint}
    overrides = args.overrides + [f"{key}={value}" for key, value in flags.items() if value is not None]
    given = {text.partition("=")[0] for text in overrides}
    if args.config is None:
        sample = override_config(SampleConfig(prompt=["A robot, on the beach"]), overrides)
    else:
        sample = load_config(SampleConfig, args.config, overrides)
        given |= set(SAMPLING_FIELDS)
    dataclasses.replace(sample, prompt=sample.prompt or ["prompt"]).check()
    edit_file = args.edit_config or (MINI_EDIT if sample.pretrained == BUNDLED else None)
    edit = EditConfig() if edit_file is None else load_config(EditConfig, edit_file, [])
    return Command(sample, edit, edit_file is not None, frozenset(given), args)


def load_service(command: Command) -> "ClipService":
    """The model of a command, with configs that have its defaults where nothing else was given. Raises
    UserError."""
    from fyp_jax.demo.service import ClipService
    from fyp_jax.pipeline.loading import load_components
    from fyp_jax.pipeline.pipeline import FollowYourPosePipeline

    sample, edit = command.sample, command.edit
    pipeline = FollowYourPosePipeline(*load_components(sample))
    own = {name: getattr(pipeline.defaults, name) for name in SAMPLING_FIELDS if name not in command.given}
    sample = dataclasses.replace(sample, **own)
    pipeline.programs.check(sample)
    edit = dataclasses.replace(edit, **{name: getattr(sample, name) for name in MODEL_FIELDS})
    if not command.has_edit_config:
        # The model's own size and steps, for a clip that is still to come.
        names = (
            "height",
            "width",
            "num_inference_steps",
            "guidance_scale",
            "pose_guidance",
            "noise_correlation",
        )
        edit = dataclasses.replace(edit, **{name: getattr(sample, name) for name in names})
    return ClipService(pipeline, sample, edit, film_options(command.args))


def film_options(args: argparse.Namespace) -> "FilmOptions | None":
    """How poses are found in films; None without the extra [pose].

    Raises UserError where options are given that need it.
    """
    from fyp_jax.pipeline.film_poses import FilmOptions

    options = FilmOptions(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(FilmOptions)}
    )
    if all(importlib.util.find_spec(name) for name in ("rtmlib", "onnxruntime")):
        return options
    if options != FilmOptions():
        raise UserError("options for poses from a film need the extra [pose]: pip install 'fyp_jax[pose]'")
    return None


def about(config: SampleConfig) -> str:
    """What the page says of its model, as Markdown."""
    from fyp_jax.synthetic.looks import NAMED, OPEN
    from fyp_jax.synthetic.places import PLACES
    from fyp_jax.synthetic.styles import STYLES

    name = config.pretrained.replace("`", "") + (f" with {config.checkpoint}" if config.checkpoint else "")
    lines = [f"Model: `{name}`."]
    if config.pretrained == BUNDLED and config.checkpoint is None and not config.random_init:
        words = {"characters": [*NAMED, *OPEN], "places": [text for text, _ in PLACES.values()]}
        words["styles"] = [style.words for style in STYLES.values() if style.words]
        lines.append(ABOUT_MINI.format(**{key: ", ".join(value) for key, value in words.items()}))
    if config.random_init:
        lines.append(RANDOM_WEIGHTS)
    return " ".join(lines)


def check_extra() -> None:
    """Raise UserError without the extra [demo]."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs the extra [demo]: pip install 'fyp_jax[demo]'")


def run(argv: Sequence[str]) -> None:
    """Serve the page until Ctrl-C or SIGTERM. Raises UserError."""
    command = parse(list(argv))
    check_extra()
    # These imports take seconds, so they come after the arguments are known to be good.
    from fyp_jax.compilation_cache import enable_compilation_cache
    from fyp_jax.demo.server import check_address, serve

    args = command.args
    check_address(args.host, args.port)
    enable_compilation_cache()
    service = load_service(command)
    ended = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
    text = about(service.sample_config)
    with serve(service, text, host=args.host, port=args.port, share=args.share) as served:
        print(f"Open {served.url} in a browser. Ctrl-C ends it.", flush=True)
        if args.host not in LOOPBACK:
            print(f"Whoever reaches port {args.port} of this machine can use the page.", flush=True)
        if served.share_url is not None:
            print(f"Whoever knows the address {served.share_url} can use the page.", flush=True)
        ended.wait()


def main() -> None:
    """Run scripts/demo.py on the arguments of this process. Raises UserError."""
    run(sys.argv[1:])


def console() -> None:
    """The command fyp-demo, and scripts/demo.py."""
    run_console(main)
