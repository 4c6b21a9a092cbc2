//! Round trips through every format: what comes back, and what is lost as told.

use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::foreign::{bare, labels, relabel};
use super::offsets::in_code_points;
use super::{Kind, convert};
use crate::encode::{Annotation, Extent, ModelInfo, OffsetUnit, Token};
use crate::manifest::Task;

const UNITS: [OffsetUnit; 3] = [OffsetUnit::CodePoint, OffsetUnit::Byte, OffsetUnit::Utf16];

/// Words with what stands before each, whether an entity begins, goes on or is none, and the tag.
type Word = (String, String, Option<&'static str>, bool, &'static str);

fn word() -> impl Strategy<Value = Word> {
    let text = prop::sample::select(vec!["Huế", "bác sĩ", "a", "Đà Nẵng", "𝔘", "e\u{301}", ".", "_", "\"x\\", "#"]);
    let gap = prop::sample::select(vec![" ", "", "  ", "\n", " \t ", "\u{a0}"]);
    let entity = prop::option::of(prop::sample::select(vec!["PER", "LOC"]));
    let tag = prop::sample::select(vec!["NOUN", "PUNCT", "X"]);
    (text, gap, entity, any::<bool>(), tag).prop_map(|(t, g, e, goes_on, tag)| (t.into(), g.into(), e, goes_on, tag))
}

fn annotation(words: Vec<Word>, cut: usize, id: Option<serde_json::Value>, unit: OffsetUnit) -> Annotation {
    let length = |text: &str| match unit {
        OffsetUnit::CodePoint => text.chars().count(),
        OffsetUnit::Byte => text.len(),
        OffsetUnit::Utf16 => text.encode_utf16().count(),
    };
    let mut all = bare("", "articles", 7);
    all.id = id;
    all.offset_unit = unit;
    let model = |version: &str| ModelInfo {
        slot: "default".into(),
        tasks: vec![Task::Pos, Task::Ner],
        name: "m".into(),
        version: version.into(),
        sha256: "0".into(),
        variant: "f32".into(),
    };
    all.models = vec![model("1"), model("2")];
    for (index, (word, gap, entity, goes_on, pos)) in words.into_iter().enumerate() {
        all.text.push_str(&gap);
        let start = length(&all.text);
        all.text.push_str(&word);
        let end = length(&all.text);
        all.tokens.push(Token { text: word.clone(), start, end, pos: Some(pos.into()), pos_score: Some(0.9375) });
        let last = all.entities.last_mut().filter(|last| goes_on && last.token_end == index && entity.is_some());
        match (last, entity) {
            (Some(last), _) => (last.end, last.token_end) = (end, index + 1),
            (None, Some(label)) => all.entities.push(crate::encode::Entity {
                start,
                end,
                label: label.into(),
                text: String::new(),
                score: 0.8125,
                token_start: index,
                token_end: index + 1,
            }),
            (None, None) => {}
        }
    }
    all.text.push_str(" \n");
    let points = in_code_points(all.clone());
    for (entity, points_of) in all.entities.iter_mut().zip(&points.entities) {
        let chars = all.text.chars().skip(points_of.start).take(points_of.end - points_of.start);
        entity.text = chars.collect();
    }
    let cut = cut.min(all.tokens.len());
    let extent = |tokens: &[Token]| Some(Extent { start: tokens.first()?.start, end: tokens.last()?.end });
    // No entity lies across the end of a sentence.
    all.entities.retain(|entity| !(entity.token_start < cut && entity.token_end > cut));
    all.sentences = [&all.tokens[..cut], &all.tokens[cut..]].into_iter().filter_map(extent).collect();
    all
}

fn any_annotation() -> impl Strategy<Value = Annotation> {
    let id = prop::option::of(prop_oneof![
        Just(serde_json::json!("bài 7")),
        Just(serde_json::json!(12_345_678_901_234_u64)),
        Just(serde_json::json!(-1.5)),
    ]);
    (prop::collection::vec(word(), 1..9), 0..9usize, id, prop::sample::select(UNITS.to_vec()))
        .prop_map(|(words, cut, id, unit)| annotation(words, cut, id, unit))
}

/// There and back; the annotations that come back, and what was written.
fn round(kind: Kind, all: &[Annotation], lean: bool) -> Vec<Annotation> {
    let folder = TempDir::new().unwrap();
    let [first, middle, last] = ["a.jsonl", "b", "c.jsonl"].map(|name| folder.path().join(name));
    let lines = |all: &[Annotation]| all.iter().map(|a| serde_json::to_string(a).unwrap() + "\n").collect::<String>();
    std::fs::write(&first, lines(all)).unwrap();
    assert_eq!(convert((Kind::Annotations, &first), (kind, &middle), lean).unwrap(), all.len());
    assert_eq!(convert((kind, &middle), (Kind::Annotations, &last), lean).unwrap(), all.len());
    read(&last)
}

fn read(path: &Path) -> Vec<Annotation> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn words(annotation: &Annotation) -> Vec<(String, Option<String>)> {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    annotation.tokens.iter().map(|token| (plain(&token.text), token.pos.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_carries_all_along_brings_all_back(all in prop::collection::vec(any_annotation(), 1..4)) {
        for kind in [Kind::Annotations, Kind::Parquet, Kind::Conllu, Kind::Spacy, Kind::Doccano, Kind::LabelStudio] {
            prop_assert_eq!(kind.drops(false), None);
            prop_assert_eq!(&round(kind, &all, false), &all, "{:?}", kind);
        }
    }

    #[test]
    fn text_and_entities_outlive_formats_that_hold_no_more(all in prop::collection::vec(any_annotation(), 1..4)) {
        for kind in [Kind::Spacy, Kind::Doccano, Kind::LabelStudio, Kind::Brat] {
            for (back, one) in round(kind, &all, true).iter().zip(&all) {
                let points = in_code_points(one.clone());
                prop_assert_eq!(&back.text, &one.text, "{:?}", kind);
                prop_assert_eq!(labels(back), labels(&points), "{:?}", kind);
                if kind == Kind::Spacy {
                    prop_assert_eq!(words(back), words(one));
                }
            }
        }
    }

    #[test]
    fn words_tags_and_entities_outlive_columns(all in prop::collection::vec(any_annotation(), 1..4)) {
        for kind in [Kind::Conllu, Kind::Conll2, Kind::Conll4] {
            for (back, one) in round(kind, &all, true).iter().zip(&all) {
                let joined = |word: String| if word == "_" { word } else { word.replace('_', " ") };
                let spelt = |a: &Annotation| -> Vec<String> {
                    let all = words(a).into_iter().map(|(word, _)| word);
                    if kind == Kind::Conllu { all.collect() } else { all.map(joined).collect() }
                };
                prop_assert_eq!(spelt(back), spelt(one), "{:?}", kind);
                let ends = |a: &Annotation| a.entities.iter().map(|e| (e.token_start, e.token_end, e.label.clone())).collect::<Vec<_>>();
                prop_assert_eq!(ends(back), ends(one), "{:?}", kind);
                prop_assert_eq!(back.sentences.len(), one.sentences.len());
            }
        }
    }
}

#[test]
fn a_label_that_somebody_corrected_counts_and_the_others_keep_their_scores() {
    let word = |text: &str, entity| (text.to_owned(), " ".to_owned(), entity, false, "NOUN");
    let one = annotation(vec![word("Hoa", Some("PER")), word("Huế", Some("LOC"))], 2, None, OffsetUnit::Byte);
    let folder = TempDir::new().unwrap();
    let [first, middle, last] = ["a", "b", "c"].map(|name| folder.path().join(name));
    std::fs::write(&first, serde_json::to_string(&one).unwrap()).unwrap();
    convert((Kind::Annotations, &first), (Kind::Doccano, &middle), false).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&middle).unwrap()).unwrap();
    document["label"][1][2] = "ORG".into();
    std::fs::write(&middle, document.to_string()).unwrap();
    convert((Kind::Doccano, &middle), (Kind::Annotations, &last), false).unwrap();
    let back = &read(&last)[0];
    let seen: Vec<_> = back.entities.iter().map(|e| (e.label.as_str(), e.text.as_str(), e.score)).collect();
    assert_eq!(seen, [("PER", "Hoa", 0.8125), ("ORG", "Huế", 1.0)]);
    assert_eq!((back.offset_unit, &back.models), (OffsetUnit::CodePoint, &one.models));
}

#[test]
fn what_is_wrong_is_named_with_its_document() {
    let folder = TempDir::new().unwrap();
    let convert = |kind: Kind, content: &str| {
        let input = folder.path().join("in");
        std::fs::write(&input, content).unwrap();
        convert((kind, &input), (Kind::Annotations, &folder.path().join("out")), false).unwrap_err().to_string()
    };
    let outside =
        convert(Kind::Doccano, "{\"text\": \"a\", \"label\": []}\n{\"text\": \"a\", \"label\": [[0, 9, \"X\"]]}");
    assert!(outside.contains("document 2: the label X at 0 to 9 lies outside of the text"), "{outside}");
    assert!(convert(Kind::Conll2, "a O B\n").contains("3 columns instead of 2"));
    assert!(convert(Kind::Conllu, "1\ta\n").contains("2 columns instead of 10"));
    assert!(convert(Kind::HuggingFace, "[]").contains("hold no texts"));
    let mut bare = bare("a", "x", 0);
    assert!(relabel(&mut bare, vec![super::foreign::Labelled::new(1, 1, "X")]).is_err());
}
