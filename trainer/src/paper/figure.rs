//! Grouped bars as SVG, as in Figures 4 and 5 of the paper.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

const SIZE: (u32, u32) = (960, 360);
/// The share of a group's width that its bars fill.
const FILLED: f64 = 0.8;

/// A bar for every group and series; `None` where nothing was measured.
pub(super) struct Bars<'a> {
    pub title: &'a str,
    /// Unit of the values.
    pub unit: &'a str,
    /// Names of the groups, along the axis.
    pub groups: &'a [&'a str],
    /// Name and values of each series.
    pub series: Vec<(&'a str, Vec<Option<f64>>)>,
}

impl Bars<'_> {
    pub(super) fn draw(&self) -> Result<String> {
        let mut svg = String::new();
        self.on(&SVGBackend::with_string(&mut svg, SIZE).into_drawing_area())
            .map_err(|e| anyhow!("cannot draw {:?}: {e}", self.title))?;
        Ok(svg)
    }

    fn on<DB: DrawingBackend>(
        &self,
        area: &DrawingArea<DB, plotters::coord::Shift>,
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        area.fill(&WHITE)?;
        let highest = self.series.iter().flat_map(|(_, values)| values).flatten().fold(0.0, |a: f64, &b| a.max(b));
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(28)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..self.groups.len() as f64, 0.0..highest * 1.1)?;
        let name = |x: &f64| {
            let group = (x - 0.5).round();
            if (x - 0.5 - group).abs() > 1e-6 {
                return String::new();
            }
            self.groups.get(group as usize).copied().unwrap_or_default().to_owned()
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(2 * self.groups.len() + 1)
            .x_label_formatter(&name)
            .y_desc(self.unit)
            .light_line_style(WHITE)
            .draw()?;
        let width = FILLED / self.series.len() as f64;
        for (i, (name, values)) in self.series.iter().enumerate() {
            let colour = Palette99::pick(i).to_rgba();
            let left = |group: usize| group as f64 + (1.0 - FILLED) / 2.0 + i as f64 * width;
            let bar = |(group, value): (usize, &Option<f64>)| {
                value.map(|value| {
                    Rectangle::new([(left(group), 0.0), (left(group) + width * 0.9, value)], colour.filled())
                })
            };
            chart
                .draw_series(values.iter().enumerate().filter_map(bar))?
                .label(*name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
        }
        chart.configure_series_labels().border_style(BLACK.mix(0.3)).background_style(WHITE.mix(0.8)).draw()?;
        area.present()
    }
}
