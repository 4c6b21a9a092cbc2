//! The curves of a run as one SVG file: a panel for every measure, training and held-out data in it.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::metrics::{Part, Record};

/// Where they go.
pub const FILE: &str = "curves.svg";

/// The measures that are drawn, where there are any, with their titles.
const PANELS: [(&str, &str); 9] = [
    ("loss", "loss"),
    ("masked_loss", "loss on masked tokens"),
    ("masked_accuracy", "accuracy on masked tokens"),
    ("replaced_loss", "loss on replaced tokens"),
    ("replaced_f1", "F1 on replaced tokens"),
    ("replaced_share", "share of replaced tokens"),
    ("learning_rate", "learning rate"),
    ("gradient_norm", "norm of the gradient"),
    ("tokens_per_second", "tokens a second"),
];

/// Panels in a row.
const COLUMNS: usize = 3;
/// Size of a panel in pixels.
const PANEL: (u32, u32) = (420, 260);

type Line = Vec<(f64, f64)>;

/// Draws the records of a run.
///
/// # Errors
/// When the figure cannot be made.
pub fn draw(records: &[Record]) -> Result<String> {
    let panels: Vec<(&str, [Line; 2])> = PANELS
        .iter()
        .map(|(name, title)| (*title, [Part::Train, Part::HeldOut].map(|part| line(records, part, name))))
        .filter(|(_, lines)| lines.iter().any(|line| line.len() > 1))
        .collect();
    let rows = panels.len().div_ceil(COLUMNS).max(1);
    let mut svg = String::new();
    {
        let size = (PANEL.0 * COLUMNS as u32, PANEL.1 * rows as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let failed = |e: &dyn std::fmt::Display| anyhow!("cannot draw the curves: {e}");
        root.fill(&WHITE).map_err(|e| failed(&e))?;
        for ((title, lines), area) in panels.iter().zip(root.split_evenly((rows, COLUMNS))) {
            panel(&area, title, lines).map_err(|e| failed(&e))?;
        }
        root.present().map_err(|e| failed(&e))?;
    }
    Ok(svg)
}

fn line(records: &[Record], part: Part, name: &str) -> Line {
    let point = |record: &Record| Some((record.step as f64, *record.values.get(name)?));
    records.iter().filter(|record| record.part == part).filter_map(point).collect()
}

fn panel<DB: DrawingBackend>(
    area: &DrawingArea<DB, plotters::coord::Shift>,
    title: &str,
    lines: &[Line; 2],
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let points = || lines.iter().flatten();
    let last = points().map(|&(step, _)| step).fold(1.0, f64::max);
    let (low, high) = points().fold((f64::MAX, f64::MIN), |(low, high), &(_, y)| (low.min(y), high.max(y)));
    let margin = ((high - low) * 0.05).max(high.abs() * 1e-3).max(1e-9);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..last, low - margin..high + margin)?;
    let number =
        |y: &f64| if y.abs() < 1e-3 && *y != 0.0 { format!("{y:.1e}") } else { format!("{}", (y * 1e4).round() / 1e4) };
    chart
        .configure_mesh()
        .x_labels(5)
        .y_labels(5)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&number)
        .light_line_style(WHITE)
        .draw()?;
    for (line, (name, colour)) in lines.iter().zip([("train", BLUE), ("held out", RED)]) {
        if line.is_empty() {
            continue;
        }
        let series = chart.draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(1)))?;
        series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 12, y)], colour));
    }
    chart.configure_series_labels().border_style(BLACK.mix(0.3)).background_style(WHITE.mix(0.8)).draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_has_a_panel_and_each_part_a_line() {
        let record = |step, part, loss| Record { step, part, values: [("loss".to_owned(), loss)].into() };
        let records = [
            record(1, Part::Train, 3.0),
            record(2, Part::Train, 2.0),
            record(1, Part::HeldOut, 3.5),
            record(2, Part::HeldOut, 2.5),
        ];
        let svg = draw(&records).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("loss").count(), 1);
        assert_eq!((svg.matches("held out").count(), svg.matches("train").count()), (1, 1));
        assert!(!svg.contains("accuracy"));
    }
}
