"""Where the time of a packed graph goes: by operator, with SkipLayerNormalization in place of Add and LayerNormalization,
and to its opening, as it is and optimised beforehand. One thread; prints Markdown."""

import argparse
import collections
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from tagger import GRAPHS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/vi-tagger/0.1.0"), help="directory of the model")
    parser.add_argument("--variant", choices=GRAPHS, default="f32")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a sequence")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    graph = arguments.model / GRAPHS[arguments.variant]
    batch = inputs(arguments.sequences, arguments.tokens)
    with tempfile.TemporaryDirectory() as folder:
        by_operator(graph, batch, arguments.runs, Path(folder))
        skip = Path(folder) / "skip.onnx"
        onnx.save(with_skip_norms(onnx.load(graph)), skip)
        compare_runs(graph, skip, batch, arguments)
        compare_openings(graph, Path(folder) / "optimised.onnx", arguments.repeats)


def inputs(sequences: int, tokens: int) -> dict[str, np.ndarray]:
    """A batch without padding, of random token ids; every token but the first and the last begins a unit."""
    count = sequences * tokens
    slots = np.arange(count).reshape(sequences, tokens)
    return {
        "input_ids": np.random.default_rng(1).integers(10, 5000, count),
        "position_ids": np.tile(np.arange(tokens), sequences),
        "pad_index": slots,
        "unpad_index": slots.reshape(-1),
        "lengths": np.full(sequences, tokens, dtype=np.int32),
        "word_index": slots[:, 1:-1].reshape(-1),
    }


def open_session(graph: Path, level=None, save: Path | None = None, profile: Path | None = None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if level is not None:
        options.graph_optimization_level = level
    if save:
        options.optimized_model_filepath = str(save)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def by_operator(graph: Path, batch: dict, runs: int, folder: Path) -> None:
    session = open_session(graph, profile=folder / "profile")
    for _ in range(runs):
        session.run(None, batch)
    events = json.loads(Path(session.end_profiling()).read_text())
    time_of, nodes = collections.Counter(), collections.Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            time_of[event["args"]["op_name"]] += event["dur"]
            nodes[event["args"]["op_name"]] += 1
    tokens, total = len(batch["input_ids"]), sum(time_of.values())
    print(f"{graph}: {total / runs / tokens:.1f} us a token\n\n| operator | nodes | us a token | share |\n|---|---:|---:|---:|")
    for name, microseconds in time_of.most_common():
        a_token = microseconds / runs / tokens
        print(f"| {name} | {nodes[name] // runs} | {a_token:.2f} | {microseconds / total:.1%} |")


def with_skip_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with every LayerNormalization of a sum as one SkipLayerNormalization."""
    made_by = {node.output[0]: node for node in model.graph.node}
    sums = []
    for node in model.graph.node:
        before = made_by.get(node.input[0])
        if node.op_type == "LayerNormalization" and before is not None and before.op_type == "Add":
            epsilon = next(attribute.f for attribute in node.attribute if attribute.name == "epsilon")
            inputs = [*before.input, *node.input[1:]]
            domain = "com.microsoft"
            node.CopyFrom(helper.make_node("SkipLayerNormalization", inputs, node.output, domain=domain, epsilon=epsilon))
            sums.append(before)
    for node in sums:
        model.graph.node.remove(node)
    return model


def compare_runs(graph: Path, other: Path, batch: dict, arguments) -> None:
    sessions = [open_session(graph), open_session(other)]
    times = [[], []]
    for repeat in range(arguments.repeats + 1):
        for number in (0, 1) if repeat % 2 else (1, 0):
            started = time.process_time()
            for _ in range(arguments.runs // 2):
                sessions[number].run(None, batch)
            times[number].append(time.process_time() - started)
    ratios = [skip / plain for plain, skip in zip(*(of[1:] for of in times))]
    print(f"\nwith SkipLayerNormalization: {spread(ratios)} times the processor time")


def compare_openings(graph: Path, optimised: Path, repeats: int) -> None:
    levels = onnxruntime.GraphOptimizationLevel
    open_session(graph, save=optimised)
    plain, saved = [], []
    for _ in range(repeats):
        for path, level, times in ((graph, levels.ORT_ENABLE_ALL, plain), (optimised, levels.ORT_DISABLE_ALL, saved)):
            started = time.perf_counter()
            open_session(path, level)
            times.append(1e3 * (time.perf_counter() - started))
    print(f"opening: {spread(plain)} ms; optimised beforehand: {spread(saved)} ms")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main()
