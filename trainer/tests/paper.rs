//! A matrix of tiny runs: trained once, gone on with, timed, and written as tables.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vitag_trainer::evaluate::{Part, Report};
use vitag_trainer::finetune::{self, Paths};
use vitag_trainer::paper::{self, Decoding, Matrix, Outcome};
use vitag_trainer::{fit, run};

/// Two tasks, two heads, and two encoders that differ in their dropout alone.
fn matrix(tokenizer: &Path, learning_rate: f64) -> Matrix {
    let encoder = |name: &str, dropout: f64| {
        format!(
            r#"
[[encoder]]
name = "{name}"
about = "two layers of 32"
tokenizer = {tokenizer:?}
[encoder.start]
dropout = {dropout}
sizes = {{ max_length = 64, embedding = 32, hidden = 32, layers = 2, heads = 4, ffn = 64 }}
"#
        )
    };
    let text = format!(
        r#"
title = "Tiny results"
about = "Written for the tests."
seeds = [1, 2]
model = {{ name = "tiny", version = "0.0.1", licence = "CC0-1.0", data = [] }}
[train]
epochs = 2
patience = 5
batch = 8
learning_rate = {learning_rate}
warmup = 0.1
weight_decay = 0.0
clip = 1.0
unit_dropout = 0.0
{}{}
[[task]]
name = "upos"
kind = "pos"
unit = "word"
train = ["pos_train.conllu"]
dev = ["pos_dev.conllu"]
test = ["pos_train.conllu"]
head = {{ kind = "linear", hidden = 16 }}
[[task]]
name = "ner"
kind = "ner"
train = ["ner_train.tsv"]
dev = ["ner_dev.tsv"]
test = ["ner_train.tsv", "ner_dev.tsv"]
head = {{ kind = "linear", hidden = 16 }}
[[block]]
tasks = ["upos"]
encoders = ["wet", "dry"]
heads = ["linear", "bigru"]
[[block]]
tasks = ["ner"]
encoders = ["dry"]
heads = ["linear"]
epochs = 1
[[claim]]
claim = "dropout is of no use"
better = "dry"
than = "wet"
[[reported]]
title = "Elsewhere"
encoders = ["large"]
scores = {{ linear = [91.5], bigru = [92.0] }}
"#,
        encoder("wet", 0.3),
        encoder("dry", 0.0),
    );
    Matrix::parse(&text).unwrap()
}

struct Here {
    dir: TempDir,
    tokenizer: PathBuf,
}

impl Here {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let tokenizer = common::tokenizer(dir.path());
        Self { dir, tokenizer }
    }

    fn matrix(&self) -> Matrix {
        matrix(&self.tokenizer, 5e-3)
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("paper")
    }

    fn train(&self, matrix: &Matrix, only: &[&str]) -> Outcome {
        let only: Vec<String> = only.iter().map(|&prefix| prefix.to_owned()).collect();
        paper::train(matrix, &matrix.chosen(&only).unwrap(), &common::fixtures(), &self.out())
    }
}

#[test]
fn a_matrix_is_trained_once_timed_and_written_as_tables() {
    let _alone = common::alone();
    let here = Here::new();
    let matrix = here.matrix();
    assert_eq!(matrix.cells().len(), 10);
    assert_eq!(here.train(&matrix, &["upos/dry/linear/1"]), Outcome { trained: 1, ..Outcome::default() });
    assert_eq!(here.train(&matrix, &["upos"]), Outcome { trained: 7, done: 1, ..Outcome::default() });
    let page = here.dir.path().join("docs.md");
    paper::report(&matrix, &here.out(), &page).unwrap();
    let part = fs::read_to_string(&page).unwrap();
    assert!(
        part.contains("8 of the 10 cells") && !part.contains("### ner") && !part.contains("Decoding time"),
        "{part}"
    );

    assert_eq!(here.train(&matrix, &[]), Outcome { trained: 2, done: 8, ..Outcome::default() });
    assert_eq!(paper::time(&matrix.cells(), &common::fixtures(), &here.out(), 3, 3).unwrap(), 10);
    paper::report(&matrix, &here.out(), &page).unwrap();
    let text = fs::read_to_string(&page).unwrap();

    let mean = |encoder: &str, head: &str| {
        let dir = here.out().join("upos").join(encoder).join(head);
        let report = |seed: &str| Report::read(&dir.join(seed), Part::Test).unwrap();
        ["1", "2"].map(|seed| 50.0 * report(seed).results[0].model.accuracy).iter().sum::<f64>()
    };
    let row = text.lines().find(|line| line.starts_with("| +BiGRU |")).unwrap();
    for encoder in ["wet", "dry"] {
        assert!(row.contains(&format!(" {:.2} (", mean(encoder, "bigru"))), "{row}");
    }
    let of_dropout = text.lines().find(|line| line.starts_with("| dropout is of no use |")).unwrap();
    let difference: f64 =
        ["linear", "bigru"].map(|head| mean("dry", head) - mean("wet", head)).iter().sum::<f64>() / 2.0;
    assert!(of_dropout.ends_with(&format!("| {difference:.2} |")), "{of_dropout} for {difference}");
    assert!(text.contains("| +Fine-Tune | 91.50 |") && text.contains("### Elsewhere"));
    assert!(text.contains("### ner: F1 on ner_dev.tsv"));
    let tables = text.lines().filter(|line| line.starts_with('|')).map(|line| line.matches('|').count());
    assert!(tables.clone().all(|columns| columns > 2), "{text}");

    let dir = here.out().join("upos/wet/bigru");
    let decodings = ["1", "2"].map(|seed| Decoding::read(&dir.join(seed)).unwrap());
    assert!(decodings.iter().all(|decoding| (decoding.sentences, decoding.rounds.len()) == (3, 3)));
    let milliseconds = (decodings[0].median() + decodings[1].median()) / 2.0;
    assert!(text.contains(&format!("| +BiGRU | {milliseconds:.2} |")), "{text}");
    assert!(text.contains("![Decoding time](docs/decoding-upos.svg)"));
    let figure = fs::read_to_string(here.dir.path().join("docs/decoding-upos.svg")).unwrap();
    assert!(figure.contains("+BiGRU") && figure.contains("dry") && figure.contains("milliseconds a sentence"));
    assert!(!dir.join("2").join(fit::LAST).exists(), "the checkpoint of a finished run is of no more use");
}

#[test]
fn an_interrupted_cell_goes_on_after_its_last_epoch() {
    let _alone = common::alone();
    let here = Here::new();
    let (matrix, cell) = (here.matrix(), "upos/wet/bigru/1");
    let config = matrix.config(&matrix.chosen(&[cell.into()]).unwrap()[0]).unwrap();
    let out = here.out().join(cell);
    let paths = Paths { data: &common::fixtures(), tokenizer: Some(&here.tokenizer), out: &out };
    let mut first = config.clone();
    first.train.epochs = 1;
    finetune::finetune(first, paths, false).unwrap();
    fs::write(out.join(run::CONFIG), toml::to_string(&config).unwrap()).unwrap();
    let before = fit::log(&out).unwrap();

    assert_eq!(here.train(&matrix, &[cell]), Outcome { trained: 1, ..Outcome::default() });
    let after = fit::log(&out).unwrap();
    assert_eq!((after.len(), &after[..1]), (2, &before[..]));
}

#[test]
fn cells_of_other_settings_or_in_other_hands_are_left_alone() {
    let _alone = common::alone();
    let here = Here::new();
    let cell = "upos/dry/linear/1";
    here.train(&here.matrix(), &[cell]);
    let before = fs::read(here.out().join(cell).join(fit::BEST)).unwrap();
    let faster = matrix(&here.tokenizer, 1e-2);
    assert_eq!(here.train(&faster, &[cell]), Outcome { failed: 1, ..Outcome::default() });
    assert!(before == fs::read(here.out().join(cell).join(fit::BEST)).unwrap());

    let other = here.out().join("upos/dry/linear/2");
    fs::create_dir_all(&other).unwrap();
    let lock = File::create(other.join("lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(here.train(&here.matrix(), &["upos/dry/linear"]), Outcome { done: 1, taken: 1, ..Outcome::default() });
}

#[test]
fn a_matrix_that_makes_no_sense_is_refused_by_name() {
    let here = Here::new();
    let unknown = here.matrix().chosen(&["upos/none".into()]).unwrap_err().to_string();
    assert!(unknown.contains("--only upos/none"), "{unknown}");
    assert!(here.matrix().chosen(&["up".into()]).is_err(), "half a name is none");

    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/paper/matrix.toml")).unwrap();
    let parse = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        format!("{:#}", Matrix::parse(&text.replacen(from, to, 1)).unwrap_err())
    };
    assert!(parse("seeds = [1]", "seeds = []").contains("seeds"));
    assert!(parse("[train]", "[train]\nspeed = 1").contains("speed"));
    assert!(parse("encoders = [\"vibert\"", "encoders = [\"herbert\"").contains("herbert"));
    assert!(parse("linear = [94.34, ", "linear = [").contains("reported.scores"));
    let directory = parse("name = \"vibert\"", "name = \"../vibert\"");
    assert!(directory.contains("encoder.name"), "{directory}");
}
