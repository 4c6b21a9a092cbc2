//! The stages of the worker, one by one, on the articles of the demo and the bundled model.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vitag::batch::{BatchOptions, Batcher};
use vitag::decode::{DecodeOptions, Document, decode};
use vitag::encode::{EncodeOptions, annotate, encode, tags};
use vitag::infer::{InferOptions, Logits, Runtime, Session};
use vitag::manifest::Variant;
use vitag::pack::Packed;
use vitag::record::{Partition, Position};
use vitag::registry::Model;
use vitag::serving::DEFAULT_SLOT;
use vitag::tags::stitch;
use vitag::tokenize::{Tokens, Window};

const ARTICLES: &str = include_str!("../src/demo/articles.jsonl");

struct Bench {
    model: Model,
    session: Session,
    documents: Vec<Document>,
    tokens: Vec<Tokens>,
}

impl Bench {
    fn load() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/vi-tagger/0.1.0");
        let model = Model::load(&path, Variant::F32).expect("the bundled model");
        let runtime = Runtime::load(None).expect("ONNX Runtime: run `make setup`");
        let session = model.session(&runtime, &InferOptions::default()).expect("a session");
        let options = DecodeOptions::default();
        let documents: Vec<Document> =
            ARTICLES.lines().map(|line| decode(line.as_bytes(), &options).expect("an article")).collect();
        let tokenize = |document: &Document| model.tokenizer.tokenize(&document.text, None).expect("tokens");
        let tokens = documents.iter().map(tokenize).collect();
        Self { model, session, documents, tokens }
    }

    fn windows(&self) -> Vec<&Window> {
        self.tokens.iter().flat_map(|tokens| &tokens.windows).collect()
    }

    /// The windows in the batches that the batcher makes of them.
    fn batches(&self) -> Vec<Vec<&Window>> {
        let mut batcher = Batcher::new(BatchOptions::default());
        self.windows().into_iter().for_each(|window| batcher.push(window, 0, window.ids.len(), Instant::now()));
        std::iter::from_fn(|| batcher.take()).collect()
    }
}

fn stages(criterion: &mut Criterion) {
    let mut bench = Bench::load();
    let token_count: usize = bench.windows().iter().map(|window| window.ids.len()).sum();
    let answers: Vec<Vec<Logits>> =
        bench.tokens.iter().map(|tokens| bench.session.run(&tokens.windows).expect("logits")).collect();
    let mut group = criterion.benchmark_group("stages");
    group.throughput(Throughput::Elements(token_count as u64));

    let options = DecodeOptions::default();
    group.bench_function("decode", |b| {
        b.iter(|| {
            ARTICLES
                .lines()
                .map(|line| decode(line.as_bytes(), &options).expect("an article").text.len())
                .sum::<usize>()
        });
    });
    group.bench_function("tokenize", |b| {
        let tokenize = |document: &Document| bench.model.tokenizer.tokenize(&document.text, None).expect("tokens");
        b.iter(|| bench.documents.iter().map(|document| tokenize(document).units.len()).sum::<usize>());
    });
    group.bench_function("batch", |b| b.iter(|| black_box(bench.batches().len())));
    let batches: Vec<Vec<Window>> =
        bench.batches().into_iter().map(|batch| batch.into_iter().cloned().collect()).collect();
    group.bench_function("pack", |b| b.iter(|| batches.iter().map(|batch| Packed::new(batch).tokens()).sum::<usize>()));
    group.bench_function("tags", |b| {
        let labels = &bench.model.labels[0];
        b.iter(|| {
            let tag = |(tokens, windows): (&Tokens, &Vec<Logits>)| {
                let head: Vec<&Vec<f32>> = windows.iter().map(|logits| &logits[0]).collect();
                labels.best_by_sentence(&tokens.sentences, &stitch(tokens, &head, labels.count())).len()
            };
            bench.tokens.iter().zip(&answers).map(tag).sum::<usize>()
        });
    });
    let position = Position { partition: Partition { topic: "in".into(), id: 0 }, offset: 0, epoch: 1, slot: 0 };
    group.bench_function("encode", |b| {
        let options = EncodeOptions::default();
        b.iter(|| {
            let write = |((document, tokens), windows): ((&Document, &Tokens), &Vec<Logits>)| {
                let windows: Vec<&Logits> = windows.iter().collect();
                let place = (&position, None);
                let tags = tags(document, tokens, &windows, &bench.model, options.offset_unit);
                let annotation = annotate(document, tags, (DEFAULT_SLOT, &bench.model), place, options.offset_unit);
                encode(&annotation, b"", &options).expect("bytes").len()
            };
            bench.documents.iter().zip(&bench.tokens).zip(&answers).map(write).sum::<usize>()
        });
    });
    group.sample_size(10);
    group.bench_function("infer", |b| {
        b.iter(|| batches.iter().map(|batch| bench.session.run(batch).expect("logits").len()).sum::<usize>());
    });
    group.finish();
}

criterion_group!(benches, stages);
criterion_main!(benches);
