//! The results of a matrix as one page in Markdown, in the layout of the paper's tables.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde::Serialize;
use vitag::tags::Scheme;

use super::figure::Bars;
use super::matrix::{Cell, Claim, Matrix, Reported};
use super::timing::Decoding;
use crate::config::HeadKind;
use crate::evaluate::{Comparison, Details, Interval, Part, Report};
use crate::{files, fit};

/// The heads, in the order of the paper's tables.
const HEADS: [HeadKind; 5] =
    [HeadKind::Linear, HeadKind::Bilstm, HeadKind::Bigru, HeadKind::BilstmAttn, HeadKind::BigruAttn];

/// Writes the results that lie in `out` to `page`, and the figures into a folder of its name beside it.
///
/// # Errors
/// When a result is malformed or a file cannot be written.
pub fn report(matrix: &Matrix, out: &Path, page: &Path) -> Result<()> {
    let cells = matrix.cells();
    let found = cells.iter().filter_map(|cell| Found::read(cell, out).transpose()).collect::<Result<Vec<_>>>()?;
    ensure!(!found.is_empty(), "no cell is trained yet: run \"paper train\" first");
    let folder = page.with_extension("");
    let columns: Vec<&str> = matrix.encoders.iter().map(|encoder| encoder.name.as_str()).collect();
    let tables = tables(&found, &columns);
    let view = Page {
        title: &matrix.title,
        about: matrix.about.trim(),
        folder: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        trained: found.len(),
        asked: cells.len(),
        encoders: matrix.encoders.iter().map(|encoder| (encoder.name.as_str(), encoder.about.as_str())).collect(),
        reported: matrix.reported.iter().map(Printed::from).collect(),
        claims: claims(matrix, &tables),
        spreads: tables.iter().flat_map(Table::spreads).collect(),
        decoding: decoding(matrix, &found, &columns),
        lines: found.iter().flat_map(Found::lines).collect(),
        columns,
        tables,
    };
    for times in &view.decoding {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        files::write_atomically(&folder.join(&times.figure), times.draw(&view.columns)?.as_bytes())?;
    }
    files::write_atomically(page, view.render()?.as_bytes())
}

/// What the page shows.
#[derive(Debug, Serialize)]
struct Page<'a> {
    title: &'a str,
    about: &'a str,
    /// Where the figures are.
    folder: String,
    trained: usize,
    asked: usize,
    /// Name of each encoder, and what it is.
    encoders: Vec<(&'a str, &'a str)>,
    /// The names alone: the columns of all tables.
    columns: Vec<&'a str>,
    tables: Vec<Table>,
    reported: Vec<Printed<'a>>,
    claims: Vec<Compared>,
    spreads: Vec<Spread>,
    decoding: Vec<Times>,
    lines: Vec<Line>,
}

impl Page<'_> {
    fn render(&self) -> Result<String> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        environment.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build()?);
        let fixed = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
        environment.add_function("fixed", fixed);
        environment.add_function("percent", move |share: Option<f64>| fixed(share.map(|share| 100.0 * share)));
        Ok(environment.render_str(include_str!("report.md"), Value::from(Serde(self)))?)
    }
}

/// A table of the paper.
#[derive(Debug, Serialize)]
struct Printed<'a> {
    title: &'a str,
    encoders: &'a [String],
    rows: Vec<(&'static str, &'a [f64])>,
}

impl<'a> From<&'a Reported> for Printed<'a> {
    fn from(table: &'a Reported) -> Self {
        let rows = table.scores.iter().map(|(head, scores)| (head.title(), scores.as_slice())).collect();
        Self { title: &table.title, encoders: &table.encoders, rows }
    }
}

/// What lies in the directory of a cell that is done.
struct Found<'a> {
    cell: &'a Cell,
    comparisons: Vec<Comparison>,
    details: Vec<Details>,
    log: Vec<fit::Record>,
    decoding: Option<Decoding>,
}

/// The scores on one test file.
#[derive(Debug, Serialize)]
struct Table {
    task: String,
    file: String,
    measure: &'static str,
    sentences: usize,
    units: usize,
    baseline: f64,
    /// By head, then by encoder.
    rows: Vec<(&'static str, Vec<Option<Mean>>)>,
    #[serde(skip)]
    columns: Vec<String>,
}

/// Over seeds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Mean {
    mean: f64,
    low: f64,
    high: f64,
    seeds: usize,
}

/// One cell on one test file.
#[derive(Debug, Serialize)]
struct Line {
    cell: String,
    file: String,
    score: f64,
    interval: Interval,
    unseen: f64,
    /// Share of the baseline's errors that it does not make.
    removed: f64,
    dev: f64,
    epochs: usize,
    minutes: f64,
    /// F1 and support by type; of entities alone.
    types: BTreeMap<String, (f64, usize)>,
}

/// A comparison of two encoders over the heads that both have.
#[derive(Debug, Serialize)]
struct Compared {
    claim: String,
    better: String,
    than: String,
    task: String,
    file: String,
    heads: usize,
    won: usize,
    difference: f64,
}

/// How far apart the heads are on one encoder.
#[derive(Debug, Serialize)]
struct Spread {
    task: String,
    file: String,
    encoder: String,
    heads: usize,
    low: f64,
    high: f64,
    best: &'static str,
}

/// Decoding times of one task.
#[derive(Debug, Serialize)]
struct Times {
    task: String,
    file: String,
    sentences: usize,
    units: f64,
    rounds: usize,
    threads: i32,
    machine: String,
    figure: String,
    rows: Vec<(&'static str, Vec<Option<f64>>)>,
}

impl<'a> Found<'a> {
    fn read(cell: &'a Cell, out: &Path) -> Result<Option<Self>> {
        let dir = out.join(cell.to_string());
        let Ok(Report { results: comparisons, .. }) = Report::read(&dir, Part::Test) else { return Ok(None) };
        let details = files::read_json(&dir.join("report.json"))?;
        let (log, decoding) = (fit::log(&dir)?, Decoding::read(&dir).ok());
        Ok(Some(Self { cell, comparisons, details, log, decoding }))
    }

    fn lines(&self) -> Vec<Line> {
        let line = |(comparison, details): (&Comparison, &Details)| {
            let (score, baseline) = (score(comparison), baseline(comparison));
            let plain = comparison.scheme == Scheme::Plain;
            let types = comparison.model.by_label.iter().filter(|_| !plain);
            Line {
                cell: self.cell.to_string(),
                file: comparison.file.clone(),
                score,
                interval: details.interval,
                unseen: details.unseen.value(),
                removed: (score - baseline) / (1.0 - baseline),
                dev: self.log.iter().map(|record| record.score).fold(0.0, f64::max),
                epochs: self.log.len(),
                minutes: self.log.iter().map(|record| record.seconds).sum::<f64>() / 60.0,
                types: types.map(|(label, prf)| (label.clone(), (prf.f1, prf.support))).collect(),
            }
        };
        self.comparisons.iter().zip(&self.details).map(line).collect()
    }
}

/// The measure of the paper: accuracy of words, or F1 of spans.
fn score(comparison: &Comparison) -> f64 {
    measured(comparison, &comparison.model)
}

fn baseline(comparison: &Comparison) -> f64 {
    measured(comparison, &comparison.baseline)
}

fn measured(comparison: &Comparison, scores: &crate::evaluate::Scores) -> f64 {
    if comparison.scheme == Scheme::Plain { scores.accuracy } else { scores.spans.f1 }
}

fn tables(found: &[Found], columns: &[&str]) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for (cell, comparison) in found.iter().flat_map(|f| f.comparisons.iter().map(move |c| (f.cell, c))) {
        if tables.iter().any(|table| table.task == cell.task && table.file == comparison.file) {
            continue;
        }
        let of = |head: HeadKind, encoder: &str| {
            let same = |f: &&Found| f.cell.task == cell.task && f.cell.encoder == encoder && f.cell.head == head;
            let scores = found.iter().filter(same).flat_map(|f| &f.comparisons);
            Mean::of(scores.filter(|c| c.file == comparison.file).map(score))
        };
        let row = |head: HeadKind| (head.title(), columns.iter().map(|encoder| of(head, encoder)).collect());
        tables.push(Table {
            task: cell.task.clone(),
            file: comparison.file.clone(),
            measure: if comparison.scheme == Scheme::Plain { "accuracy" } else { "F1" },
            sentences: comparison.sentences,
            units: comparison.units,
            baseline: baseline(comparison),
            rows: HEADS.map(row).into(),
            columns: columns.iter().map(|&name| name.to_owned()).collect(),
        });
    }
    tables
}

impl Mean {
    fn of(scores: impl Iterator<Item = f64>) -> Option<Self> {
        let scores: Vec<f64> = scores.collect();
        let seeds = scores.len();
        let (low, high) = (scores.iter().copied().fold(f64::MAX, f64::min), scores.iter().copied().fold(0.0, f64::max));
        (seeds > 0).then(|| Self { mean: scores.iter().sum::<f64>() / seeds as f64, low, high, seeds })
    }
}

impl Table {
    /// The mean scores on one encoder by head.
    fn column(&self, encoder: &str) -> Vec<(&'static str, f64)> {
        let Some(column) = self.columns.iter().position(|name| name == encoder) else { return Vec::new() };
        self.rows.iter().filter_map(|(head, row)| Some((*head, row[column]?.mean))).collect()
    }

    fn spreads(&self) -> Vec<Spread> {
        let spread = |encoder: &String| {
            let scores = self.column(encoder);
            let by_score = |a: &&(&str, f64), b: &&(&str, f64)| a.1.total_cmp(&b.1);
            let (low, high) = (scores.iter().min_by(by_score)?.1, scores.iter().max_by(by_score)?);
            (scores.len() > 1).then(|| Spread {
                task: self.task.clone(),
                file: self.file.clone(),
                encoder: encoder.clone(),
                heads: scores.len(),
                low,
                high: high.1,
                best: high.0,
            })
        };
        self.columns.iter().filter_map(spread).collect()
    }
}

fn claims(matrix: &Matrix, tables: &[Table]) -> Vec<Compared> {
    let compare = |claim: &Claim, table: &Table| {
        let than = table.column(&claim.than);
        let pairs: Vec<f64> = table
            .column(&claim.better)
            .iter()
            .filter_map(|(head, better)| Some(better - than.iter().find(|(other, _)| other == head)?.1))
            .collect();
        (!pairs.is_empty()).then(|| Compared {
            claim: claim.claim.clone(),
            better: claim.better.clone(),
            than: claim.than.clone(),
            task: table.task.clone(),
            file: table.file.clone(),
            heads: pairs.len(),
            won: pairs.iter().filter(|&&difference| difference > 0.0).count(),
            difference: pairs.iter().sum::<f64>() / pairs.len() as f64,
        })
    };
    matrix.claims.iter().flat_map(|claim| tables.iter().filter_map(move |table| compare(claim, table))).collect()
}

fn decoding(matrix: &Matrix, found: &[Found], columns: &[&str]) -> Vec<Times> {
    let of_task = |task: &crate::config::TaskConfig| {
        let own: Vec<&Found> = found.iter().filter(|f| f.cell.task == task.name && f.decoding.is_some()).collect();
        let Decoding { file, sentences, units, rounds, threads, machine } = own.first()?.decoding.clone()?;
        let mean = |head: HeadKind, encoder: &str| {
            let same = own.iter().filter(|f| f.cell.head == head && f.cell.encoder == encoder);
            Some(Mean::of(same.filter_map(|f| Some(f.decoding.as_ref()?.median())))?.mean)
        };
        let row = |head: HeadKind| (head.title(), columns.iter().map(|encoder| mean(head, encoder)).collect());
        Some(Times {
            task: task.name.clone(),
            file,
            sentences,
            units,
            rounds: rounds.len(),
            threads,
            machine,
            figure: format!("decoding-{}.svg", task.name),
            rows: HEADS.map(row).into(),
        })
    };
    matrix.tasks.iter().filter_map(of_task).collect()
}

impl Times {
    fn draw(&self, columns: &[&str]) -> Result<String> {
        let groups: Vec<&str> = self.rows.iter().map(|(head, _)| *head).collect();
        let times = |column: usize| self.rows.iter().map(|(_, row)| row[column]).collect::<Vec<_>>();
        let series = columns.iter().enumerate().map(|(i, &name)| (name, times(i)));
        let series = series.filter(|(_, times)| times.iter().any(Option::is_some)).collect();
        let title = format!("Decoding time, {}", self.task);
        Bars { title: &title, unit: "milliseconds a sentence", groups: &groups, series }.draw()
    }
}
