//! The published schemas and their examples, held against the types.
#![cfg(feature = "worker")]

use std::fs;
use std::path::{Path, PathBuf};

use config::Format as _;
use serde_json::{Value, json};
use vitag::schema::Schema;

const ANNOTATIONS: [(&str, &str); 3] = [("annotation", ""), ("annotation-utf16", ""), ("merged", "/annotation")];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

fn example(name: &str) -> Value {
    let path = folder().join(format!("examples/{name}.json"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn annotation((name, pointer): (&str, &str)) -> Value {
    example(name).pointer(pointer).unwrap().clone()
}

fn validator(of: Schema) -> jsonschema::Validator {
    jsonschema::draft202012::new(&serde_json::from_str(&of.text()).unwrap()).unwrap()
}

/// The part of `text` that an annotation means by `start` and `end`.
fn part(text: &str, unit: &str, range: &Value) -> String {
    let at = |key: &str| range[key].as_u64().unwrap() as usize;
    let (start, end) = (at("start"), at("end"));
    match unit {
        "byte" => text[start..end].to_owned(),
        "code_point" => text.chars().skip(start).take(end - start).collect(),
        "utf16" => String::from_utf16(&text.encode_utf16().collect::<Vec<_>>()[start..end]).unwrap(),
        other => panic!("offset_unit {other:?}"),
    }
}

#[test]
fn the_committed_schemas_are_those_of_the_types() {
    for (of, name) in [
        (Schema::Annotation, "annotation"),
        (Schema::Bench, "bench"),
        (Schema::DeadLetterHeaders, "dead-letter-headers"),
        (Schema::RolloutControl, "rollout-control"),
        (Schema::RolloutStatus, "rollout-status"),
        (Schema::Settings, "settings"),
    ] {
        let committed = fs::read_to_string(folder().join(format!("{name}.schema.json"))).unwrap();
        let hint = format!("run: vitag schema {name} > schemas/{name}.schema.json");
        assert!(committed == of.text(), "schemas/{name}.schema.json is out of date; {hint}");
    }
}

#[test]
fn the_examples_are_valid_and_broken_ones_are_refused() {
    let annotations = validator(Schema::Annotation);
    for of in ANNOTATIONS {
        let good = annotation(of);
        annotations.validate(&good).unwrap_or_else(|error| panic!("{of:?}: {error}"));
        for (key, wrong) in [("text", json!(7)), ("offset_unit", json!("line")), ("surprise", json!(true))] {
            let mut bad = good.clone();
            bad[key] = wrong;
            assert!(!annotations.is_valid(&bad), "{of:?} with a wrong {key:?} is refused");
        }
    }
    let headers = validator(Schema::DeadLetterHeaders);
    let mut dead_letter = example("dead-letter-headers");
    headers.validate(&dead_letter).unwrap();
    dead_letter.as_object_mut().unwrap().remove("vitag.error.code");
    assert!(!headers.is_valid(&dead_letter));
}

#[test]
fn the_examples_of_rollouts_are_valid_and_are_read() {
    let control = example("rollout-control");
    validator(Schema::RolloutControl).validate(&control).unwrap();
    vitag::rollout::Desired::read(control.to_string().as_bytes()).unwrap();
    let status = example("rollout-status");
    validator(Schema::RolloutStatus).validate(&status).unwrap();
    let read: vitag::rollout::Status = serde_json::from_value(status.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), status, "nothing is left out");
    for (of, mut value, key, wrong) in [
        (Schema::RolloutControl, control.clone(), "generation", json!(0)),
        (Schema::RolloutControl, control.clone(), "surprise", json!(true)),
        (Schema::RolloutControl, control, "stable", json!({ "version": "1" })),
        (Schema::RolloutStatus, status, "state", json!("well")),
    ] {
        value[key] = wrong;
        assert!(!validator(of).is_valid(&value), "a wrong {key:?} is refused");
    }
}

#[test]
fn the_example_settings_are_valid() {
    let text = fs::read_to_string(folder().join("../deploy/config/vitag.toml")).unwrap();
    let settings: Value = toml::from_str(&text).unwrap();
    validator(Schema::Settings).validate(&settings).unwrap();
}

#[test]
fn offsets_of_the_examples_point_at_their_texts() {
    for of in ANNOTATIONS {
        let annotation = annotation(of);
        let text = annotation["text"].as_str().unwrap();
        let unit = annotation["offset_unit"].as_str().unwrap();
        let tokens = annotation["tokens"].as_array().unwrap();
        let entities = annotation["entities"].as_array().unwrap();
        for marked in tokens.iter().chain(entities) {
            assert_eq!(part(text, unit, marked), marked["text"].as_str().unwrap());
        }
        for entity in entities {
            let token = |key: &str, back: u64| &tokens[(entity[key].as_u64().unwrap() - back) as usize];
            assert_eq!(token("token_start", 0)["start"], entity["start"]);
            assert_eq!(token("token_end", 1)["end"], entity["end"]);
        }
        for sentence in annotation["sentences"].as_array().unwrap() {
            let sentence = part(text, unit, sentence);
            assert_eq!(sentence, sentence.trim());
        }
    }
}

#[test]
fn every_reference_of_the_asyncapi_document_leads_somewhere() {
    let text = fs::read_to_string(folder().join("asyncapi.yaml")).unwrap();
    let members = config::FileFormat::Yaml.parse(None, &text).unwrap();
    let json = |(key, value): (String, config::Value)| (key, value.try_deserialize::<Value>().unwrap());
    let document = Value::Object(members.into_iter().map(json).collect());
    assert_eq!(document["asyncapi"], "3.0.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));

    let mut references = Vec::new();
    collect_references(&document, &mut references);
    for reference in &references {
        let found = match reference.strip_prefix('#') {
            Some(pointer) => document.pointer(pointer).is_some(),
            None => folder().join(reference).is_file(),
        };
        assert!(found, "{reference} leads nowhere");
    }
    for schema in ["annotation", "dead-letter-headers", "rollout-control", "rollout-status"] {
        let reference = format!("./{schema}.schema.json");
        assert!(references.contains(&reference), "{reference} is used");
    }
}

fn collect_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get("$ref") {
                found.push(reference.clone());
            }
            members.values().for_each(|member| collect_references(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_references(item, found)),
        _ => {}
    }
}
