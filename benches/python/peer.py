"""Times the Python tagger from file to file, and writes what it found, or from topic to topic. Prints a JSON object."""

import argparse
import json
import os
import time
from pathlib import Path

import topics
from tagger import Tagger

# Documents that a consumer takes at once; those that are sorted, are sorted within.
POLL = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of the model")
    parser.add_argument("--graph", type=Path, required=True, help="its graph in padded form, of padded.py")
    parser.add_argument("--documents", type=Path, required=True, help="of vitag bench --save-documents")
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument("--output", type=Path, help="annotations, a line each")
    to.add_argument("--bootstrap", help="a broker, for topics")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sort", action="store_true", help="sort sequences by length")
    arguments = parser.parse_args()

    tagger = Tagger(arguments.model, arguments.graph, arguments.threads, arguments.sort)
    lines = arguments.documents.read_bytes().splitlines()
    tagger.tag([json.loads(line) for line in lines[:64]])
    tagger.slots = tagger.tokens = 0
    if arguments.bootstrap:
        documents, seconds, cpu = topics.run(tagger, lines, arguments.bootstrap, POLL)
    else:
        documents, seconds, cpu = file_to_file(tagger, arguments.documents, arguments.output)
    print(json.dumps({
        "documents": documents,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "padded_share": 1 - tagger.tokens / tagger.slots,
    }))


def file_to_file(tagger: Tagger, source: Path, target: Path) -> tuple[int, float, float]:
    started, cpu = time.perf_counter(), time.process_time()
    lines = source.read_bytes().splitlines()
    with target.open("w") as output:
        for first in range(0, len(lines), POLL):
            write(tagger.tag([json.loads(line) for line in lines[first : first + POLL]]), output)
    return len(lines), time.perf_counter() - started, time.process_time() - cpu


def write(annotations: list[dict], output) -> None:
    for annotation in annotations:
        output.write(json.dumps(annotation, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
