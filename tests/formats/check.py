"""Reads what `vitag convert` writes with the tools that it is for.

    python check.py VITAG ANNOTATIONS

`make formats` runs it with the packages of requirements.txt. It ends with an error where a tool does not see the words,
tags and entities of the annotations.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import conllu
import pyarrow.parquet
import spacy
from label_studio_sdk.label_interface import LabelInterface

INTERFACE = """
<View><Labels name="label" toName="text"><Label value="PER"/><Label value="LOC"/><Label value="ORG"/></Labels>
<Text name="text" value="$text"/></View>
"""


def convert(vitag, source, kind, folder):
    target = folder / kind
    subprocess.run([vitag, "convert", "--to", kind, source, "--output", target], check=True)
    return target


def entities(annotation):
    return [(e["start"], e["end"], e["label"]) for e in annotation["entities"]]


def words(annotation):
    return [(" ".join(t["text"].split()), t.get("pos", "_")) for t in annotation["tokens"]]


def of_conllu(annotations, path):
    sentences = conllu.parse(path.read_text())
    seen = [(token["form"], token["upos"]) for sentence in sentences for token in sentence]
    assert seen == [word for annotation in annotations for word in words(annotation)]
    begun = sum((token["misc"] or {}).get("NER", "O").startswith("B-") for s in sentences for token in s)
    assert begun == sum(len(annotation["entities"]) for annotation in annotations)
    assert len(sentences) == sum(len(annotation["sentences"]) for annotation in annotations)


def of_spacy(annotations, path):
    vocabulary = spacy.blank("xx").vocab
    for annotation, line in zip(annotations, path.read_text().splitlines(), strict=True):
        doc = spacy.tokens.Doc(vocabulary).from_json(json.loads(line))
        assert doc.text == annotation["text"]
        assert [(e.start_char, e.end_char, e.label_) for e in doc.ents] == entities(annotation)
        seen = [(" ".join(token.text.split()), token.tag_) for token in doc if not token.is_space]
        assert seen == words(annotation)
        assert len(list(doc.sents)) == len(annotation["sentences"])


def of_label_studio(annotations, path):
    interface = LabelInterface(INTERFACE)
    for annotation, task in zip(annotations, json.loads(path.read_text()), strict=True):
        assert interface.validate_task({"data": task["data"]}), task
        assert all(interface.validate_prediction(prediction) for prediction in task["predictions"]), task
        values = [region["value"] for region in task["predictions"][0]["result"]]
        assert [(v["start"], v["end"], v["labels"][0]) for v in values] == entities(annotation)
        assert all(annotation["text"][v["start"] : v["end"]] == v["text"] for v in values)


def of_parquet(annotations, path):
    rows = pyarrow.parquet.read_table(path).to_pylist()
    for annotation, row in zip(annotations, rows, strict=True):
        assert (row["text"], row["source"]["topic"]) == (annotation["text"], annotation["source"]["topic"])
        assert entities(row) == entities(annotation)
        assert [(" ".join(t["text"].split()), t["pos"] or "_") for t in row["tokens"]] == words(annotation)


def of_columns(annotations, path, pos):
    """Neither has a reader of its own that is maintained: the reader of seqeval's users is `line.split()`."""
    lines = [line.split() for line in path.read_text().splitlines() if line and not line.startswith("-DOCSTART-")]
    expected = [(word.replace(" ", "_"), tag) for annotation in annotations for word, tag in words(annotation)]
    assert [(line[0], line[1] if pos else tag) for line, (_, tag) in zip(lines, expected, strict=True)] == expected


def of_hugging_face(annotations, path):
    for annotation, line in zip(annotations, path.read_text().splitlines(), strict=True):
        answers = json.loads(line)
        assert [(a["start"], a["end"], a["entity_group"]) for a in answers] == entities(annotation)
        assert all(annotation["text"][a["start"] : a["end"]] == a["word"] for a in answers)


def main(vitag, source):
    annotations = [json.loads(line) for line in Path(source).read_text().splitlines()]
    assert annotations and any(annotation["entities"] for annotation in annotations)
    checks = {
        "conllu": of_conllu,
        "spacy": of_spacy,
        "label-studio": of_label_studio,
        "parquet": of_parquet,
        "conll2": lambda a, p: of_columns(a, p, False),
        "conll4": lambda a, p: of_columns(a, p, True),
        "hugging-face": of_hugging_face,
    }
    with tempfile.TemporaryDirectory() as folder:
        for kind, check in checks.items():
            check(annotations, convert(vitag, source, kind, Path(folder)))
            print(f"{kind}: {len(annotations)} documents as they should be")


main(*sys.argv[1:])
