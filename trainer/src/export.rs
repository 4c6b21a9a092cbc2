//! A run to a model directory that vitag serves: graph, tokenizer, golden answers, manifest, card and licence.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vitag::manifest::{self, FileEntry, GOLDEN, Golden, GoldenCase, GoldenHead, MODEL, Manifest, TOKENIZER, Variant};
use vitag::tags;

use crate::card;
use crate::data::Example;
use crate::evaluate::{self, Part, Report};
use crate::run::Run;
use crate::{files, graph, onnx};

/// Greatest difference that a golden logit may show on another machine or another build of ONNX Runtime.
const TOLERANCE: f32 = 1e-3;

const CONFIG: &str = "config.json";

/// What an export needs beside the run.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Folder of all models; this one goes to `<name>/<version>` in it.
    pub models: &'a Path,
    /// Texts of the golden cases, one a line.
    pub texts: &'a Path,
    /// Commit of the code.
    pub git_commit: Option<&'a str>,
}

/// Writes the model directory and returns its path. The manifest comes last, so a directory that has one is whole.
///
/// # Errors
/// When the run was not evaluated on its test data, or a file cannot be written.
pub fn export(run: &Run, options: Options) -> Result<PathBuf> {
    let settings = &run.config.model;
    let report = Report::read(&run.dir, Part::Test).context("evaluate the run on its test data before the export")?;
    let dir = options.models.join(&settings.name).join(&settings.version);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;

    let heads = heads(run);
    let outputs: Vec<String> = heads.iter().map(|head| head.output.clone()).collect();
    files::write_atomically(&dir.join(MODEL), &graph::build(&run.tagger, Variant::F32, &settings.name, &outputs))?;
    files::write_atomically(&dir.join(TOKENIZER), &fs::read(run.tokenizer_path())?)?;
    files::write_json(&dir.join(CONFIG), &hugging_face_config(run))?;
    let golden = golden(run, options.texts)?;
    files::write_atomically(&dir.join(GOLDEN), &serde_json::to_vec(&golden)?)?;

    let manifest = Manifest {
        schema_version: manifest::SCHEMA_VERSION,
        name: settings.name.clone(),
        version: settings.version.clone(),
        created: OffsetDateTime::now_utc().replace_nanosecond(0)?.format(&Rfc3339)?,
        unit: run.tokenizer.unit(),
        max_length: run.encoder.sizes.max_length,
        opset: onnx::OPSET,
        heads,
        files: [MODEL, TOKENIZER, GOLDEN, CONFIG].into_iter().map(|name| entry(&dir, name)).collect::<Result<_>>()?,
        training_data: settings.data.clone(),
        licence: settings.licence.clone(),
        git_commit: options.git_commit.map(str::to_owned),
    };
    files::write_json(&dir.join("metrics.json"), &report)?;
    files::write_atomically(&dir.join("README.md"), card::readme(&manifest, &run.encoder, &report).as_bytes())?;
    files::write_atomically(&dir.join("LICENSE"), card::licence(&manifest).as_bytes())?;
    files::write_json(&dir.join("manifest.json"), &manifest)?;
    Ok(dir)
}

fn heads(run: &Run) -> Vec<manifest::Head> {
    let head = |(task, labels): (&crate::config::TaskConfig, &tags::Labels)| manifest::Head {
        name: task.name.clone(),
        task: task.kind,
        scheme: labels.scheme(),
        labels: labels.names().to_vec(),
        output: format!("{}_logits", task.name),
    };
    run.config.tasks.iter().zip(&run.labels).map(head).collect()
}

fn entry(dir: &Path, name: &str) -> Result<(String, FileEntry)> {
    let path = dir.join(name);
    let entry = FileEntry { sha256: manifest::sha256_file(&path)?, bytes: path.metadata()?.len() };
    Ok((name.to_owned(), entry))
}

/// The answers of libtorch, which ONNX Runtime must repeat.
fn golden(run: &Run, texts: &Path) -> Result<Golden> {
    let content = fs::read_to_string(texts).with_context(|| format!("cannot read {}", texts.display()))?;
    let lines: Vec<&str> = content.lines().filter(|line| !line.trim().is_empty()).collect();
    ensure!(!lines.is_empty(), "{}: the file holds no text", texts.display());
    let example = |text: &&str| Ok(Example { tokens: run.tokenizer.tokenize(text, None)?, labels: Vec::new() });
    let examples: Vec<Example> = lines.iter().map(example).collect::<Result<_>>()?;
    let mut cases: Vec<GoldenCase> =
        lines.iter().map(|&text| GoldenCase { text: text.to_owned(), heads: BTreeMap::new() }).collect();
    for (i, (task, labels)) in run.config.tasks.iter().zip(&run.labels).enumerate() {
        let windows = evaluate::window_logits(run, i, &examples);
        for ((case, example), windows) in cases.iter_mut().zip(&examples).zip(&windows) {
            let logits = tags::stitch(&example.tokens, windows, labels.count());
            let path = labels.best_by_sentence(&example.tokens.sentences, &logits);
            let tags = path.iter().map(|&label| labels.names()[label].clone()).collect();
            let logits = logits.chunks_exact(labels.count()).map(<[f32]>::to_vec).collect();
            case.heads.insert(task.name.clone(), GoldenHead { tags, logits });
        }
    }
    Ok(Golden { tolerance: TOLERANCE, cases })
}

/// `config.json` in the keys of Hugging Face's BERT, with the labels of every head.
fn hugging_face_config(run: &Run) -> Value {
    let encoder = &run.encoder.sizes;
    let head = |(task, labels): (&crate::config::TaskConfig, &tags::Labels)| {
        let names = labels.names().iter().enumerate();
        let id2label: serde_json::Map<_, _> = names.clone().map(|(i, name)| (i.to_string(), json!(name))).collect();
        let label2id: serde_json::Map<_, _> = names.map(|(i, name)| (name.clone(), json!(i))).collect();
        (task.name.clone(), json!({"layers": task.head, "id2label": id2label, "label2id": label2id}))
    };
    let heads: serde_json::Map<_, _> = run.config.tasks.iter().zip(&run.labels).map(head).collect();
    json!({
        "model_type": run.encoder.kind,
        "vocab_size": run.encoder.vocabulary,
        "embedding_size": encoder.embedding,
        "hidden_size": encoder.hidden,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.ffn,
        "hidden_act": "gelu",
        "max_position_embeddings": encoder.max_length,
        "layer_norm_eps": encoder.norm_epsilon,
        "position_embedding_type": "absolute",
        "pad_token_id": 0,
        "heads": heads,
    })
}
