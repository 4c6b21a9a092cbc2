//! The model as another version.

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
