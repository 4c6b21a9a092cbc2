"""The tagger that a careful engineer would write in Python: tokenizers, onnxruntime, numpy; padded batches of 32."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

BATCH = 32
# In the directory of a model.
GRAPHS = {"f32": "model.onnx", "int8": "model.int8.onnx"}


class Head:
    """Labels of a head, and the best sequence of them that BIO allows (Viterbi over a batch of sentences)."""

    def __init__(self, manifest: dict):
        self.name, self.output, self.labels = manifest["name"], manifest["output"], manifest["labels"]
        place = {label: i for i, label in enumerate(self.labels)}
        self.inside = np.array([label.startswith("I-") for label in self.labels])
        # For I-X the labels that may stand before it; for others never read.
        self.begin = np.array([place.get("B-" + label[2:], 0) for label in self.labels])
        self.again = np.arange(len(self.labels))

    def best(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        lengths = np.array([len(row) for row in rows])
        logits = np.zeros((len(rows), lengths.max(), len(self.labels)), np.float32)
        for i, row in enumerate(rows):
            logits[i, : len(row)] = row
        scores = np.where(self.inside, -np.inf, logits[:, 0])
        back = np.zeros(logits.shape, np.int64)
        for t in range(1, logits.shape[1]):
            best = scores.argmax(1)[:, None]
            after_begin = scores[:, self.begin] >= scores
            before = np.where(after_begin, self.begin, self.again)
            source = np.where(self.inside, before, best)
            step = np.take_along_axis(scores, source, 1) + logits[:, t]
            back[:, t] = source
            scores = np.where((t < lengths)[:, None], step, scores)
        paths = np.zeros(logits.shape[:2], np.int64)
        label = scores.argmax(1)
        each = np.arange(len(rows))
        for t in range(logits.shape[1] - 1, -1, -1):
            paths[:, t] = label
            label = np.where(t < lengths, back[each, t, label], label) if t else label
        return [path[:length] for path, length in zip(paths, lengths)]

    def spans(self, path: np.ndarray, units: list) -> list[tuple[int, int, str]]:
        spans, last = [], None
        for label, (start, end) in zip(path, units):
            name = self.labels[label]
            if name == "O":
                last = None
            elif name[0] == "I" and last is not None and spans[-1][2] == name[2:]:
                spans[-1] = (spans[-1][0], end, name[2:])
            else:
                spans.append((start, end, name[2:]))
                last = label
        return spans


class Tagger:
    """A model in its padded form; `sort` puts sequences of like length into a batch."""

    def __init__(self, model: Path, graph: Path, threads: int, sort: bool):
        manifest = json.loads((model / "manifest.json").read_text())
        self.heads = [Head(head) for head in manifest["heads"]]
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.begin, self.end, self.unknown, self.pad = map(
            self.tokenizer.token_to_id, ("[CLS]", "[SEP]", "[UNK]", "[PAD]")
        )
        self.capacity, self.sort = manifest["max_length"] - 2, sort
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # As in the worker: threads that wait do not compute, so processor times can be compared.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.slots = self.tokens = 0

    def tag(self, documents: list[dict]) -> list[dict]:
        """Documents of `text` and `sentences`, each a list of units as [start, end], to words and entities."""
        sentences = [(number, units) for number, d in enumerate(documents) for units in d["sentences"]]
        texts = [[documents[n]["text"][s:e] for s, e in units] for n, units in sentences]
        windows = [
            (i, span, keep, ids, starts)
            for i, encoding in enumerate(self.tokenizer.encode_batch(texts, is_pretokenized=True, add_special_tokens=False))
            for span, keep, ids, starts in self.windows(encoding, len(texts[i]))
        ]
        logits = self.infer(windows)
        rows = [[[] for _ in sentences] for _ in self.heads]
        for (i, span, keep, _, _), answer in zip(windows, logits):
            for of_head, found in zip(rows, answer):
                of_head[i].append(found[keep[0] - span[0] : keep[1] - span[0]])
        results = [{"id": d["id"], "tokens": [], "entities": []} for d in documents]
        for first in range(0, len(sentences), BATCH):
            part = range(first, min(first + BATCH, len(sentences)))
            for head, of_head in zip(self.heads, rows):
                paths = head.best([np.concatenate(of_head[i]) for i in part])
                for i, path in zip(part, paths):
                    number, units = sentences[i]
                    for start, end, label in head.spans(path, units):
                        if head.name == "pos":
                            results[number]["tokens"].append({"start": start, "end": end, "pos": label})
                        else:
                            results[number]["entities"].append({"start": start, "end": end, "label": label})
        return results

    def windows(self, encoding, count: int):
        pieces = [[] for _ in range(count)]
        for piece, word in zip(encoding.ids, encoding.word_ids):
            pieces[word].append(piece)
        pieces = [unit[: self.capacity] or [self.unknown] for unit in pieces]
        for span, keep in split([len(unit) for unit in pieces], self.capacity):
            ids, starts = [self.begin], []
            for unit in pieces[span[0] : span[1]]:
                starts.append(len(ids))
                ids.extend(unit)
            ids.append(self.end)
            yield span, keep, ids, starts

    def infer(self, windows: list) -> list[list[np.ndarray]]:
        order = list(range(len(windows)))
        if self.sort:
            order.sort(key=lambda i: len(windows[i][3]))
        answers = [None] * len(windows)
        for first in range(0, len(order), BATCH):
            part = order[first : first + BATCH]
            lengths = np.array([len(windows[i][3]) for i in part], np.int32)
            width = int(lengths.max())
            ids = np.full((len(part), width), self.pad, np.int64)
            index = []
            for row, i in enumerate(part):
                ids[row, : lengths[row]] = windows[i][3]
                index.extend(row * width + start for start in windows[i][4])
            self.slots += ids.size
            self.tokens += int(lengths.sum())
            feeds = {"input_ids": ids, "lengths": lengths, "word_index": np.array(index, np.int64)}
            found = self.session.run([head.output for head in self.heads], feeds)
            cuts = np.cumsum([len(windows[i][4]) for i in part])[:-1]
            for i, *answer in zip(part, *(np.split(of_head, cuts) for of_head in found)):
                answers[i] = answer
        return answers


def split(sizes: list[int], capacity: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Units to windows that overlap by a quarter; what of each counts is where it has the most context."""
    if sum(sizes) <= capacity:
        return [((0, len(sizes)), (0, len(sizes)))]
    spans, start = [], 0
    while True:
        end = start + max(fitting(sizes[start:], capacity), 1)
        spans.append([start, end])
        if end == len(sizes):
            break
        start = end - fitting(sizes[start + 1 : end][::-1], capacity // 4)
    keeps = [list(span) for span in spans]
    for i in range(1, len(spans)):
        shared = spans[i][0], max(spans[i - 1][1], spans[i][0])
        keeps[i - 1][1] = keeps[i][0] = max(shared[0] + (shared[1] - shared[0]) // 2, keeps[i - 1][0])
    return [(tuple(span), tuple(keep)) for span, keep in zip(spans, keeps)]


def fitting(sizes: list[int], capacity: int) -> int:
    return int((np.cumsum(sizes) <= capacity).sum())
