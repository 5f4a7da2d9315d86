"""Edit a clip: python scripts/edit.py --video FILE --source "a man skiing" --prompt "spider man skiing".

The source prompt says what the clip shows, each prompt what an edit of it shows."""

import dataclasses
import logging
import sys

from tqdm import tqdm

from fyp_jax.cli.sample import field_names, is_override
from fyp_jax.config import load_config, make_parser
from fyp_jax.console import run_console
from fyp_jax.editing.options import keep_background
from fyp_jax.editing.prompt_options import fit_blend_words
from fyp_jax.editing.words import TokenizedPrompt, has_words
from fyp_jax.errors import printable
from fyp_jax.media.clips import bundled_clip
from fyp_jax.pipeline.config import RANDOM_WEIGHTS
from fyp_jax.pipeline.edit_config import EditConfig

log = logging.getLogger(__name__)

DEFAULT_CONFIG = "configs/mini/edit.yaml"


def parse(argv: list[str]) -> EditConfig:
    """The config of a command line. Raises UserError."""
    parser = make_parser(EditConfig, __doc__, DEFAULT_CONFIG)
    add = parser.add_argument
    add("--video", metavar="FILE", help="same as video=FILE: the clip to edit")
    add("--source", metavar="TEXT", help="same as source=TEXT: what the clip shows")
    add("--prompt", nargs="+", action="extend", metavar="TEXT", help="texts; each makes one edit")
    add("--method", metavar="NAME", help="same as edit.method=NAME: fatezero, p2p or generate")
    words = "words of the part that changes, of the source and (if others) of the prompts; the rest is kept"
    add("--keep-background", nargs="+", metavar="WORDS", help=words)
    add("--emphasise", nargs="+", metavar="WORDS=N", help="factors of words of the prompt: 'Van Gogh=5'")
    add("--pose", metavar="FILE", help="same as pose.path=FILE: the edit follows this pose")
    add("--out", metavar="DIR", help="same as output_dir=DIR")
    add("--seed", metavar="N", help="same as seed=N")
    args = parser.parse_intermixed_args(argv)
    # argparse gives these options all words that follow them, a.b=c among them.
    words = args.prompt or [], args.keep_background or []
    (prompts, own), (blend_words, more) = (_without_overrides(x) for x in words)
    factors, others = _without_overrides(args.emphasise or [], prompts)
    overrides = [*args.overrides, *own, *more, *others]
    flags = {"source": args.source, "edit.method": args.method, "pose.path": args.pose}
    flags |= {"video": args.video, "output_dir": args.out, "seed": args.seed}
    if args.method == "generate" and args.video is None:
        flags["video"] = "null"
    overrides += [f"{key}={value}" for key, value in flags.items() if value is not None]
    config = load_config(EditConfig, args.config, overrides)
    config = dataclasses.replace(config, **({"prompt": prompts} if prompts else {}))
    edit = config.edit
    if factors:
        edit = dataclasses.replace(edit, equalizer=factors)
    if blend_words:
        edit = keep_background(edit, blend_words)
    config = dataclasses.replace(config, edit=edit)
    given = {text.partition("=")[0] for text in overrides}
    given |= {"edit.blend_words"} if blend_words else set()
    found = _without_foreign_parts(config, load_config(EditConfig, args.config, []), given)
    found.check()
    if config.edit.blend_words and not found.edit.blend_words:
        log.warning(
            "the config's blend words (%s) are in other prompts, so the background is not kept; "
            "--keep-background WORDS keeps it",
            ", ".join(config.edit.blend_words),
        )
    return found


def _without_overrides(texts: list[str], prompts: list[str] | None = None) -> tuple[list[str], list[str]]:
    """The texts without those that set a field of the config, and these.

    With `prompts` the texts are WORDS=NUMBER: one sets a field if its name is a field's and in no prompt.
    """

    def is_field(text: str) -> bool:
        if prompts is None:
            return is_override(text, EditConfig)
        name = text.partition("=")[0]
        return name in field_names(EditConfig) and not any(
            has_words(TokenizedPrompt(x, (), ()), name) for x in prompts
        )

    return [x for x in texts if not is_field(x)], [x for x in texts if is_field(x)]


def _without_foreign_parts(config: EditConfig, base: EditConfig, given: set[str]) -> EditConfig:
    """The config without what its file says of another clip or of other prompts.

    `base` is the file's config, and `given` are the fields that the command line has set.
    """
    if "source_pose.path" not in given:
        path = config.source_pose.path
        if config.video is None:  # the source is generated; one pose that is given steers it, too
            path = None if "pose.path" in given else path
        elif config.video != base.video and base.video is not None:
            path = config.video if bundled_clip(config.video, ".json") is not None else None
        config = dataclasses.replace(config, source_pose=dataclasses.replace(config.source_pose, path=path))
    config = _with_pose_of_its_frames(config, given)
    if "edit.blend_words" not in given and (config.source, config.prompt) != (base.source, base.prompt):
        edit = fit_blend_words(config.edit, config.source, config.prompt)
        config = dataclasses.replace(config, edit=edit)
    return config


def _with_pose_of_its_frames(config: EditConfig, given: set[str]) -> EditConfig:
    """The config with the poses of those frames of a bundled clip that the command line takes: each frame has
    its own."""
    if config.video is None or config.source_pose.path != config.video:
        return config
    frames = {
        name: getattr(config, f"video_{name}")
        for name in ("stride", "start")
        if f"video_{name}" in given and f"source_pose.{name}" not in given
    }
    return dataclasses.replace(config, source_pose=dataclasses.replace(config.source_pose, **frames))


def main() -> None:
    """Run scripts/edit.py on the arguments of this process. Raises UserError."""
    config = parse(sys.argv[1:])
    if config.random_init:
        print(RANDOM_WEIGHTS)
    # These imports take seconds, so they come after the arguments are known to be good.
    from fyp_jax.compilation_cache import enable_compilation_cache
    from fyp_jax.pipeline.edit_files import edit_to_files

    enable_compilation_cache()
    for clip in edit_to_files(config):
        tqdm.write(printable(str(clip)))


def console() -> None:
    """The command fyp-edit, and scripts/edit.py."""
    run_console(main)
