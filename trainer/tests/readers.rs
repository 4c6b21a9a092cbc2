//! Tagged data of other layouts and units, and a vocabulary of SentencePiece, go the whole way to scores.

mod common;

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, Tokenizer};
use vitag::tags::Scheme;
use vitag::tokenize::Unit;
use vitag_trainer::config::Config;
use vitag_trainer::data;
use vitag_trainer::evaluate::{self, Part};
use vitag_trainer::finetune::{Paths, finetune};
use vitag_trainer::run::Run;

/// A vocabulary of SentencePiece, trained on the fixture.
fn unigram(dir: &Path) -> std::path::PathBuf {
    let mut tokenizer = Tokenizer::new(Unigram::default());
    tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', PrependScheme::Always, true)));
    let special = ["<s>", "<pad>", "</s>", "<unk>"].map(|token| AddedToken::from(token, true)).to_vec();
    let trainer = UnigramTrainer::builder()
        .vocab_size(500)
        .special_tokens(special)
        .unk_token(Some("<unk>".to_owned()))
        .show_progress(false)
        .build()
        .unwrap();
    let mut trainer = tokenizers::models::TrainerWrapper::UnigramTrainer(trainer);
    let text = common::fixture("raw.txt").to_string_lossy().into_owned();
    tokenizer.train_from_files(&mut trainer, vec![text]).unwrap();
    let path = dir.join("unigram.json");
    tokenizer.save(&path, false).unwrap();
    path
}

/// Words with their part of speech, as VLSP lays them out.
fn vlsp(dir: &Path, name: &str) {
    let text = fs::read_to_string(common::fixture(name)).unwrap();
    let mut out = String::from("<title>\n<s>\n");
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        if fields.len() == 10 {
            out.push_str(&format!("{}\t{}\tB-NP\tO\n", fields[1].replace(' ', "_"), fields[3]));
        } else if line.is_empty() {
            out.push_str("</s>\n<s>\n");
        }
    }
    fs::write(dir.join("words.txt"), out + "</s>\n").unwrap();
}

fn config(epochs: usize) -> Config {
    let text = common::config_text(common::LINEAR, epochs);
    let ner = text.rfind("[[task]]").unwrap();
    let task = text[..ner].replace("dev = [\"pos_dev.conllu\"]\n", "").replace("pos_train.conllu", "words.txt");
    let task = format!("{task}layout = \"vlsp\"\nunit = \"word\"\n");
    Config::parse(&task).unwrap()
}

#[test]
fn words_of_vlsp_are_learnt_with_a_vocabulary_of_sentencepiece() {
    let _alone = common::alone();
    let dir = TempDir::new().unwrap();
    vlsp(dir.path(), "pos_train.conllu");
    let (tokenizer, out) = (unigram(dir.path()), dir.path().join("run"));
    let paths = Paths { data: dir.path(), tokenizer: Some(&tokenizer), out: &out };
    finetune(config(6), paths, false).unwrap();

    let run = Run::open(&out).unwrap();
    assert_eq!((run.tokenizer.unit(), run.labels[0].scheme()), (Unit::Word, Scheme::Plain));
    let (report, details) = evaluate::in_detail(&run, dir.path(), Part::Test).unwrap();
    assert!(report.results[0].model.accuracy > report.results[0].baseline.accuracy / 2.0);
    assert!(evaluate::table(&report.results).contains("| words.txt | accuracy |"));
    let [details] = &details[..] else { panic!("one corpus") };
    assert_eq!((details.strict, details.unseen.total > 0), (None, true));
    let wrong: usize = details.confusion.iter().map(|(.., count)| count).sum();
    let units = report.results[0].units as f64;
    assert!((details.accuracy - (1.0 - wrong as f64 / units)).abs() < 1e-9);
    assert!(details.interval.low <= details.spans.f1 && details.spans.f1 <= details.interval.high);

    let page =
        fs::read_to_string(evaluate::write_details(&out, &report, std::slice::from_ref(details)).unwrap()).unwrap();
    assert!(page.contains("<svg") && page.contains("words.txt") && !page.contains("{{") && !page.contains("http"));
}

#[test]
fn without_development_data_a_tenth_of_the_training_data_is_held_out() {
    let dir = TempDir::new().unwrap();
    vlsp(dir.path(), "pos_train.conllu");
    let config = config(1);
    let parts = |seed| data::train_and_dev(dir.path(), &config.tasks[0], seed).unwrap();
    let ((train, dev), again, other) = (parts(1), parts(1), parts(2));
    assert_eq!((train[0].sentences.len(), dev[0].sentences.len()), (54, 6));
    assert_eq!((&train, &dev), (&again.0, &again.1));
    assert_ne!(dev, other.1);
    assert!(dev[0].sentences.iter().all(|sentence| !train[0].sentences.contains(sentence)));
}

#[test]
fn words_in_columns_and_words_with_slashes_are_the_same_sentences() {
    let dir = TempDir::new().unwrap();
    vlsp(dir.path(), "pos_train.conllu");
    let columns = data::Corpus::read(&dir.path().join("words.txt"), config(1).tasks[0].reading()).unwrap();
    let line = |sentence: &data::Sentence| {
        let words = sentence.units.iter().zip(&sentence.labels).map(|(word, tag)| format!("{word}/{tag}"));
        words.collect::<Vec<_>>().join(" ")
    };
    let lines: Vec<String> = columns.sentences.iter().map(line).collect();
    fs::write(dir.path().join("words.txt"), lines.join("\n")).unwrap();
    let mut task = config(1).tasks.remove(0);
    task.layout = Some(data::Layout::Slash);
    let slashes = data::Corpus::read(&dir.path().join("words.txt"), task.reading()).unwrap();
    let words = |corpus: &data::Corpus| {
        corpus.sentences.iter().map(|s| (s.units.clone(), s.labels.clone())).collect::<Vec<_>>()
    };
    assert_eq!(words(&slashes), words(&columns));
    assert!(slashes.sentences.iter().enumerate().all(|(i, s)| s.lines.iter().all(|&line| line == i + 1)));
}
