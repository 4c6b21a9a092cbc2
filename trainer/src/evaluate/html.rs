//! The details as one page that needs nothing else.

use anyhow::Result;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};

use super::{Details, Report};

/// Confusions shown.
const CONFUSIONS: usize = 20;

/// The page.
///
/// # Errors
/// When the template does not fit the details.
pub(super) fn page(report: &Report, details: &[Details]) -> Result<String> {
    let mut environment = Environment::new();
    // Words of a corpus are not markup.
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_function("percent", |share: f64| format!("{:.2}", 100.0 * share));
    let corpus = |details: &Details| {
        let confusions: Vec<_> = details.confusion.iter().take(CONFUSIONS).collect();
        let unseen_value = details.unseen.value();
        context! { unseen_value, confusions => Value::from(Serde(confusions)), ..Value::from(Serde(details)) }
    };
    let corpora: Vec<Value> = details.iter().map(corpus).collect();
    let Report { model, version, part, seed, .. } = report;
    let part = Value::from(Serde(part));
    Ok(environment.render_str(include_str!("report.html"), context! { model, version, part, seed, corpora })?)
}
