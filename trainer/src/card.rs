//! The texts beside a model: its card with the header that Hugging Face reads, and its licence.

use std::fmt::Write;

use vitag::manifest::{Manifest, Task};

use crate::checkpoint::Description;
use crate::evaluate::{self, Report};
use crate::export::{self, Agreement};

/// `README.md`.
pub fn readme(manifest: &Manifest, encoder: &Description, report: &Report, agreement: &[Agreement]) -> String {
    let (name, version, licence) = (&manifest.name, &manifest.version, &manifest.licence);
    let sizes = &encoder.sizes;
    let table = evaluate::table(&report.results);
    format!(
        "---
license: {header_licence}
language:
- vi
library_name: onnx
pipeline_tag: token-classification
tags:
- vietnamese
- word-segmentation
- part-of-speech
- named-entity-recognition
- onnx
---

# {name} {version}

Tags raw Vietnamese text syllable by syllable, for vitag. Heads:

{heads}
Encoder: BERT with {layers} layers × {hidden}, {attention} attention heads, feed-forward width {ffn}, embeddings of \
{embedding}, up to {max_length} WordPiece tokens (cased, NFC). Each head reads a learned mix of the embeddings and all \
layers, unless `config.json` says that it reads the last one. The encoder began as: {origin}. Seed {seed}.

## Scores

On test data, in percent, beside a tagger that gives every syllable its most frequent label in the training data and \
every unknown syllable the most frequent label of all:

{table}
Data marked as silver was annotated by a language model under a written guideline, its test parts too: scores on it \
say how well the model follows that annotation.

## Data

{data}
{int8}## Use

`vitag` reads this directory as it is. `model.onnx` is a packed graph: inputs `input_ids`, `position_ids`, \
`pad_index`, `unpad_index`, `lengths` and `word_index`, outputs one row of logits for every syllable or punctuation \
mark. `manifest.json` lists the heads, their labels and the hashes of the files; `golden.json` holds texts with the \
answers expected.

## Limits

Small and trained on little data: newspaper and encyclopaedia sentences in standard spelling. Expect worse on social \
media, speech, dialect and text without tone marks. Names of people and bodies that it has not seen are often missed.

## Licence

{licence}, see `LICENSE`: the data that it was trained on asks for attribution and the same licence.
",
        header_licence = licence.to_lowercase(),
        heads = heads(manifest),
        layers = sizes.layers,
        hidden = sizes.hidden,
        attention = sizes.heads,
        ffn = sizes.ffn,
        embedding = sizes.embedding,
        max_length = sizes.max_length,
        origin = encoder.origin,
        seed = report.seed,
        data = data(manifest),
        int8 = int8(agreement),
    )
}

fn int8(agreement: &[Agreement]) -> String {
    if agreement.is_empty() {
        return String::new();
    }
    let table = export::agreement_table(agreement);
    format!(
        "## int8

`model.int8.onnx` multiplies the matrices of the encoder in 8-bit integers; each row of activations has a scale of its \
own, so that a result depends on its batch mates by rounding alone. On the development data, beside `model.onnx`:

{table}
"
    )
}

fn heads(manifest: &Manifest) -> String {
    let mut out = String::new();
    for head in &manifest.heads {
        let what = match head.task {
            Task::Pos => "words with their part of speech",
            Task::Ner => "named entities",
        };
        let types: Vec<&str> = head.labels.iter().filter_map(|label| label.strip_prefix("B-")).collect();
        writeln!(out, "- `{}`: {what} ({})", head.name, types.join(", ")).expect("writing to a string");
    }
    out
}

fn data(manifest: &Manifest) -> String {
    let mut out = String::new();
    for data in &manifest.training_data {
        writeln!(out, "- {} ({}): {}", data.name, data.licence, data.attribution).expect("writing to a string");
    }
    out
}

/// `LICENSE`.
pub fn licence(manifest: &Manifest) -> String {
    format!(
        "The files of {} {} in this directory are licensed under {}.

They were trained on, and are an adaptation of, the data below, used under the licence named with each; that data \
was changed by computing model weights and a vocabulary from it. The authors of the data endorse neither this model \
nor its use.

{}
{}",
        manifest.name,
        manifest.version,
        manifest.licence,
        data(manifest),
        CC_LINKS,
    )
}

const CC_LINKS: &str = "\
CC-BY-SA-4.0: https://creativecommons.org/licenses/by-sa/4.0/legalcode
CC-BY-SA-3.0: https://creativecommons.org/licenses/by-sa/3.0/legalcode
";
