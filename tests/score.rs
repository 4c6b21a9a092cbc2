//! Scores of entities are those of seqeval, default and strict, and of conlleval.

use serde::Deserialize;
use vitag::score::{Convention, Counts, Spans, spans};

type Tags = Vec<Vec<String>>;

#[derive(Deserialize)]
struct Case {
    reference: Tags,
    found: Tags,
    default: Prf,
    strict: Prf,
    conlleval: Counts,
}

#[derive(Deserialize)]
struct Prf {
    precision: f64,
    recall: f64,
    f1: f64,
}

fn counts(case: &Case, convention: Convention) -> Counts {
    let mut all = Spans::default();
    for (reference, found) in case.reference.iter().zip(&case.found) {
        all.add(&spans(reference, convention), &spans(found, convention));
    }
    all.all
}

fn assert_equal(counts: Counts, expected: &Prf) {
    for (found, expected) in
        [(counts.precision(), expected.precision), (counts.recall(), expected.recall), (counts.f1(), expected.f1)]
    {
        assert!((found - expected).abs() < 1e-12, "{found} for {expected}, {counts:?}");
    }
}

#[test]
fn scores_are_those_of_seqeval_and_conlleval() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("fixtures/scores.json")).unwrap();
    let mut apart = 0;
    for case in &cases {
        let (conll, strict) = (counts(case, Convention::Conll), counts(case, Convention::Strict));
        assert_equal(conll, &case.default);
        assert_equal(strict, &case.strict);
        assert_eq!(conll, case.conlleval);
        apart += usize::from(conll != strict);
    }
    assert!(apart > cases.len() / 2, "the cases do not tell the conventions apart");
}
