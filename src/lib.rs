//! vitag tags Vietnamese text on message streams: a document goes in, the same document comes out with its words,
//! parts of speech and named entities.
//!
//! # Layout
//! Data flows one way, one file a stage:
//!
//! 1. [`source`] reads records from Kafka or files and admits them.
//! 2. [`decode`] finds the text in a message value.
//! 3. [`tokenize`] cuts it into sentences, units and windows of token ids.
//! 4. [`batch`] chooses which windows go to the model together; [`pack`] lays them out without padding.
//! 5. [`infer`] runs the model.
//! 6. [`tags`] turns logits into labels and spans.
//! 7. [`encode`] writes the annotation; [`convert`] writes it in other forms.
//! 8. [`sink`] publishes; [`commit`] says what may be published, and from where to go on.
//!
//! [`record`] is what travels between them, [`pipeline`] the only place that knows them all. [`manifest`] and
//! [`registry`] are the model, [`serving`] says which version of it a record gets, [`rollout`] changes that by what a topic
//! says, [`worker`] puts a worker together from its [`config`], [`cli`] from its arguments. [`admin`] and [`telemetry`]
//! show it from outside; [`dlq`] looks at its dead letters and sends them back; [`backfill`] tags a bounded past,
//! [`mod@bench`] measures it all.
//!
//! Without the feature `worker` the crate is what the trainer shares with it: [`decode`], [`tokenize`], [`pack`],
//! [`tags`], [`manifest`], [`score`], [`record`].

#[cfg(feature = "worker")]
pub mod admin;
#[cfg(feature = "worker")]
pub mod backfill;
#[cfg(feature = "worker")]
pub mod batch;
#[cfg(feature = "worker")]
pub mod bench;
#[cfg(feature = "worker")]
pub mod cache;
#[cfg(feature = "worker")]
pub mod cli;
#[cfg(feature = "worker")]
pub mod commit;
#[cfg(feature = "worker")]
pub mod config;
#[cfg(feature = "worker")]
pub mod convert;
pub mod decode;
#[cfg(feature = "worker")]
pub mod demo;
#[cfg(feature = "worker")]
pub mod dlq;
#[cfg(feature = "worker")]
pub mod encode;
#[cfg(feature = "worker")]
pub mod fault;
#[cfg(feature = "infer")]
pub mod infer;
#[cfg(feature = "worker")]
pub mod kafka;
pub mod manifest;
pub mod pack;
#[cfg(feature = "worker")]
pub mod pipeline;
pub mod record;
#[cfg(feature = "infer")]
pub mod registry;
#[cfg(feature = "worker")]
pub mod rollout;
#[cfg(feature = "worker")]
pub mod schema;
pub mod score;
#[cfg(feature = "worker")]
pub mod serving;
#[cfg(feature = "worker")]
pub mod sink;
#[cfg(feature = "worker")]
pub mod source;
#[cfg(feature = "worker")]
pub mod tag;
pub mod tags;
#[cfg(feature = "worker")]
pub mod telemetry;
pub mod tokenize;
#[cfg(feature = "worker")]
pub mod worker;
