"""Run the benchmarks one after the other, each in its own process; print one table and write the benchmark file.

    python -m tests.benchmarks.run [--only NAME...] [--rounds 5] [--quick] [--videos FILE...]
        [--output build/bench.json]
    python -m tests.benchmarks.run --markdown          # print the table of that file for a README; measure nothing

``--only`` takes names of figures or scripts and keeps the other entries of the file. With ``--quick``, the file is
``build/bench-quick.json``. If a benchmark fails, the others still run, and the exit code is 1. Do not use the machine
for anything else meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.harness import make_parser, read_entries
from tests.benchmarks.measuring import markdown_table, text_table
from tests.paths import ROOT

# Main figures of each script; a script may report more.
SCRIPTS = {
    "extraction_speed": ("extract_overhead", "extract_fps", "extract_scaling", "extract_rss_mb"),
    "vectors": ("vectors_fps_core", "vectors_vs_mvextractor", "vectors_vs_mvextractor_running", "vectors_vs_decode"),
    "loader": ("loader_clips_core", "loader_vs_online", "loader_vs_jpeg"),
    "peers": ("loader_vs_torchcodec", "loader_vs_decord", "loader_vs_webdataset", "loader_vs_jpeg_folder"),
    "extraction_workers": ("extract_workers_1_fps_core",),
    "shards": ("shard_open_ms", "shard_open_kb", "loader_many_shards", "cold_clip_vs_mapped"),
    "sample_cost": ("sample_gflop",),
    "step_native_vs_paper": ("step_native_vs_paper",),
    "retrieval": ("retrieval_queries_per_s",),
    "growth": ("growth_frame_size", "growth_video_length", "growth_videos"),
}
SCRIPT_TIMEOUT_S = 1800
"""Time limit for one script."""


def choose(only: Sequence[str]) -> list[str]:
    """Return the scripts that measure the given figures, or all scripts if none are given.

    Raises:
        ValueError: unknown figure or script.
    """
    known = {name: script for script, names in SCRIPTS.items() for name in (script, *names)}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"--only: {', '.join(unknown)} is not one of {', '.join(known)}")
    wanted = {known[name] for name in only}
    return [script for script in SCRIPTS if script in wanted or not only]


def run_script(script: str, words: Sequence[str]) -> bool:
    """Run a script and return whether it succeeded."""
    command = [sys.executable, "-m", f"tests.benchmarks.{script}", *words]
    try:
        return subprocess.run(command, cwd=ROOT, check=False, timeout=SCRIPT_TIMEOUT_S).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{script}: stopped after {SCRIPT_TIMEOUT_S} s", file=sys.stderr)
        return False


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="figures or scripts  [default: all]")
    parser.add_argument("--markdown", action="store_true", help="print the table of the benchmark file")
    arguments = parser.parse_args()
    name = "bench-quick.json" if arguments.quick else "bench.json"
    output: Path = (arguments.output or ROOT / "build" / name).absolute()
    try:
        scripts = choose(arguments.only)
        if arguments.markdown:
            print(markdown_table(read_entries(output)))
            return
    except ValueError as error:
        parser.error(str(error))
    # A run of all scripts replaces the file, but only at the end.
    written = output if arguments.only else output.with_name(output.name + ".new")
    if not arguments.only:
        written.unlink(missing_ok=True)
    words = ["--output", str(written), *(["--quick"] if arguments.quick else [])]
    words += [] if arguments.rounds is None else ["--rounds", str(arguments.rounds)]
    words += ["--videos", *(str(video.absolute()) for video in arguments.videos)] if arguments.videos else []
    start, failed = time.monotonic(), []
    for script in scripts:
        print(f"== {script}", flush=True)
        if not run_script(script, words):
            failed.append(script)
    outcome = "nothing measured"
    if written.is_file():
        written.replace(output)
        print(f"\n{text_table(read_entries(output))}")
        if len(failed) < len(scripts):
            outcome = f"written to {output}"
    print(f"\n{(time.monotonic() - start) / 60:.1f} min; {outcome}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
