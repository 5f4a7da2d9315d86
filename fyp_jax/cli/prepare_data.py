"""Turn videos with captions, or images with poses and captions, into records that train.py reads.

Writes a TFDS dataset, OUT/captioned_videos/1.0.0 or OUT/pose_images/1.0.0. Its refused.csv lists the items
that were rejected, with the reasons. If a run is killed, the same command resumes it. The source has one of
five forms, which docs/inputs.md describes:

1. A folder with metadata.csv (or metadata.jsonl), one row per file:
       file_name,text                an image or a video, and its caption
       file_name,text,start_frame    one of several captions of a video, in consecutive rows
       file_name,text,skeleton       an image, and the file of its skeleton image
       file_name,text,keypoints      an image, and JSON or a .json file: 17 COCO joints of [x, y, confidence]
   The first column may also be called video, image, path or file, and the second caption or prompt. CSV is
   UTF-8 with commas.
    python scripts/prepare_data.py videos --source clips --out records
    python scripts/prepare_data.py images --source photos --out records

2. A folder of tars in the layout of WebDataset (KEY.mp4 KEY.txt, or KEY.jpg KEY.skeleton.png KEY.txt), with
   the members in any order:
    python scripts/prepare_data.py images --source laion_pose_tars --out records

3. HDVILA clips and the published captions (part_id, clip_id, frame_id, caption). Clips are PART/CLIP,
   part_PART/CLIP, part_PART/video_clips/CLIP or CLIP, each with or without .mp4:
    python scripts/prepare_data.py videos --source hdvila --captions caption_rm2048_train.csv --out records

4. A folder without metadata, where NAME.txt lies beside NAME.mp4 (or NAME.jpg with NAME.skeleton.png, or with
   keypoints in NAME.json):
    python scripts/prepare_data.py videos --source clips --out records

5. LAION-Human as HumanSD publishes it: mapping_file_training.json, images/ and pose/*.npz, which are read
   without running their pickles:
    python scripts/prepare_data.py images --source Aesthetics_Human --out records

The work is done by processes of this machine, or by Apache Beam (the extra [beam]), with the same result:
    python scripts/prepare_data.py videos --source clips --out records --runner DirectRunner \\
        --direct_num_workers 8 --direct_running_mode multi_processing
Each shard is then the work of one Beam worker, and --out, and a --source that is a folder, have to be paths
that all workers have.

The source may be in a bucket, and whatever else fsspec lists (the extra [buckets]). OUT is a local folder:
    python scripts/prepare_data.py videos --source gs://my-bucket/clips --out records
"""

import argparse
import os

from fyp_jax.cli.runner_arguments import add_runner_argument, local_path, parse_runner
from fyp_jax.console import run_console
from fyp_jax.data.ingest.ingest import ingest
from fyp_jax.data.ingest.remote import source_path
from fyp_jax.errors import printable
from fyp_jax.trees import list_names

KINDS = {"videos": "captioned_videos", "images": "pose_images"}


def main() -> None:
    """Run prepare_data.py on the arguments of this process. Raises UserError."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("what", choices=KINDS, help="videos with captions, or images with poses")
    parser.add_argument(
        "--source", type=source_path, required=True, metavar="DIR", help="folder, or one .tar; also gs://..."
    )
    parser.add_argument(
        "--out", type=local_path, required=True, metavar="DIR", help="folder to write the dataset to"
    )
    parser.add_argument(
        "--captions", type=source_path, metavar="FILE", help="metadata file that is not in the source folder"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help=f"processes of this machine ({os.cpu_count() or 1})"
    )
    add_runner_argument(parser)
    parser.add_argument(
        "--shard-mb", type=int, default=256, metavar="N", help="size of a shard, MB (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset of other data")
    args = parse_runner(parser, None, {"--workers": None})

    report = ingest(
        KINDS[args.what],
        args.source,
        args.out,
        captions=args.captions,
        workers=os.cpu_count() or 1 if args.workers is None else args.workers,
        shard_bytes=args.shard_mb * 10**6,
        overwrite=args.overwrite,
        beam_options=args.beam_options,
    )
    print(
        f"{report.folder}: {report.records} {args.what}, {report.bytes / 1e6:.1f} MB in {report.shards} "
        f"shard{'s' * (report.shards != 1)}" + ("" if report.new else " (already there)")
    )
    if report.rejected:
        print(f"{len(report.rejected)} rejected, listed in {report.folder / 'refused.csv'}:")
        for why, names in report.by_reason():
            print(printable(f"{len(names):6}  {why}: {list_names(names)}"))


def console() -> None:
    """The command fyp-prepare-data, and scripts/prepare_data.py."""
    run_console(main)
