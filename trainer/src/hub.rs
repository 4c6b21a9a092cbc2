//! Checkpoints of Hugging Face, to an encoder directory and back: BERT and ELECTRA in safetensors.
//!
//! The embedding of the first segment is folded into those of the positions, as there is no second one here; on the way
//! back the segments are zero. Rows of the word embeddings that the tokenizer has no piece for are left out.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::tensor::{Dtype, TensorView};
use tch::{Kind, Tensor};

use crate::checkpoint::{self, Checkpoint, Description, TOKENIZER};
use crate::files;
use crate::model::Encoder;

mod config;
mod names;
mod tokenizer;

use config::Config;
use names::{DISCRIMINATOR, GENERATOR, Head, MLM, MLM_BIAS, POSITION, SEGMENT, WORD};
pub use tokenizer::read as tokenizer;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// Reads a checkpoint of Hugging Face: `config.json`, `model.safetensors` (f32, f16 or bf16) and `tokenizer.json` or
/// `vocab.txt`. Heads of pretraining come along.
///
/// # Errors
/// When a file is missing or malformed, the config asks for what our encoder does not compute, or a tensor is missing
/// or has another shape; the message names file, setting or tensor.
pub fn import(dir: &Path) -> Result<Checkpoint> {
    let path = dir.join(CONFIG);
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let config: Config = serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
    config.check().with_context(|| path.display().to_string())?;
    let tokenizer = tokenizer::in_dir(dir)?;
    let pieces = checkpoint::pieces(&tokenizer).context(TOKENIZER)?;
    let tensors = Weights::read(dir)?.encoder(&config, pieces)?;
    let filled_in = tensors.iter().any(|(name, _)| name == MLM_BIAS);
    let kind = if config.is_electra() && !filled_in { checkpoint::Kind::Electra } else { checkpoint::Kind::Bert };
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let origin = format!("imported from {name}, a checkpoint of Hugging Face");
    Ok(Checkpoint {
        description: Description { kind, vocabulary: pieces, sizes: config.sizes(), origin },
        tensors,
        tokenizer,
    })
}

/// The tensors of a checkpoint in f32, by their names without that of the model.
struct Weights(HashMap<String, Tensor>);

impl Weights {
    fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(WEIGHTS);
        if !path.exists() {
            bail!("{} has no {WEIGHTS}: save it with `save_pretrained(…, safe_serialization=True)`", dir.display());
        }
        let tensors = Tensor::read_safetensors(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let own = |name: &str| {
            let name = name.strip_prefix("bert.").or_else(|| name.strip_prefix("electra.")).unwrap_or(name);
            // As TensorFlow called them, and some old checkpoints still do.
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        };
        Ok(Self(tensors.into_iter().map(|(name, tensor)| (own(&name), tensor.to_kind(Kind::Float))).collect()))
    }

    /// A tensor of this shape; of a longer one the first rows, where it has a row a piece.
    fn take(&self, name: &str, shape: &[i64], by_piece: bool) -> Result<Tensor> {
        let tensor = self.0.get(name).with_context(|| format!("{WEIGHTS} lacks {name:?}"))?;
        let found = tensor.size();
        let rows = by_piece && found.len() == shape.len() && found.first() >= shape.first();
        let fits = if rows { found[1..] == shape[1..] } else { found == shape };
        ensure!(fits, "{WEIGHTS}: {name:?} has shape {found:?}, {CONFIG} and {TOKENIZER} ask for {shape:?}");
        Ok(if rows { tensor.narrow(0, 0, shape[0]).contiguous() } else { tensor.shallow_clone() })
    }

    fn encoder(&self, config: &Config, pieces: usize) -> Result<Vec<(String, Tensor)>> {
        let sizes = config.sizes();
        sizes.validate(CONFIG)?;
        let mut tensors = Vec::new();
        for (ours, shape) in Encoder::shapes(&sizes, pieces as i64) {
            let theirs = names::encoder(&ours);
            let part = [&[shape[0] / theirs.len() as i64], &shape[1..]].concat();
            let parts: Vec<Tensor> =
                theirs.iter().map(|name| self.take(name, &part, name == WORD)).collect::<Result<_>>()?;
            tensors.push((ours, Tensor::cat(&parts, 0)));
        }
        let segments = self.take(SEGMENT, &[config.type_vocab_size, sizes.embedding], false)?;
        let (_, positions) =
            tensors.iter_mut().find(|(name, _)| names::encoder(name) == [POSITION]).context(POSITION)?;
        *positions = &*positions + segments.get(0);
        for head in [MLM, GENERATOR, DISCRIMINATOR] {
            if head.is_among(self.0.keys().map(String::as_str)) {
                ensure!(config.tie_word_embeddings, "{CONFIG}: tie_word_embeddings is false, expected true");
                tensors.extend(self.head(&head, pieces)?);
            }
        }
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(tensors)
    }

    fn head(&self, head: &Head, pieces: usize) -> Result<Vec<(String, Tensor)>> {
        let tensor = |&(ours, theirs): &(&str, &str)| {
            let shape = self.0.get(theirs).with_context(|| format!("{WEIGHTS} lacks {theirs:?}"))?.size();
            let by_piece = ours == MLM_BIAS;
            let shape = if by_piece { vec![pieces as i64] } else { shape };
            Ok((ours.to_owned(), self.take(theirs, &shape, by_piece)?))
        };
        head.tensors.iter().map(tensor).collect()
    }
}

/// Writes an encoder as a checkpoint of Hugging Face, in f32: BERT, or ELECTRA where it was pretrained as such or its
/// embeddings are narrower than its layers. The head of pretraining comes along; ELECTRA's generator does not.
///
/// # Errors
/// When it cannot be written.
pub fn export(checkpoint: &Checkpoint, out: &Path) -> Result<()> {
    let Checkpoint { description, tensors, tokenizer } = checkpoint;
    let parsed = tokenizers::Tokenizer::from_bytes(tokenizer).map_err(|e| anyhow!("{TOKENIZER}: {e}"))?;
    let padding = parsed.token_to_id("[PAD]").or_else(|| parsed.token_to_id("<pad>"));
    let mut config = Config::new(description, "", padding);
    let (model, heads) = match config.is_electra() {
        true => ("electra", [DISCRIMINATOR, GENERATOR]),
        false => ("bert", [MLM, DISCRIMINATOR]),
    };
    let has = |head: &&Head| tensors.iter().any(|(name, _)| name == head.tensors[0].0);
    let head = heads.iter().find(has);
    let plain = if config.is_electra() { "ElectraModel" } else { "BertModel" };
    config.architectures = vec![head.map_or(plain, |head| head.architecture).to_owned()];
    let weights = weights(checkpoint, model, head, config.type_vocab_size);
    files::replace_dir(out, |dir| {
        write_weights(&dir.join(WEIGHTS), &weights)?;
        files::write_json(&dir.join(CONFIG), &config)?;
        files::write_json(&dir.join(tokenizer::SETTINGS), &tokenizer::settings(&parsed, description.sizes.max_length))?;
        Ok(fs::write(dir.join(TOKENIZER), tokenizer)?)
    })
}

/// The tensors under the names of Hugging Face.
fn weights(checkpoint: &Checkpoint, model: &str, head: Option<&Head>, segments: i64) -> Vec<(String, Tensor)> {
    let Description { sizes, vocabulary, .. } = &checkpoint.description;
    let find = |ours: &str| checkpoint.tensors.iter().find(|(name, _)| name == ours).map(|(_, tensor)| tensor);
    let mut weights = Vec::new();
    for (ours, _) in Encoder::shapes(sizes, *vocabulary as i64) {
        let theirs = names::encoder(&ours);
        let parts = find(&ours).map(|tensor| tensor.chunk(theirs.len() as i64, 0)).unwrap_or_default();
        weights.extend(theirs.iter().map(|name| format!("{model}.{name}")).zip(parts));
    }
    let options = (Kind::Float, tch::Device::Cpu);
    weights.push((format!("{model}.{SEGMENT}"), Tensor::zeros([segments, sizes.embedding], options)));
    let head = head.map_or(&[][..], |head| head.tensors);
    weights.extend(head.iter().filter_map(|(ours, theirs)| Some(((*theirs).to_owned(), find(ours)?.shallow_clone()))));
    weights
}

/// Not by tch, which leaves out the metadata that transformers asks for.
fn write_weights(path: &Path, weights: &[(String, Tensor)]) -> Result<()> {
    let bytes = |(name, tensor): &(String, Tensor)| {
        let values = Vec::<f32>::try_from(tensor.to_kind(Kind::Float).contiguous().view([-1]))?;
        let shape = tensor.size().iter().map(|&n| n as usize).collect::<Vec<_>>();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok((name.clone(), shape, bytes))
    };
    let data: Vec<_> = weights.iter().map(bytes).collect::<Result<_>>()?;
    let views = data.iter().map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
    let views: Vec<_> = views.collect::<Result<_>>()?;
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize_to_file(views, &Some(format), path)?)
}
