//! Learning curves as PNG pictures: mean and shaded interval, one colour an algorithm.
//!
//! [`Curve::from_runs`] turns the episodic returns of one or several seeds into a curve,
//! [`learning_curves`] draws curves side by side. The font is part of the program, so that
//! pictures come out the same on every machine and nothing needs to be installed.

use anyhow::{Context, Result, anyhow};
use envs::canvas::palette;
use image::{RgbImage, imageops};
use plotters::{
    coord::{
        Shift,
        ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter},
    },
    element::DashedPathElement,
    prelude::*,
    style::{
        FontStyle, register_font,
        text_anchor::{HPos, Pos, VPos},
    },
};
use rand::RngExt;
use std::{
    io::{Cursor, Write},
    ops::Range,
    path::Path,
    sync::LazyLock,
};

/// Returns over training of one algorithm on one environment. The four series have equal lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Entry in the legend.
    pub label: String,
    /// Environment steps, ascending.
    pub xs: Vec<f64>,
    /// The line.
    pub mean: Vec<f64>,
    /// Lower edge of the shaded band.
    pub low: Vec<f64>,
    /// Upper edge of the shaded band.
    pub high: Vec<f64>,
}

/// Episodes that end within this part of the run's length around a point are averaged there.
const WINDOW: f64 = 0.05;

/// Resamples of the bootstrap. With the usual three to ten seeds the ends of the interval no
/// longer move visibly beyond a thousand.
const RESAMPLES: usize = 2_000;

impl Curve {
    /// A curve of `points` evenly spaced points from `runs`, one a seed, each a list of episodes
    /// `(environment step at which it ended, its return)` in any order. Numbers that are not
    /// finite and runs without episodes are left out.
    ///
    /// The points span the steps that every run covers. Each run is smoothed by a running mean:
    /// its value at a point is the mean return of the episodes that ended at most 2.5 % of that
    /// span before or after; where none did, the line between the two episodes around it.
    ///
    /// - Several runs: the mean over seeds, and the 95 % bootstrap interval of that mean
    ///   (percentiles of 2,000 resamples of the seeds; the same data always give the same
    ///   interval). The label becomes `label (5 seeds, 95% CI)`.
    /// - One run: the band reaches from the 10 % to the 90 % quantile of the returns that are
    ///   averaged, or to their mean where that lies outside. The label becomes
    ///   `label (1 seed, 10–90% of episodes)`.
    pub fn from_runs(label: impl Into<String>, runs: &[Vec<(f64, f64)>], points: usize) -> Self {
        let label = label.into();
        let runs: Vec<Vec<(f64, f64)>> = runs.iter().map(|run| tidy(run)).filter(|r| !r.is_empty()).collect();
        if runs.is_empty() || points == 0 {
            return Self { label, xs: vec![], mean: vec![], low: vec![], high: vec![] };
        }
        let start = runs.iter().map(|run| run[0].0).fold(f64::MIN, f64::max);
        let end = runs.iter().map(|run| run[run.len() - 1].0).fold(f64::MAX, f64::min);
        let xs = if start < end && points > 1 {
            let last = (points - 1) as f64;
            (0..points).map(|i| start + (end - start) * (i as f64 / last)).collect()
        } else {
            vec![start.max(end)]
        };
        let half_window = (end - start).max(0.0) * WINDOW / 2.0;

        if let [run] = &runs[..] {
            let label = format!("{label} (1 seed, 10–90% of episodes)");
            let mut curve = Self { label, xs, mean: vec![], low: vec![], high: vec![] };
            let mut returns = Vec::new();
            for &x in &curve.xs {
                returns.clear();
                returns.extend(episodes_around(run, x, half_window).iter().map(|episode| episode.1));
                let mean = running_mean(run, x, half_window);
                if returns.is_empty() {
                    returns.push(mean);
                }
                returns.sort_unstable_by(f64::total_cmp);
                curve.mean.push(mean);
                curve.low.push(quantile(&returns, 0.1).min(mean));
                curve.high.push(quantile(&returns, 0.9).max(mean));
            }
            return curve;
        }

        let num_seeds = runs.len();
        let label = format!("{label} ({num_seeds} seeds, 95% CI)");
        // One set of resampled seeds for all points: the band is as smooth as the curves are.
        let mut rng = envs::rng(0, 0);
        let picks: Vec<usize> = (0..RESAMPLES * num_seeds).map(|_| rng.random_range(0..num_seeds)).collect();
        let mut curve = Self { label, xs, mean: vec![], low: vec![], high: vec![] };
        for &x in &curve.xs {
            let values: Vec<f64> = runs.iter().map(|run| running_mean(run, x, half_window)).collect();
            let mut means: Vec<f64> = picks
                .chunks_exact(num_seeds)
                .map(|seeds| seeds.iter().map(|&seed| values[seed]).sum::<f64>() / num_seeds as f64)
                .collect();
            means.sort_unstable_by(f64::total_cmp);
            curve.mean.push(values.iter().sum::<f64>() / num_seeds as f64);
            curve.low.push(quantile(&means, 0.025));
            curve.high.push(quantile(&means, 0.975));
        }
        curve
    }

    /// The points that can be drawn, as `(x, low, mean, high)`: a band edge that is not a number
    /// falls back to the mean, a point whose step or mean is not one is dropped.
    fn drawable(&self) -> Vec<(f64, f64, f64, f64)> {
        let edge = |series: &[f64], i: usize, mean: f64| {
            series.get(i).copied().filter(|v| is_drawable(*v)).unwrap_or(mean)
        };
        self.xs
            .iter()
            .zip(&self.mean)
            .enumerate()
            .filter(|(_, (x, mean))| is_drawable(**x) && is_drawable(**mean))
            .map(|(i, (&x, &mean))| (x, edge(&self.low, i, mean), mean, edge(&self.high, i, mean)))
            .collect()
    }
}

/// Finite, and small enough that sums and differences of a few thousand such numbers are too.
fn is_drawable(value: f64) -> bool {
    value.abs() < 1e300
}

/// The usable episodes of a run in the order in which they ended.
fn tidy(run: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut run: Vec<_> = run.iter().copied().filter(|(x, y)| is_drawable(*x) && is_drawable(*y)).collect();
    run.sort_by(|a, b| a.0.total_cmp(&b.0));
    run
}

/// The episodes that ended at most `half_window` steps from `x`.
fn episodes_around(run: &[(f64, f64)], x: f64, half_window: f64) -> &[(f64, f64)] {
    let first = run.partition_point(|episode| episode.0 < x - half_window);
    let end = run.partition_point(|episode| episode.0 <= x + half_window);
    &run[first..end]
}

/// Mean return around `x`; between two distant episodes, the straight line from one to the other.
fn running_mean(run: &[(f64, f64)], x: f64, half_window: f64) -> f64 {
    let window = episodes_around(run, x, half_window);
    if !window.is_empty() {
        return window.iter().map(|episode| episode.1).sum::<f64>() / window.len() as f64;
    }
    let next = run.partition_point(|episode| episode.0 < x);
    match (next.checked_sub(1).map(|i| run[i]), run.get(next)) {
        (Some((x0, y0)), Some(&(x1, y1))) => y0 + (y1 - y0) * ((x - x0) / (x1 - x0)),
        (Some((_, y)), None) | (None, Some(&(_, y))) => y,
        (None, None) => f64::NAN,
    }
}

/// The `p`-quantile of ascending values, linear between neighbours (type 7 of Hyndman & Fan 1996,
/// NumPy's default).
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let position = p * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

/// Size of a picture in points; all lengths below are in these.
const SIZE: (u32, u32) = (900, 560);
/// Pixels a point in the file: sharp on high-density screens and in print.
const PIXELS_PER_POINT: u32 = 2;
/// Pixels drawn for each pixel of the file, in either direction, to smooth edges.
const OVERSAMPLING: u32 = 2;
const SCALE: u32 = PIXELS_PER_POINT * OVERSAMPLING;

const MARGIN: i32 = 20;
const TITLE_HEIGHT: i32 = 34;
const LEGEND_ROW_HEIGHT: i32 = 24;
const SWATCH_WIDTH: i32 = 24;
const TITLE_SIZE: i32 = 24;
const TEXT_SIZE: i32 = 16;

const TEXT_COLOR: RGBColor = RGBColor(40, 40, 40);
const AXIS_COLOR: RGBColor = RGBColor(120, 120, 120);
const GRID_COLOR: RGBColor = RGBColor(228, 228, 228);
const REFERENCE_COLOR: RGBColor = RGBColor(90, 90, 90);

/// Okabe & Ito's palette without yellow, which is hard to see on white.
const CURVE_COLORS: [envs::canvas::Color; 7] = [
    palette::BLUE,
    palette::VERMILLION,
    palette::GREEN,
    palette::PURPLE,
    palette::ORANGE,
    palette::SKY,
    palette::BLACK,
];

/// Name under which the embedded font is known to plotters.
const FONT: &str = "plot";

static FONT_REGISTERED: LazyLock<bool> =
    LazyLock::new(|| register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_ok());

/// A part of the picture, in pixels.
type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Draws `curves` over environment steps to a PNG file of 1800 × 1120 pixels, with a dashed
/// horizontal line at `reference` (value, label) if there is one. The file appears whole or not at
/// all. Points that are not finite are left out; without any the picture says "no data".
pub fn learning_curves(
    path: &Path,
    title: &str,
    y_label: &str,
    curves: &[Curve],
    reference: Option<(f64, &str)>,
) -> Result<()> {
    let size = (SIZE.0 * SCALE, SIZE.1 * SCALE);
    let mut pixels = vec![u8::MAX; (size.0 * size.1 * 3) as usize];
    let area = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
    draw(&area, title, y_label, curves, reference)
        .with_context(|| format!("{}: cannot draw the plot", path.display()))?;
    drop(area);

    let picture =
        RgbImage::from_raw(size.0, size.1, pixels).context("a plot's size does not match its bytes")?;
    let (width, height) = (SIZE.0 * PIXELS_PER_POINT, SIZE.1 * PIXELS_PER_POINT);
    let picture = imageops::thumbnail(&picture, width, height);
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png)?;
    replace_file(path, png.get_ref())
}

/// One line of the legend.
struct LegendEntry<'a> {
    label: &'a str,
    color: RGBColor,
    dashed: bool,
    /// With a shaded band around the line.
    banded: bool,
}

fn draw(
    area: &Area<'_>,
    title: &str,
    y_label: &str,
    curves: &[Curve],
    reference: Option<(f64, &str)>,
) -> Result<()> {
    if !*FONT_REGISTERED {
        return Err(anyhow!("the embedded font cannot be read"));
    }
    let reference = reference.filter(|(value, _)| is_drawable(*value));
    let series: Vec<Vec<(f64, f64, f64, f64)>> = curves.iter().map(Curve::drawable).collect();
    let points = || series.iter().flatten();

    let x_axis = Axis::steps(points().map(|point| point.0));
    let values = points().flat_map(|&(_, low, mean, high)| [low, mean, high]);
    let y_axis = Axis::padded(values.chain(reference.map(|(value, _)| value)));

    let text = text_style(TEXT_SIZE);
    let mut y_tick_width = 0;
    for &tick in &y_axis.ticks {
        y_tick_width = y_tick_width.max(area.estimate_text_size(&y_axis.label(tick), &text)?.0 as i32);
    }
    // Labels, their distance from the axis, and the axis' own name turned by 90 degrees.
    let left = px(MARGIN);
    let y_label_area = y_tick_width + px(20 + TEXT_SIZE);

    let mut legend: Vec<LegendEntry<'_>> = curves
        .iter()
        .enumerate()
        .map(|(i, curve)| LegendEntry {
            label: &curve.label,
            color: curve_color(i),
            dashed: is_dashed(i),
            banded: true,
        })
        .collect();
    if let Some((_, label)) = reference {
        legend.push(LegendEntry { label, color: REFERENCE_COLOR, dashed: true, banded: false });
    }

    // Title and legend stand above the plot, flush with its left edge: there they hide no data.
    let plot_left = left + y_label_area;
    area.draw(&Text::new(title, (plot_left, px(MARGIN + TITLE_HEIGHT / 2 - 6)), text_style(TITLE_SIZE)))?;
    let legend_top = px(MARGIN + TITLE_HEIGHT);
    let rows = draw_legend(area, (plot_left, legend_top), &legend)?;
    let plot_top = legend_top + rows * px(LEGEND_ROW_HEIGHT) + px(8);

    let (_, plot) = area.split_vertically(plot_top);
    let mut chart = ChartBuilder::on(&plot)
        .margin_left(left)
        .margin_right(px(MARGIN + 8))
        .margin_bottom(px(MARGIN - 6))
        .x_label_area_size(px(52))
        .y_label_area_size(y_label_area)
        .build_cartesian_2d(x_axis.clone(), y_axis.clone())?;
    chart
        .configure_mesh()
        .x_desc("environment steps")
        .y_desc(y_label)
        .label_style(text.clone())
        .axis_desc_style(text.clone())
        .axis_style(AXIS_COLOR.stroke_width(px(1) as u32))
        .bold_line_style(GRID_COLOR.stroke_width(px(1) as u32))
        .light_line_style(TRANSPARENT)
        .set_all_tick_mark_size(px(5))
        .draw()?;

    if let Some((value, _)) = reference {
        let ends = [(x_axis.range.start, value), (x_axis.range.end, value)];
        chart.draw_series(dashed(ends.to_vec(), REFERENCE_COLOR, 1.5))?;
    }
    for (i, points) in series.iter().enumerate() {
        let upper = points.iter().map(|&(x, _, _, high)| (x, high));
        let lower = points.iter().rev().map(|&(x, low, _, _)| (x, low));
        let band: Vec<_> = upper.chain(lower).collect();
        if points.len() > 1 {
            chart.draw_series([Polygon::new(band, curve_color(i).mix(0.18).filled())])?;
        }
    }
    // Lines after all bands, so that no band dulls a line.
    for (i, points) in series.iter().enumerate() {
        let line: Vec<_> = points.iter().map(|&(x, _, mean, _)| (x, mean)).collect();
        match &line[..] {
            [] => {}
            [point] => {
                let marker = Circle::new(*point, px(5), curve_color(i).filled());
                chart.draw_series([marker])?;
            }
            _ if is_dashed(i) => {
                chart.draw_series(dashed(line, curve_color(i), 2.2))?;
            }
            _ => {
                chart.draw_series(LineSeries::new(line, stroke(curve_color(i), 2.2)))?;
            }
        }
    }
    if series.iter().all(Vec::is_empty) {
        let (x, y) = (&x_axis.range, &y_axis.range);
        let centre = ((x.start + x.end) / 2.0, (y.start + y.end) / 2.0);
        let style = text_style(TEXT_SIZE).pos(Pos::new(HPos::Center, VPos::Center));
        chart.draw_series([Text::new("no data", centre, style)])?;
    }
    area.present()?;
    Ok(())
}

/// Draws the legend from its top left corner on, in as many rows as it takes, and counts them.
fn draw_legend(area: &Area<'_>, (left, top): (i32, i32), entries: &[LegendEntry<'_>]) -> Result<i32> {
    let right = px(SIZE.0 as i32 - MARGIN);
    let style = text_style(TEXT_SIZE).pos(Pos::new(HPos::Left, VPos::Center));
    let (mut x, mut row) = (left, 0);
    for entry in entries {
        let text_width = area.estimate_text_size(entry.label, &style)?.0 as i32;
        let width = px(SWATCH_WIDTH + 8) + text_width;
        if x > left && x + width > right {
            (x, row) = (left, row + 1);
        }
        let y = top + row * px(LEGEND_ROW_HEIGHT) + px(LEGEND_ROW_HEIGHT / 2);
        if entry.banded {
            let corners = [(x, y - px(6)), (x + px(SWATCH_WIDTH), y + px(6))];
            area.draw(&Rectangle::new(corners, entry.color.mix(0.18).filled()))?;
        }
        let line = [(x, y), (x + px(SWATCH_WIDTH), y)];
        if entry.dashed {
            let style = stroke(entry.color, 2.0);
            area.draw(&DashedPathElement::new(line, px(6), px(4), style))?;
        } else {
            area.draw(&PathElement::new(line, stroke(entry.color, 2.5)))?;
        }
        area.draw(&Text::new(entry.label, (x + px(SWATCH_WIDTH + 8), y), style.clone()))?;
        x += width + px(22);
    }
    Ok(if entries.is_empty() { 0 } else { row + 1 })
}

/// Points to pixels.
fn px(points: i32) -> i32 {
    points * SCALE as i32
}

fn text_style(size: i32) -> TextStyle<'static> {
    (FONT, px(size)).into_font().color(&TEXT_COLOR)
}

/// A line `width` points thick.
fn stroke(color: RGBColor, width: f64) -> ShapeStyle {
    color.stroke_width((width * f64::from(SCALE)).round() as u32)
}

fn dashed(
    points: Vec<(f64, f64)>,
    color: RGBColor,
    width: f64,
) -> DashedLineSeries<std::vec::IntoIter<(f64, f64)>, i32> {
    DashedLineSeries::new(points, px(7), px(5), stroke(color, width))
}

fn curve_color(index: usize) -> RGBColor {
    let [r, g, b] = CURVE_COLORS[index % CURVE_COLORS.len()];
    RGBColor(r, g, b)
}

/// When the colours are used up they come again with dashes.
fn is_dashed(index: usize) -> bool {
    (index / CURVE_COLORS.len()) % 2 == 1
}

/// The range of an axis, where its ticks are and how they are written.
#[derive(Clone)]
struct Axis {
    range: Range<f64>,
    ticks: Vec<f64>,
    /// Distance between ticks.
    step: f64,
}

impl Axis {
    /// An axis for steps: from 0, unless some are negative, to the last one.
    fn steps(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = bounds(values.chain([0.0])).unwrap_or((0.0, 1.0));
        if high - low > 0.0 { Self::over(low..high) } else { Self::over(0.0..1.0) }
    }

    /// An axis for any values, with 5 % of room at either end; a constant is in the middle.
    fn padded(values: impl Iterator<Item = f64>) -> Self {
        let Some((low, high)) = bounds(values) else { return Self::over(0.0..1.0) };
        let largest = low.abs().max(high.abs());
        // Differences near the precision of the numbers are noise, and ticks would all read alike.
        let pad = if high - low > 1e-6 * largest {
            0.05 * (high - low)
        } else if largest > 0.0 {
            0.1 * largest
        } else {
            1.0
        };
        Self::over(low - pad..high + pad)
    }

    /// Ticks at multiples of 1, 2 or 5 times a power of ten, five to ten of them.
    fn over(range: Range<f64>) -> Self {
        let rough = (range.end - range.start) / 8.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|factor| factor * power)
            .into_iter()
            .find(|step| *step >= rough * (1.0 - 1e-9))
            .unwrap_or(10.0 * power);
        // Rounding must not lose a tick that lies exactly on an end of the range.
        let first = (range.start / step - 1e-6).ceil() as i64;
        let last = (range.end / step + 1e-6).floor() as i64;
        let ticks = (first..=last).map(|i| i as f64 * step).collect();
        Self { range, ticks, step }
    }

    /// A tick's label. All labels of an axis share unit and decimals: 0, 0.5M, 1.0M.
    fn label(&self, tick: f64) -> String {
        let largest = self.ticks.iter().fold(0.0, |largest: f64, tick| largest.max(tick.abs()));
        if tick == 0.0 {
            return "0".into();
        }
        let (unit, suffix) = match largest {
            1e9..1e13 => (1e9, "B"),
            1e6..1e9 => (1e6, "M"),
            1e4..1e6 => (1e3, "k"),
            _ => (1.0, ""),
        };
        let sign = if tick < 0.0 { "−" } else { "" };
        if !(1e-3..1e13).contains(&largest) {
            return format!("{sign}{:.1e}", tick.abs()).replace("e-", "e−");
        }
        let decimals = (-(self.step / unit * (1.0 + 1e-9)).log10().floor()).max(0.0) as usize;
        format!("{sign}{:.decimals$}{suffix}", tick.abs() / unit)
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let part = (value - self.range.start) / (self.range.end - self.range.start);
        first + (part * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Light points are the fine grid between the ticks; there is none.
        if hint.weight().allow_light_points() { vec![] } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        value.to_string()
    }

    fn format_ext(&self, value: &f64) -> String {
        self.label(*value)
    }
}

/// Smallest and largest value, if there are any.
fn bounds(mut values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let first = values.next()?;
    Some(values.fold((first, first), |(low, high), value| (low.min(value), high.max(value))))
}

/// Writes a file so that a reader, or a run killed meanwhile, finds the old one or the new one
/// but never a part: into a temporary file beside it, which then takes its name.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        // Readable for others as far as the user's umask allows: temporary files are private.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(dir)?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("{}: cannot be written", path.display()))
}
