//! Our names of tensors and those of Hugging Face.

/// Names of a tensor of [`Encoder`](crate::model::Encoder) in BERT and ELECTRA, below the name of the model. Where there
/// are several, ours is theirs one below the other: queries, keys and values.
///
/// # Panics
/// When the encoder has no such tensor.
pub(super) fn encoder(ours: &str) -> Vec<String> {
    let (module, part) = ours.rsplit_once('.').unwrap_or_default();
    let Some((layer, module)) = module.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else {
        return vec![match ours {
            "embeddings.word" => WORD.to_owned(),
            "embeddings.position" => POSITION.to_owned(),
            _ if module == "embeddings.norm" => format!("embeddings.LayerNorm.{part}"),
            _ if module == "embeddings.projection" => format!("embeddings_project.{part}"),
            _ => unreachable!("no tensor of an encoder: {ours}"),
        }];
    };
    let modules: &[&str] = match module {
        "attention.input" => &["attention.self.query", "attention.self.key", "attention.self.value"],
        "attention.output" => &["attention.output.dense"],
        "attention_norm" => &["attention.output.LayerNorm"],
        "ffn_in" => &["intermediate.dense"],
        "ffn_out" => &["output.dense"],
        "ffn_norm" => &["output.LayerNorm"],
        _ => unreachable!("no tensor of an encoder: {ours}"),
    };
    modules.iter().map(|module| format!("encoder.layer.{layer}.{module}.{part}")).collect()
}

pub(super) const WORD: &str = "embeddings.word_embeddings.weight";
pub(super) const POSITION: &str = "embeddings.position_embeddings.weight";
pub(super) const SEGMENT: &str = "embeddings.token_type_embeddings.weight";

/// A head of pretraining: what a model with it is called, and its tensors, ours and theirs.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) architecture: &'static str,
    pub(super) tensors: &'static [(&'static str, &'static str)],
}

impl Head {
    /// Whether one of `names` is a tensor of this head.
    pub(super) fn is_among<'n>(&self, mut names: impl Iterator<Item = &'n str>) -> bool {
        names.any(|name| self.tensors.iter().any(|(_, theirs)| *theirs == name))
    }
}

/// BERT's, for masked words.
pub(super) const MLM: Head = Head {
    architecture: "BertForMaskedLM",
    tensors: &[
        ("mlm.dense.weight", "cls.predictions.transform.dense.weight"),
        ("mlm.dense.bias", "cls.predictions.transform.dense.bias"),
        ("mlm.norm.weight", "cls.predictions.transform.LayerNorm.weight"),
        ("mlm.norm.bias", "cls.predictions.transform.LayerNorm.bias"),
        (MLM_BIAS, "cls.predictions.bias"),
    ],
};

/// ELECTRA's generator, for masked words.
pub(super) const GENERATOR: Head = Head {
    architecture: "ElectraForMaskedLM",
    tensors: &[
        ("mlm.dense.weight", "generator_predictions.dense.weight"),
        ("mlm.dense.bias", "generator_predictions.dense.bias"),
        ("mlm.norm.weight", "generator_predictions.LayerNorm.weight"),
        ("mlm.norm.bias", "generator_predictions.LayerNorm.bias"),
        (MLM_BIAS, "generator_lm_head.bias"),
    ],
};

/// ELECTRA's discriminator, for replaced tokens.
pub(super) const DISCRIMINATOR: Head = Head {
    architecture: "ElectraForPreTraining",
    tensors: &[
        ("discriminator.dense.weight", "discriminator_predictions.dense.weight"),
        ("discriminator.dense.bias", "discriminator_predictions.dense.bias"),
        ("discriminator.output.weight", "discriminator_predictions.dense_prediction.weight"),
        ("discriminator.output.bias", "discriminator_predictions.dense_prediction.bias"),
    ],
};

/// One value a piece.
pub(super) const MLM_BIAS: &str = "mlm.bias";
