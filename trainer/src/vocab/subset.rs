//! A `tokenizer.json` with a part of its pieces.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value, json};

/// Makes the tokenizer that has only the pieces with the ids `kept`, which are in order: its ids are their places there.
/// All added tokens must be among them.
pub(super) fn of(mut tokenizer: Value, kept: &[u32]) -> Result<Value> {
    let ids: HashMap<u64, usize> = kept.iter().enumerate().map(|(new, &old)| (u64::from(old), new)).collect();
    model(&mut tokenizer["model"], &ids)?;
    for token in tokenizer["added_tokens"].as_array_mut().into_iter().flatten() {
        renumber(&mut token["id"], &ids)?;
    }
    post_processor(&mut tokenizer["post_processor"], &ids)?;
    Ok(tokenizer)
}

fn model(model: &mut Value, ids: &HashMap<u64, usize>) -> Result<()> {
    let kind = model["type"].as_str().unwrap_or_default().to_owned();
    match (&mut model["vocab"], kind.as_str()) {
        (Value::Object(pieces), "WordPiece") => {
            let place = |id: &Value| ids.get(&id.as_u64()?);
            let mut kept: Vec<_> = pieces.iter().filter_map(|(piece, id)| Some((*place(id)?, piece.clone()))).collect();
            kept.sort_unstable();
            *pieces = kept.into_iter().map(|(id, piece)| (piece, json!(id))).collect::<Map<_, _>>();
        }
        (Value::Array(pieces), "Unigram") => {
            let mut id = 0;
            pieces.retain(|_| {
                id += 1;
                ids.contains_key(&(id - 1))
            });
            renumber(&mut model["unk_id"], ids)?;
        }
        _ => bail!("the tokenizer's model is {kind:?}, expected WordPiece or Unigram"),
    }
    Ok(())
}

/// Which gives special tokens by id. Only those that have ids: BERT's, RoBERTa's, templates, and sequences of them.
fn post_processor(processor: &mut Value, ids: &HashMap<u64, usize>) -> Result<()> {
    for end in ["sep", "cls"] {
        if let Some(id) = processor.get_mut(end).and_then(|pair| pair.get_mut(1)) {
            renumber(id, ids)?;
        }
    }
    for token in processor.get_mut("special_tokens").and_then(Value::as_object_mut).into_iter().flatten() {
        for id in token.1["ids"].as_array_mut().into_iter().flatten() {
            renumber(id, ids)?;
        }
    }
    let parts = processor.get_mut("processors").and_then(Value::as_array_mut);
    parts.into_iter().flatten().try_for_each(|part| post_processor(part, ids))
}

fn renumber(id: &mut Value, ids: &HashMap<u64, usize>) -> Result<()> {
    let old = id.as_u64().with_context(|| format!("expected the id of a piece, found {id}"))?;
    *id = json!(ids.get(&old).ok_or_else(|| anyhow!("the special piece {old} is not kept"))?);
    Ok(())
}
