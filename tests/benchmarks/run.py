"""Runs the benchmarks one after the other, each in a process of its own; prints one table, keeps it in a file.

    python -m tests.benchmarks.run [--only NAME...] [--rounds 5] [--quick] [--videos FILE...]
        [--output build/bench.json]
    python -m tests.benchmarks.run --markdown          # the table of that file, for README.md; measures nothing

``--only`` takes names of figures or of scripts, and leaves the other entries of the file as they are. With ``--quick``
the file is ``build/bench-quick.json``. A benchmark that fails does not keep the others from running; the exit code is
then 1. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.measuring import markdown_table, plain_table
from tests.benchmarks.subject import options, read_entries
from tests.paths import ROOT

# The figures that are promised, by the script that measures them. Scripts may give more.
SCRIPTS = {
    "extraction_speed": ("extract_overhead", "extract_fps", "extract_scaling", "extract_rss_mb"),
    "vectors": (
        *("vectors_fps_core", "vectors_vs_mvextractor", "vectors_vs_mvextractor_running", "vectors_vs_decode"),
    ),
    "loader": ("loader_clips_core", "loader_vs_online", "loader_vs_jpeg"),
    "sample_cost": ("sample_gflop",),
    "step_native_vs_paper": ("step_native_vs_paper",),
    "retrieval": ("retrieval_queries_per_s",),
    "growth": ("growth_frame_size", "growth_video_length", "growth_videos"),
}
SCRIPT_SECONDS = 1800
"""How long a script may take; one that hangs is ended."""


def choose(only: Sequence[str]) -> list[str]:
    """The scripts that give the figures asked for.

    Raises:
        ValueError: no such figure or script.
    """
    known = {name: script for script, names in SCRIPTS.items() for name in (script, *names)}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"--only: {', '.join(unknown)} is not one of {', '.join(known)}")
    asked = {known[name] for name in only}
    return [script for script in SCRIPTS if script in asked or not only]


def run_script(script: str, words: Sequence[str]) -> bool:
    """Whether it went well."""
    command = [sys.executable, "-m", f"tests.benchmarks.{script}", *words]
    try:
        return subprocess.run(command, cwd=ROOT, check=False, timeout=SCRIPT_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{script}: ended after {SCRIPT_SECONDS} s", file=sys.stderr)
        return False


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="figures or scripts  [default: all]")
    parser.add_argument("--markdown", action="store_true", help="print the table of the benchmark file")
    asked = parser.parse_args()
    name = "bench-quick.json" if asked.quick else "bench.json"
    output: Path = (asked.output or ROOT / "build" / name).absolute()
    try:
        scripts = choose(asked.only)
        if asked.markdown:
            print(markdown_table(read_entries(output)))
            return
    except ValueError as error:
        parser.error(str(error))
    # A run of all of them replaces the file, but not before it has ended.
    written = output if asked.only else output.with_name(output.name + ".new")
    if not asked.only:
        written.unlink(missing_ok=True)
    words = ["--output", str(written), *(["--quick"] if asked.quick else [])]
    words += [] if asked.rounds is None else ["--rounds", str(asked.rounds)]
    words += ["--videos", *(str(video.absolute()) for video in asked.videos)] if asked.videos else []
    start, failed = time.monotonic(), []
    for script in scripts:
        print(f"== {script}", flush=True)
        if not run_script(script, words):
            failed.append(script)
    told = "nothing measured"
    if written.is_file():
        written.replace(output)
        print(f"\n{plain_table(read_entries(output))}")
        told = "nothing measured" if len(failed) == len(scripts) else f"written to {output}"
    print(f"\n{(time.monotonic() - start) / 60:.1f} min; {told}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
