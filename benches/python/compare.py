"""The worker beside the Python tagger, file to file or topic to topic, on the same documents, in runs that take turns.

Fails if words, parts of speech or entities differ; in int8, which rounds by batch, it says how many do. Prints a table
in Markdown.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tagger import GRAPHS

HERE = Path(__file__).parent
PEERS = {"python, arrival order": [], "python, sorted by length": ["--sort"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vitag", default="target/release/vitag", help="the program")
    parser.add_argument("--model", default="models/vi-tagger/0.1.0", help="directory of the model")
    parser.add_argument("--variant", choices=GRAPHS, default="f32", help="which graph vitag runs")
    parser.add_argument("--peer-variant", choices=GRAPHS, help="which graph the peer runs; by default the same")
    parser.add_argument("--mix", default="articles")
    parser.add_argument("--text", help="what the documents are cut from")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--bootstrap", help="a broker: from topic to topic, exactly once, rather than file to file")
    arguments = parser.parse_args()
    arguments.peer_variant = arguments.peer_variant or arguments.variant
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments, folder: Path) -> None:
    documents, graph = folder / "documents.jsonl", folder / "padded.onnx"
    stage = "kafka" if arguments.bootstrap else "pipeline"
    settings = ["--model", arguments.model, "--set", f"model.variant={arguments.variant}"]
    bench = [arguments.vitag, "bench", stage, "--json", *settings, "--mix", arguments.mix]
    bench += ["--documents", str(arguments.documents), "--repeats", "1", "--set", f"lanes.count={arguments.threads}"]
    bench += ["--text", arguments.text] if arguments.text else []
    bench += ["--set", f"kafka.bootstrap_servers={arguments.bootstrap}"] if arguments.bootstrap else []
    run([*bench, "--save-documents", str(documents)])
    run([sys.executable, str(HERE / "padded.py"), f"{arguments.model}/{GRAPHS[arguments.peer_variant]}", str(graph)])

    peer = [sys.executable, str(HERE / "peer.py"), "--model", arguments.model, "--graph", str(graph)]
    peer += ["--documents", str(documents), "--threads", str(arguments.threads)]
    to_file = ["--output", str(folder / "peer.jsonl")]
    to = ["--bootstrap", arguments.bootstrap] if arguments.bootstrap else to_file
    runners = {"vitag": lambda: of_vitag(json.loads(run(bench)))}
    for name, extra in PEERS.items():
        command = [*peer, *to, *extra]
        runners[name] = lambda command=command: of_peer(json.loads(run(command)))
    results = {name: [] for name in runners}
    for repeat in range(arguments.repeats):
        for name in list(runners)[:: -1 if repeat % 2 else 1]:
            results[name].append(runners[name]())
            print(f"{name}: {results[name][-1]}", file=sys.stderr)
    if arguments.bootstrap:
        run([*peer, *to_file])
    is_exact = arguments.variant == arguments.peer_variant == "f32"
    check(run([arguments.vitag, "tag", *settings, str(documents)]), folder / "peer.jsonl", is_exact)
    report(results)


def run(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def of_vitag(report: dict) -> tuple[float, float, float]:
    [stage] = report["stages"]
    keys = ("documents_per_second", "documents_per_cpu_second", "padded_share")
    return tuple((stage[key] or {"median": math.nan})["median"] for key in keys)


def of_peer(report: dict) -> tuple[float, float, float]:
    documents = report["documents"]
    return documents / report["seconds"], documents / report["cpu_seconds"], report["padded_share"]


def check(ours: str, peer: Path, is_exact: bool) -> None:
    """Every word with its part of speech, and every entity, of every document."""
    total, same = 0, 0
    for ours_line, peer_line in zip(ours.splitlines(), peer.read_text().splitlines(), strict=True):
        one, other = json.loads(ours_line), json.loads(peer_line)
        for part, keys in (("tokens", ("start", "end", "pos")), ("entities", ("start", "end", "label"))):
            found = [{tuple(item[key] for key in keys) for item in of[part]} for of in (one, other)]
            if is_exact and found[0] != found[1]:
                sys.exit(f"document {one['id']}: {part} differ: {sorted(found[0] ^ found[1])}")
            total, same = total + len(found[0]), same + len(found[0] & found[1])
    print(f"\nOf {total} words and entities, {same} are the same ({same / total:.2%}).\n")


def report(results: dict) -> None:
    print("| measured | median | least | most |\n|---|---:|---:|---:|")
    ours = results["vitag"]
    for name, runs in results.items():
        row(f"{name}: documents/s", [run[0] for run in runs], 0)
        row(f"{name}: documents/CPU s", [run[1] for run in runs], 0)
        if not math.isnan(runs[0][2]):
            row(f"{name}: padded share", [run[2] for run in runs], 3)
    for name in PEERS:
        for place, what in ((0, ""), (1, ", by processor time")):
            row(f"vitag / {name}{what}", [one[place] / other[place] for one, other in zip(ours, results[name])], 2)


def row(name: str, values: list[float], digits: int) -> None:
    shown = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    print(f"| {name} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
