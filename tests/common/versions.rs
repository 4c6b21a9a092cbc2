//! The model as another version, or a part of it.
#![allow(dead_code, reason = "each test file uses a part of it")]

use serde_json::Value;

use crate::model::Copy;

/// The model as another version that takes persons for places and places for persons: it can be served like the original,
/// and is told from it by its tags.
pub(crate) fn contrary(version: &str) -> Copy {
    let model = Copy::new();
    let swap = |label: &mut Value| {
        let text = label.as_str().unwrap();
        *label = match text.split_once('-') {
            Some((prefix, "PER")) => format!("{prefix}-LOC").into(),
            Some((prefix, "LOC")) => format!("{prefix}-PER").into(),
            _ => return,
        };
    };
    let each = |labels: &mut Value| labels.as_array_mut().unwrap().iter_mut().for_each(swap);
    model.edit("manifest.json", |manifest| {
        manifest["version"] = version.into();
        each(&mut manifest["heads"][1]["labels"]);
    });
    model.edit("golden.json", |golden| {
        golden["cases"].as_array_mut().unwrap().iter_mut().for_each(|case| each(&mut case["heads"]["ner"]["tags"]));
    });
    model.rehash();
    model
}

/// A model with one of its heads: that for `pos` or for `ner`.
pub(crate) fn only(task: &str, model: Copy) -> Copy {
    model.edit("manifest.json", |manifest| {
        manifest["name"] = task.into();
        manifest["heads"].as_array_mut().unwrap().retain(|head| head["task"] == task);
    });
    model.edit("golden.json", |golden| {
        for case in golden["cases"].as_array_mut().unwrap() {
            case["heads"].as_object_mut().unwrap().retain(|name, _| name == task);
        }
    });
    model.rehash();
    model
}
