//! `config.json` of BERT and ELECTRA.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Description, Kind};
use crate::config::Sizes;

/// The settings that decide what an encoder computes, by their names there.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Config {
    pub(super) model_type: String,
    #[serde(default)]
    pub(super) architectures: Vec<String>,
    vocab_size: usize,
    /// Of ELECTRA; BERT's embeddings are as wide as its layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding_size: Option<i64>,
    hidden_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    intermediate_size: i64,
    max_position_embeddings: usize,
    #[serde(default = "epsilon")]
    layer_norm_eps: f64,
    #[serde(default = "activation")]
    hidden_act: String,
    #[serde(default = "positions")]
    position_embedding_type: String,
    #[serde(default = "segments")]
    pub(super) type_vocab_size: i64,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default = "tied")]
    pub(super) tie_word_embeddings: bool,
    #[serde(default)]
    pad_token_id: Option<u32>,
}

fn epsilon() -> f64 {
    1e-12
}

fn activation() -> String {
    "gelu".to_owned()
}

fn positions() -> String {
    "absolute".to_owned()
}

fn segments() -> i64 {
    2
}

fn tied() -> bool {
    true
}

impl Config {
    /// Of an encoder with this architecture and the padding token of its tokenizer.
    pub(super) fn new(description: &Description, architecture: &str, padding: Option<u32>) -> Self {
        let Description { kind, vocabulary, sizes, .. } = description;
        let electra = *kind == Kind::Electra || sizes.embedding != sizes.hidden;
        Self {
            model_type: if electra { "electra" } else { "bert" }.to_owned(),
            architectures: vec![architecture.to_owned()],
            vocab_size: *vocabulary,
            embedding_size: electra.then_some(sizes.embedding),
            hidden_size: sizes.hidden,
            num_hidden_layers: sizes.layers,
            num_attention_heads: sizes.heads,
            intermediate_size: sizes.ffn,
            max_position_embeddings: sizes.max_length,
            layer_norm_eps: sizes.norm_epsilon,
            hidden_act: activation(),
            position_embedding_type: positions(),
            type_vocab_size: segments(),
            is_decoder: false,
            tie_word_embeddings: true,
            pad_token_id: padding,
        }
    }

    /// Refuses what our encoder would compute otherwise.
    pub(super) fn check(&self) -> Result<()> {
        let (kind, activation, positions) = (&self.model_type, &self.hidden_act, &self.position_embedding_type);
        ensure!(["bert", "electra"].contains(&kind.as_str()), "model_type is {kind:?}, expected bert or electra");
        ensure!(activation == "gelu", "hidden_act is {activation:?}, expected gelu");
        ensure!(positions == "absolute", "position_embedding_type is {positions:?}, expected absolute");
        ensure!(!self.is_decoder, "is_decoder is true, expected an encoder");
        ensure!(self.type_vocab_size > 0, "type_vocab_size is {}, expected at least 1", self.type_vocab_size);
        Ok(())
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            max_length: self.max_position_embeddings,
            // ELECTRA's own default, where the setting is left out.
            embedding: self.embedding_size.unwrap_or(if self.is_electra() { 128 } else { self.hidden_size }),
            hidden: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            ffn: self.intermediate_size,
            norm_epsilon: self.layer_norm_eps,
        }
    }

    pub(super) fn is_electra(&self) -> bool {
        self.model_type == "electra"
    }
}
