//! What is documented, drawn and alerted on is what a worker exports.

#![cfg(feature = "worker")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, Metric, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use vitag::admin::{self, Health};
use vitag::infer::Cause;
use vitag::record::{Code, Gauge, Partition, Stage};
use vitag::rollout::State;
use vitag::telemetry::{ExportOptions, Metrics, ModelInfo, ModelWatch, PartitionWatch, Telemetry};

/// A row of the table in the documentation, or what was found to compare with it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Described {
    kind: String,
    unit: String,
    attributes: BTreeSet<String>,
}

/// Rows of the documented table by name, and each name's Prometheus name.
fn documented() -> (BTreeMap<String, Described>, BTreeMap<String, String>) {
    let page = fs::read_to_string("docs/observability.md").unwrap();
    let table = page.split("## Metrics").nth(1).unwrap().split("\n## ").next().unwrap();
    let (mut rows, mut prometheus) = (BTreeMap::new(), BTreeMap::new());
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<String> =
            line.trim_matches('|').split('|').map(|cell| cell.replace('`', "").trim().to_owned()).collect();
        let [name, kind, unit, attributes, exported, _] = cells.try_into().expect("six cells in a row");
        let attributes = attributes.split(", ").filter(|key| !key.is_empty()).map(str::to_owned).collect();
        rows.insert(name.clone(), Described { kind, unit, attributes });
        prometheus.insert(name, exported);
    }
    (rows, prometheus)
}

/// One observation of everything; the gauges last as long as what is returned.
fn observe_everything(metrics: &Metrics) -> (PartitionWatch, ModelWatch) {
    let moment = Duration::from_millis(3);
    let input = metrics.input("in", "group");
    input.consumed(2);
    input.processed(moment);
    input.refused(moment, Code::InvalidJson);
    metrics.output("out").published(1);
    metrics.lane(0).inferred(moment);
    metrics.lane(0).busy(moment);
    metrics.lane(0).failed(Cause::Device);
    metrics.lane(0).budget(512);
    metrics.batch(2, 30, 40);
    metrics.looked_up(true);
    metrics.cache_size(100);
    metrics.queued(moment);
    metrics.latency(moment);
    metrics.committed(2, moment);
    metrics.dead_letter(Stage::Decode, Code::InvalidJson);
    metrics.transaction_aborted();
    metrics.transaction_retried();
    metrics.observe_ready(|| true);
    let rollout = metrics.rollout("default");
    rollout.state(1, State::Ready);
    rollout.swapped();
    rollout.compared(0.5, moment);
    let partition = metrics.partition(&Partition { topic: "in".into(), id: 0 }, &Gauge::default());
    partition.set_lag(5);
    partition.set_paused(true);
    let model = metrics.model(ModelInfo {
        name: "vi-tagger".into(),
        version: "1.0.0".into(),
        sha256: "00ff".into(),
        device: "cpu".into(),
    });
    (partition, model)
}

#[derive(Clone, Default)]
struct Collected(Arc<Mutex<BTreeMap<String, Described>>>);

impl PushMetricExporter for Collected {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let found = metrics.scope_metrics().flat_map(|scope| scope.metrics());
        *self.0.lock().unwrap() = found.map(|metric| (metric.name().to_owned(), describe(metric))).collect();
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

fn describe(metric: &Metric) -> Described {
    assert!(!metric.description().is_empty(), "{} is not described", metric.name());
    let (kind, attributes) = match metric.data() {
        AggregatedMetrics::F64(data) => kind_and_attributes(data),
        AggregatedMetrics::U64(data) => kind_and_attributes(data),
        AggregatedMetrics::I64(data) => kind_and_attributes(data),
    };
    Described { kind: kind.to_owned(), unit: metric.unit().to_owned(), attributes }
}

fn kind_and_attributes<T>(data: &MetricData<T>) -> (&'static str, BTreeSet<String>) {
    fn keys<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> BTreeSet<String> {
        attributes.map(|attribute| attribute.key.to_string()).collect()
    }
    match data {
        MetricData::Gauge(gauge) => ("gauge", keys(gauge.data_points().flat_map(|point| point.attributes()))),
        MetricData::Sum(sum) => ("counter", keys(sum.data_points().flat_map(|point| point.attributes()))),
        MetricData::Histogram(histogram) => {
            ("histogram", keys(histogram.data_points().flat_map(|point| point.attributes())))
        }
        MetricData::ExponentialHistogram(_) => panic!("cannot be scraped"),
    }
}

/// Everything observed once, as a worker would serve it.
fn scraped() -> (String, String) {
    let telemetry = Telemetry::new(&ExportOptions::default()).unwrap();
    let _live = observe_everything(&telemetry.metrics());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let serving =
        admin::serve("127.0.0.1:0", Health::new(), telemetry.registry().clone(), None, std::future::pending::<()>());
    let (address, _) = runtime.block_on(serving).unwrap();
    let mut answer = ureq::get(format!("http://{address}/metrics")).call().unwrap();
    let content_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
    (content_type, answer.body_mut().read_to_string().unwrap())
}

/// Names and label names in a rendered text.
fn names_and_labels(text: &str) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let (mut names, mut labels) = (BTreeSet::new(), BTreeSet::from(["job", "instance"]));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let end = line.find(['{', ' ']).unwrap();
        names.insert(&line[..end]);
        if let Some((inside, _)) = line[end..].strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            labels.extend(inside.split(',').filter_map(|pair| Some(pair.split_once('=')?.0)));
        }
    }
    (names, labels)
}

#[test]
fn the_documented_table_is_what_is_registered() {
    let collected = Collected::default();
    let provider = SdkMeterProvider::builder().with_reader(PeriodicReader::builder(collected.clone()).build()).build();
    let _live = observe_everything(&Metrics::new(&provider.meter("test")));
    provider.force_flush().unwrap();
    assert_eq!(*collected.0.lock().unwrap(), documented().0);
}

#[test]
fn the_scraped_text_holds_every_documented_metric() {
    let (content_type, text) = scraped();
    assert!(content_type.starts_with("text/plain; version=0.0.4"), "{content_type}");
    let (names, _) = names_and_labels(&text);
    let (rows, prometheus) = documented();
    let mut expected = BTreeSet::from(["target_info".to_owned()]);
    for (name, exported) in &prometheus {
        match rows[name].kind.as_str() {
            "histogram" => {
                expected.extend(["bucket", "sum", "count"].map(|suffix| format!("{exported}_{suffix}")));
            }
            _ => drop(expected.insert(exported.clone())),
        }
    }
    assert_eq!(names, expected.iter().map(String::as_str).collect());
}

#[test]
fn a_revoked_partition_and_an_unloaded_model_vanish() {
    let telemetry = Telemetry::new(&ExportOptions::default()).unwrap();
    let metrics = telemetry.metrics();
    let live = observe_everything(&metrics);
    let text = || prometheus::TextEncoder::new().encode_to_string(&telemetry.registry().gather()).unwrap();
    assert!(text().contains("vitag_consumer_lag{") && text().contains("vitag_model_info{"));
    assert!(text().contains("vitag_partitions_paused 1"));
    drop(live);
    let after = text();
    assert!(!after.contains("vitag_consumer_lag{") && !after.contains("vitag_model_info{"), "{after}");
    assert!(after.contains("vitag_partitions_assigned 0") && after.contains("vitag_partitions_paused 0"));
}

/// All strings under a key named `key`, anywhere.
fn strings_under(value: &serde_json::Value, key: &str, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Array(items) => items.iter().for_each(|item| strings_under(item, key, found)),
        serde_json::Value::Object(fields) => fields.iter().for_each(|(name, field)| match field.as_str() {
            Some(text) if name == key => found.push(text.to_owned()),
            _ => strings_under(field, key, found),
        }),
        _ => {}
    }
}

/// Words of a PromQL expression, outside of strings.
fn words(expression: &str) -> impl Iterator<Item = &str> {
    expression.split('"').step_by(2).flat_map(|code| code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
}

fn check_expressions(file: &str, expressions: &[String]) {
    let (_, text) = scraped();
    let (names, labels) = names_and_labels(&text);
    assert!(!expressions.is_empty(), "{file} has no expressions");
    for expression in expressions {
        let ours = |word: &&str| word.starts_with("vitag_") || word.starts_with("messaging_");
        let mut metrics = 0;
        for word in words(expression).filter(ours) {
            assert!(names.contains(word) || labels.contains(word), "{file}: {word} is not exported: {expression}");
            metrics += usize::from(names.contains(word));
        }
        assert!(metrics > 0, "{file}: no metric of the worker in {expression}");
    }
}

#[test]
fn the_dashboard_asks_for_exported_metrics_alone() {
    let dashboard = serde_json::from_str(&fs::read_to_string("deploy/grafana/vitag.json").unwrap()).unwrap();
    let mut expressions = Vec::new();
    strings_under(&dashboard, "expr", &mut expressions);
    check_expressions("deploy/grafana/vitag.json", &expressions);
}

#[test]
fn the_alert_rules_ask_for_exported_metrics_alone() {
    let text = fs::read_to_string("deploy/prometheus/alerts.yaml").unwrap();
    let rules: serde_json::Value = config::Config::builder()
        .add_source(config::File::from_str(&text, config::FileFormat::Yaml))
        .build()
        .and_then(config::Config::try_deserialize)
        .unwrap();
    let mut expressions = Vec::new();
    strings_under(&rules, "expr", &mut expressions);
    check_expressions("deploy/prometheus/alerts.yaml", &expressions);
    let mut alerts = Vec::new();
    strings_under(&rules, "alert", &mut alerts);
    assert_eq!(alerts.len(), expressions.len());
}
