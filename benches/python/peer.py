"""Times the Python tagger from file to file, and writes what it found. Prints a JSON object."""

import argparse
import json
import os
import time
from pathlib import Path

from tagger import Tagger

# Documents that a consumer takes at once; those that are sorted, are sorted within.
POLL = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of the model")
    parser.add_argument("--graph", type=Path, required=True, help="its graph in padded form, of padded.py")
    parser.add_argument("--documents", type=Path, required=True, help="of vitag bench --save-documents")
    parser.add_argument("--output", type=Path, required=True, help="annotations, a line each")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sort", action="store_true", help="sort sequences by length")
    arguments = parser.parse_args()

    tagger = Tagger(arguments.model, arguments.graph, arguments.threads, arguments.sort)
    lines = arguments.documents.read_bytes().splitlines()
    tagger.tag([json.loads(line) for line in lines[:64]])
    tagger.slots = tagger.tokens = 0
    started, cpu = time.perf_counter(), time.process_time()
    with arguments.documents.open("rb") as source, arguments.output.open("w") as output:
        documents = []
        for line in source:
            documents.append(json.loads(line))
            if len(documents) == POLL:
                write(tagger.tag(documents), output)
                documents = []
        write(tagger.tag(documents), output)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({
        "documents": len(lines),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "padded_share": 1 - tagger.tokens / tagger.slots,
    }))


def write(annotations: list[dict], output) -> None:
    for annotation in annotations:
        output.write(json.dumps(annotation, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
