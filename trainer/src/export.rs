//! A run to a model directory that vitag serves: graph, tokenizer, golden answers, manifest, card and licence.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vitag::manifest::{
    self, FileEntry, GOLDEN, GOLDEN_INT8, Golden, GoldenCase, GoldenHead, MODEL, MODEL_INT8, Manifest, TOKENIZER,
    Variant,
};
use vitag::tags;

use crate::card;
use crate::data::Example;
use crate::evaluate::{self, Part, Report};
use crate::run::Run;
use crate::{files, graph, onnx};

mod int8;

pub use int8::{Agreement, Int8, agreement_table};

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
    /// Whether the model gets a graph in int8 too, and at what price.
    pub int8: Option<Int8<'a>>,
}

/// A model directory, and how its graphs compare where it has two.
#[derive(Debug)]
pub struct Exported {
    /// The directory.
    pub dir: PathBuf,
    /// int8 beside f32, for each head.
    pub agreement: Vec<Agreement>,
}

/// Writes the model directory, whole or not at all, in the place of one that is there.
///
/// # Errors
/// When the run was not evaluated on its test data, a file cannot be written, or int8 loses more than is allowed.
pub fn export(run: &Run, options: Options) -> Result<Exported> {
    let settings = &run.config.model;
    let report = Report::read(&run.dir, Part::Test).context("evaluate the run on its test data before the export")?;
    let dir = options.models.join(&settings.name).join(&settings.version);
    fs::create_dir_all(options.models.join(&settings.name))
        .with_context(|| format!("cannot make {}", dir.display()))?;
    let mut agreement = Vec::new();
    files::replace_dir(&dir, |dir| {
        agreement = fill(run, &options, &report, dir)?;
        Ok(())
    })?;
    Ok(Exported { dir, agreement })
}

fn fill(run: &Run, options: &Options, report: &Report, dir: &Path) -> Result<Vec<Agreement>> {
    let cases = Cases::read(run, options.texts)?;
    write_graph(run, Variant::F32, dir)?;
    fs::write(dir.join(TOKENIZER), fs::read(run.tokenizer_path())?)?;
    files::write_json(&dir.join(CONFIG), &hugging_face_config(run))?;
    let golden = cases.golden(run, TOLERANCE, |head| evaluate::window_logits(run, head, &cases.examples));
    write_golden(dir, Variant::F32, &golden)?;

    let mut manifest = manifest(run, options);
    let mut names = vec![MODEL, TOKENIZER, GOLDEN, CONFIG];
    let mut agreement = Vec::new();
    if let Some(int8) = &options.int8 {
        agreement = int8.write(run, &manifest, &cases, dir)?;
        names.extend([MODEL_INT8, GOLDEN_INT8]);
    }
    manifest.files = names.into_iter().map(|name| entry(dir, name)).collect::<Result<_>>()?;
    files::write_json(&dir.join("metrics.json"), report)?;
    let card = card::readme(&manifest, &run.encoder, report, &agreement);
    fs::write(dir.join("README.md"), card)?;
    fs::write(dir.join("LICENSE"), card::licence(&manifest))?;
    files::write_json(&dir.join("manifest.json"), &manifest)?;
    Ok(agreement)
}

fn write_graph(run: &Run, variant: Variant, dir: &Path) -> Result<()> {
    let outputs: Vec<String> = heads(run).into_iter().map(|head| head.output).collect();
    Ok(fs::write(dir.join(variant.graph()), graph::build(&run.tagger, variant, &run.config.model.name, &outputs))?)
}

fn write_golden(dir: &Path, variant: Variant, golden: &Golden) -> Result<()> {
    Ok(fs::write(dir.join(variant.golden()), serde_json::to_vec(golden)?)?)
}

/// The manifest, before the files.
fn manifest(run: &Run, options: &Options) -> Manifest {
    let settings = &run.config.model;
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("zero is a nanosecond");
    Manifest {
        schema_version: manifest::SCHEMA_VERSION,
        name: settings.name.clone(),
        version: settings.version.clone(),
        created: now.format(&Rfc3339).expect("this year has four digits"),
        unit: run.tokenizer.unit(),
        max_length: run.encoder.sizes.max_length,
        opset: onnx::OPSET,
        heads: heads(run),
        files: BTreeMap::new(),
        training_data: settings.data.clone(),
        licence: settings.licence.clone(),
        git_commit: options.git_commit.map(str::to_owned),
    }
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

/// The texts of the golden cases.
struct Cases {
    texts: Vec<String>,
    examples: Vec<Example>,
}

impl Cases {
    fn read(run: &Run, path: &Path) -> Result<Self> {
        let content = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let texts: Vec<String> = content.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
        ensure!(!texts.is_empty(), "{}: the file holds no text", path.display());
        let example = |text: &String| Ok(Example { tokens: run.tokenizer.tokenize(text, None)?, labels: Vec::new() });
        let examples = texts.iter().map(example).collect::<Result<_>>()?;
        Ok(Self { texts, examples })
    }

    /// The answers that a graph must repeat; `logits` gives those of a head for every window of every case.
    fn golden(&self, run: &Run, tolerance: f32, logits: impl Fn(usize) -> Vec<Vec<Vec<f32>>>) -> Golden {
        let case = |text: &String| GoldenCase { text: text.clone(), heads: BTreeMap::new() };
        let mut cases: Vec<GoldenCase> = self.texts.iter().map(case).collect();
        for (i, (task, labels)) in run.config.tasks.iter().zip(&run.labels).enumerate() {
            for ((case, example), windows) in cases.iter_mut().zip(&self.examples).zip(logits(i)) {
                let logits = tags::stitch(&example.tokens, &windows, labels.count());
                let path = labels.best_by_sentence(&example.tokens.sentences, &logits);
                let tags = path.iter().map(|&label| labels.names()[label].clone()).collect();
                let logits = logits.chunks_exact(labels.count()).map(<[f32]>::to_vec).collect();
                case.heads.insert(task.name.clone(), GoldenHead { tags, logits });
            }
        }
        Golden { tolerance, cases }
    }
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
        "pad_token_id": run.tokenizer.padding(),
        "heads": heads,
    })
}
