//! vitag-trainer: trains, scores and exports the models that vitag serves.
//!
//! # Layout
//! 1. [`config`]: the settings of a run; [`clean`]: raw text to training text; [`vocab`]: a WordPiece vocabulary from it.
//! 2. [`data`]: corpora to labelled units and windows, cut by the worker's own tokenizer.
//! 3. [`model`]: the encoder and its heads; [`checkpoint`]: an encoder on disk; [`hub`]: those of Hugging Face.
//! 4. [`shards`]: a tokenised corpus; [`masking`]: its words hidden; [`pretrain`]: an encoder learns from it, and
//!    [`metrics`] is what it tells of that, with [`curves`] and [`events`].
//! 5. [`fit`]: the loop, with [`optim`]; [`finetune`] gives it a model and labelled data. [`run`] is what it leaves.
//! 6. [`evaluate`]: scores, beside those of a baseline.
//! 7. [`paper`]: many runs, and the tables that the paper has of them.
//! 8. [`export`]: the model directory, with [`onnx`] that writes graphs, [`graph`] that writes this model as one, and
//!    [`card`] that writes about it.

pub mod card;
pub mod checkpoint;
pub mod clean;
pub mod config;
pub mod curves;
pub mod data;
pub mod evaluate;
pub mod events;
pub mod export;
pub mod files;
pub mod finetune;
pub mod fit;
pub mod graph;
pub mod hub;
mod input;
pub mod masking;
pub mod metrics;
pub mod model;
pub mod onnx;
pub mod optim;
pub mod paper;
pub mod pretrain;
pub mod run;
pub mod shards;
pub mod vocab;
