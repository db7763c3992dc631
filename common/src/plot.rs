//! Learning curves as PNG pictures: mean and shaded interval, one colour an algorithm.
//!
//! [`Curve::from_runs`] turns the episodic returns of one or several seeds into a curve,
//! [`learning_curves`] draws curves side by side. The font is part of the program, so that
//! pictures come out the same on every machine and nothing needs to be installed.

use anyhow::{Context, Result, bail};
use envs::canvas::palette;
use image::{
    RgbImage,
    codecs::png::{CompressionType, FilterType, PngEncoder},
    imageops,
};
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
use std::{io::Write, ops::Range, path::Path, sync::LazyLock, vec::IntoIter};

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

/// Resamples of the bootstrap. Their randomness moves an end of the interval by about 1.5 % of its
/// width, √(0.025 · 0.975 / 2000) / φ(1.96) standard errors, which is less than a line is thick.
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
        let (runs, xs, half_window) = grid(runs, points);
        if xs.is_empty() {
            return Self { label, xs, mean: vec![], low: vec![], high: vec![] };
        }

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

    /// The smoothed returns of each run at the steps of [`Curve::from_runs`]: `[run][point]`, runs
    /// without usable episodes left out.
    pub fn of_each_run(runs: &[Vec<(f64, f64)>], points: usize) -> Vec<Vec<f64>> {
        let (runs, xs, half_window) = grid(runs, points);
        runs.iter().map(|run| xs.iter().map(|&x| running_mean(run, x, half_window)).collect()).collect()
    }

    /// The points that can be drawn: a band edge that is not a number falls back to the mean, a
    /// point whose step or mean is not one is dropped.
    fn drawable(&self) -> Series {
        let edge = |edges: &[f64], i: usize, mean: f64| {
            edges.get(i).copied().filter(|v| is_drawable(*v)).unwrap_or(mean)
        };
        let points = self.xs.iter().zip(&self.mean).enumerate();
        points
            .filter(|(_, (x, mean))| is_drawable(**x) && is_drawable(**mean))
            .map(|(i, (&x, &mean))| Point {
                x,
                low: edge(&self.low, i, mean),
                mean,
                high: edge(&self.high, i, mean),
            })
            .collect()
    }
}

/// One point of a curve and of its band; all numbers are finite.
struct Point {
    x: f64,
    low: f64,
    mean: f64,
    high: f64,
}

type Series = Vec<Point>;

/// Finite, and small enough that sums and differences of a few thousand such numbers are too.
fn is_drawable(value: f64) -> bool {
    value.abs() < 1e300
}

/// The usable episodes of a run in the order in which they ended.
fn tidy(run: &[(f64, f64)]) -> Episodes {
    let mut run: Vec<_> = run.iter().copied().filter(|(x, y)| is_drawable(*x) && is_drawable(*y)).collect();
    run.sort_by(|a, b| a.0.total_cmp(&b.0));
    run
}

/// A run: its episodes, (step, return).
type Episodes = Vec<(f64, f64)>;

/// The usable runs, `points` evenly spaced steps over what all of them cover, and half of the
/// window in which episodes are averaged.
fn grid(runs: &[Episodes], points: usize) -> (Vec<Episodes>, Vec<f64>, f64) {
    let runs: Vec<Episodes> = runs.iter().map(|run| tidy(run)).filter(|run| !run.is_empty()).collect();
    if runs.is_empty() || points == 0 {
        return (runs, vec![], 0.0);
    }
    let start = runs.iter().map(|run| run[0].0).fold(f64::MIN, f64::max);
    let end = runs.iter().map(|run| run[run.len() - 1].0).fold(f64::MAX, f64::min);
    let xs = if start < end && points > 1 {
        let last = (points - 1) as f64;
        (0..points).map(|i| start + (end - start) * (i as f64 / last)).collect()
    } else {
        vec![start.max(end)]
    };
    (runs, xs, (end - start).max(0.0) * WINDOW / 2.0)
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

/// Size of a picture in points, with a legend of one row; all lengths below are in points too.
const WIDTH: i32 = 900;
const HEIGHT: i32 = 560;
/// Pixels a point in the file: sharp on high-density screens and in print.
const PIXELS_PER_POINT: u32 = 2;
/// Pixels drawn for each pixel of the file, in either direction, to smooth edges.
const OVERSAMPLING: u32 = 2;

const MARGIN: i32 = 20;
const TITLE_HEIGHT: i32 = 34;
const TITLE_SIZE: i32 = 24;
const TEXT_SIZE: i32 = 16;
const LEGEND_ROW_HEIGHT: i32 = 24;
const LEGEND_GAP: i32 = 24;
const SWATCH_WIDTH: i32 = 24;
const LINE_WIDTH: f64 = 2.2;
const BAND_OPACITY: f64 = 0.18;

/// Pixels by which text centred on a point must be lowered to look centred: plotters centres the
/// box of the whole line, in which letters stand high.
const TEXT_SHIFT: i32 = px(2) + 1;

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

/// Draws `curves` over environment steps to a PNG file 1800 pixels wide, with a dashed horizontal
/// line at `reference` (value, label) if there is one. The file appears whole or not at all.
/// Points that are not finite are left out; without any the picture says "no data".
pub fn learning_curves(
    path: &Path,
    title: &str,
    y_label: &str,
    curves: &[Curve],
    reference: Option<(f64, &str)>,
) -> Result<()> {
    let mut png = Vec::new();
    // Flat colours compress best unfiltered.
    let encoder = PngEncoder::new_with_quality(&mut png, CompressionType::Best, FilterType::NoFilter);
    render(title, y_label, curves, reference)
        .and_then(|picture| Ok(picture.write_with_encoder(encoder)?))
        .with_context(|| format!("{}: cannot draw the plot", path.display()))?;
    replace_file(path, &png)
}

/// The picture that [`learning_curves`] writes.
fn render(title: &str, y_label: &str, curves: &[Curve], reference: Option<(f64, &str)>) -> Result<RgbImage> {
    if !*FONT_REGISTERED {
        bail!("the embedded font cannot be read");
    }
    let reference = reference.filter(|(value, _)| is_drawable(*value));
    let series: Vec<Series> = curves.iter().map(Curve::drawable).collect();
    let layout = Layout::new(&series, curves, reference)?;

    let (width, height) = (px(WIDTH) as u32, px(layout.height()) as u32);
    let mut pixels = vec![u8::MAX; (width * height * 3) as usize];
    let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
    draw(&area, &layout, (title, y_label), &series, reference)?;
    drop(area);

    let picture =
        RgbImage::from_raw(width, height, pixels).context("the picture's size is not its bytes'")?;
    Ok(imageops::thumbnail(&picture, width / OVERSAMPLING, height / OVERSAMPLING))
}

/// One entry of the legend.
struct LegendEntry<'a> {
    label: &'a str,
    color: RGBColor,
    dashed: bool,
    /// With a shaded band around the line.
    banded: bool,
}

/// The legend and where its entries go: left to right in one row if they fit, else in columns.
struct Legend<'a> {
    entries: Vec<LegendEntry<'a>>,
    /// Left edge of each entry in pixels from the legend's own, and its row.
    places: Vec<(i32, i32)>,
    rows: i32,
}

impl<'a> Legend<'a> {
    /// A legend for `curves` and the reference line, at most `width` pixels wide.
    fn new(curves: &'a [Curve], reference: Option<(f64, &'a str)>, width: i32) -> Result<Self> {
        let mut entries: Vec<LegendEntry<'a>> = curves
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
            entries.push(LegendEntry { label, color: REFERENCE_COLOR, dashed: true, banded: false });
        }
        let mut widths = Vec::with_capacity(entries.len());
        for entry in &entries {
            widths.push(px(SWATCH_WIDTH + 8) + text_width(entry.label)? + px(LEGEND_GAP));
        }
        // An entry takes whole columns, as wide as the widest curve's; the label of the reference
        // line may need more than one. In a single row, columns of one pixel waste no room.
        let end = width + px(LEGEND_GAP);
        let one_row = widths.iter().sum::<i32>() <= end;
        let column = if one_row { 1 } else { widths[..curves.len()].iter().copied().max().unwrap_or(1) };
        let mut places = Vec::with_capacity(entries.len());
        let (mut x, mut row) = (0, 0);
        for width in widths {
            if x > 0 && x + width > end {
                (x, row) = (0, row + 1);
            }
            places.push((x, row));
            x += (width + column - 1) / column * column;
        }
        let rows = places.last().map_or(0, |(_, row)| row + 1);
        Ok(Self { entries, places, rows })
    }

    /// Draws the legend with its top left corner at `(left, top)`.
    fn draw(&self, area: &Area<'_>, (left, top): (i32, i32)) -> Result<()> {
        let style = text_style(TEXT_SIZE).pos(Pos::new(HPos::Left, VPos::Center));
        for (entry, (x, row)) in self.entries.iter().zip(&self.places) {
            let x = left + x;
            let y = top + row * px(LEGEND_ROW_HEIGHT) + px(LEGEND_ROW_HEIGHT / 2);
            if entry.banded {
                let corners = [(x, y - px(6)), (x + px(SWATCH_WIDTH), y + px(6))];
                area.draw(&Rectangle::new(corners, entry.color.mix(BAND_OPACITY).filled()))?;
            }
            let line = [(x, y), (x + px(SWATCH_WIDTH), y)];
            if entry.dashed {
                area.draw(&DashedPathElement::new(line, px(6), px(3), stroke(entry.color, LINE_WIDTH)))?;
            } else {
                area.draw(&PathElement::new(line, stroke(entry.color, LINE_WIDTH)))?;
            }
            let text = (x + px(SWATCH_WIDTH + 8), y + TEXT_SHIFT);
            area.draw(&Text::new(entry.label, text, style.clone()))?;
        }
        Ok(())
    }
}

/// What goes where: computed first, since the picture's height depends on the legend's.
struct Layout<'a> {
    x_axis: Axis,
    y_axis: Axis,
    legend: Legend<'a>,
    /// Room for the labels of the y axis and its name, in pixels.
    y_label_area: i32,
}

impl<'a> Layout<'a> {
    fn new(series: &[Series], curves: &'a [Curve], reference: Option<(f64, &'a str)>) -> Result<Self> {
        let points = || series.iter().flatten();
        let x_axis = Axis::steps(points().map(|point| point.x));
        let values = points().flat_map(|point| [point.low, point.mean, point.high]);
        let y_axis = Axis::padded(values.chain(reference.map(|(value, _)| value)));

        let mut y_label_area = 0;
        for &tick in &y_axis.ticks {
            y_label_area = y_label_area.max(text_width(&y_axis.label(tick))?);
        }
        // Beside the labels stands the axis' name, turned by 90 degrees.
        y_label_area += px(20 + TEXT_SIZE);
        let legend = Legend::new(curves, reference, px(WIDTH - 2 * MARGIN) - y_label_area)?;
        Ok(Self { x_axis, y_axis, legend, y_label_area })
    }

    /// Height of the picture in points: the plot keeps its size however tall the legend is.
    fn height(&self) -> i32 {
        HEIGHT + (self.legend.rows - 1).max(0) * LEGEND_ROW_HEIGHT
    }
}

fn draw(
    area: &Area<'_>,
    layout: &Layout<'_>,
    (title, y_label): (&str, &str),
    series: &[Series],
    reference: Option<(f64, &str)>,
) -> Result<()> {
    let Layout { x_axis, y_axis, legend, y_label_area } = layout;

    // Title and legend stand above the plot, flush with its left edge: there they hide no data.
    let left = px(MARGIN) + y_label_area;
    area.draw(&Text::new(title, (left, px(MARGIN + 5)), text_style(TITLE_SIZE)))?;
    let legend_top = px(MARGIN + TITLE_HEIGHT);
    legend.draw(area, (left, legend_top))?;

    let (_, plot) = area.split_vertically(legend_top + px(legend.rows * LEGEND_ROW_HEIGHT + 8));
    let mut chart = ChartBuilder::on(&plot)
        .margin_left(px(MARGIN))
        .margin_right(px(MARGIN + 8))
        .margin_bottom(px(MARGIN - 6))
        .x_label_area_size(px(52))
        .y_label_area_size(*y_label_area)
        .build_cartesian_2d(x_axis.clone(), y_axis.clone())?;
    chart
        .configure_mesh()
        .x_desc("environment steps")
        .y_desc(y_label)
        .label_style(text_style(TEXT_SIZE))
        .axis_desc_style(text_style(TEXT_SIZE))
        .y_label_offset(TEXT_SHIFT)
        .axis_style(AXIS_COLOR.stroke_width(px(1) as u32))
        .bold_line_style(GRID_COLOR.stroke_width(px(1) as u32))
        .light_line_style(TRANSPARENT)
        .set_all_tick_mark_size(px(5))
        .draw()?;

    if let Some((value, _)) = reference {
        let ends = vec![(x_axis.range.start, value), (x_axis.range.end, value)];
        chart.draw_series(dashed(ends, stroke(REFERENCE_COLOR, 1.5)))?;
    }
    for (i, points) in series.iter().enumerate() {
        let upper = points.iter().map(|point| (point.x, point.high));
        let lower = points.iter().rev().map(|point| (point.x, point.low));
        if points.len() > 1 {
            let outline: Vec<_> = upper.chain(lower).collect();
            chart.draw_series([Polygon::new(outline, curve_color(i).mix(BAND_OPACITY).filled())])?;
        }
    }
    // Lines after all bands, so that no band dulls a line.
    for (i, points) in series.iter().enumerate() {
        let line: Vec<_> = points.iter().map(|point| (point.x, point.mean)).collect();
        let style = stroke(curve_color(i), LINE_WIDTH);
        match &line[..] {
            [] => {}
            [point] => {
                let dot = Circle::new(*point, px(5), curve_color(i).filled());
                chart.draw_series([dot])?;
            }
            _ if is_dashed(i) => {
                chart.draw_series(dashed(line, style))?;
            }
            _ => {
                chart.draw_series(LineSeries::new(line, style))?;
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

/// Points to pixels, before the picture is scaled down.
const fn px(points: i32) -> i32 {
    points * (PIXELS_PER_POINT * OVERSAMPLING) as i32
}

/// Pixels that `text` takes in the size of labels.
fn text_width(text: &str) -> Result<i32> {
    let (width, _) = (FONT, px(TEXT_SIZE)).into_font().box_size(text)?;
    Ok(width as i32)
}

fn text_style(size: i32) -> TextStyle<'static> {
    (FONT, px(size)).into_font().color(&TEXT_COLOR)
}

/// A line `width` points thick.
fn stroke(color: RGBColor, width: f64) -> ShapeStyle {
    color.stroke_width((width * f64::from(px(1))).round() as u32)
}

fn dashed(points: Vec<(f64, f64)>, style: ShapeStyle) -> DashedLineSeries<IntoIter<(f64, f64)>, i32> {
    DashedLineSeries::new(points, px(7), px(5), style)
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
        if high == low {
            return Self::over(0.0..1.0);
        }
        let axis = Self::over(low..high);
        // A run of 100k steps ends with an episode a little earlier; the axis ends at 100k.
        let next_tick = (high / axis.step).ceil() * axis.step;
        if next_tick - high < 0.03 * (high - low) { Self::over(low..next_tick) } else { axis }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const BLUE: [u8; 3] = palette::BLUE;

    fn line(label: &str, ys: &[f64]) -> Curve {
        let xs = (0..ys.len()).map(|i| i as f64 * 1000.0).collect();
        Curve { label: label.into(), xs, mean: ys.to_vec(), low: ys.to_vec(), high: ys.to_vec() }
    }

    fn picture(curves: &[Curve], reference: Option<(f64, &str)>) -> RgbImage {
        render("CartPole-v1", "episodic return", curves, reference).unwrap()
    }

    /// Pixels of exactly this colour inside the plot, legend and margins left out.
    fn plotted(picture: &RgbImage, color: [u8; 3]) -> Vec<(u32, u32)> {
        let inside = |x: u32, y: u32| x > 160 && y > 160 && y < picture.height() - 130;
        picture
            .enumerate_pixels()
            .filter(|(x, y, pixel)| inside(*x, *y) && pixel.0 == color)
            .map(|(x, y, _)| (x, y))
            .collect()
    }

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|tick| axis.label(*tick)).collect()
    }

    #[test]
    fn ticks_are_round_and_readable() {
        let over = |low: f64, high: f64| labels(&Axis::over(low..high));
        assert_eq!(over(0.0, 1.0), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(over(-25.0, 525.0), ["0", "100", "200", "300", "400", "500"]);
        assert_eq!(over(0.0, 5e5), ["0", "100k", "200k", "300k", "400k", "500k"]);
        assert_eq!(over(0.0, 1e6), ["0", "0.2M", "0.4M", "0.6M", "0.8M", "1.0M"]);
        assert_eq!(over(0.0, 1e7), ["0", "2M", "4M", "6M", "8M", "10M"]);
        assert_eq!(over(-1000.0, 10.0), ["−1000", "−800", "−600", "−400", "−200", "0"]);
        assert_eq!(over(499.9, 500.1).len(), 5);
        assert_eq!(over(499.9, 500.1)[2], "500.00");
        assert_eq!(over(0.0, 4e-6)[1], "5.0e−7");
        assert_eq!(over(0.0, 1e30)[1], "2.0e29");
    }

    #[test]
    fn ticks_never_crowd_and_labels_never_repeat() {
        let ends = [0.0, 1e-9, 0.3, 1.0, 7.0, 99.0, 12_345.0, 6e6, 3e9, 1e14, 1e200];
        for low in ends.iter().flat_map(|v| [*v, -*v]) {
            for high in ends.iter().flat_map(|v| [*v, -*v]).filter(|high| *high > low) {
                let axis = Axis::padded([low, high].into_iter());
                assert!((4..=10).contains(&axis.ticks.len()), "{low} to {high}: {:?}", axis.ticks);
                assert!(axis.ticks.iter().all(|tick| axis.range.contains(tick)));
                let mut labels = labels(&axis);
                labels.dedup();
                assert_eq!(labels.len(), axis.ticks.len(), "{low} to {high}: {labels:?}");
            }
        }
    }

    #[test]
    fn step_axis_starts_at_zero_and_ends_on_a_nearby_tick() {
        let axis = Axis::steps([20.0, 199_850.0].into_iter());
        assert_eq!(axis.range, 0.0..200_000.0);
        assert_eq!(axis.ticks.last(), Some(&200_000.0));
        // Too far from the next tick to leave that much of the plot empty.
        assert_eq!(Axis::steps([20.0, 170_000.0].into_iter()).range, 0.0..170_000.0);
    }

    #[test]
    fn axes_of_degenerate_values_have_a_width() {
        assert_eq!(Axis::padded([].into_iter()).range, 0.0..1.0);
        assert_eq!(Axis::padded([0.0, 0.0].into_iter()).range, -1.0..1.0);
        assert_eq!(Axis::padded([-500.0].into_iter()).range, -550.0..-450.0);
        assert!((Axis::padded([500.0, 500.0 + 1e-12].into_iter()).range.start - 450.0).abs() < 1e-9);
        assert_eq!(Axis::steps([].into_iter()).range, 0.0..1.0);
        assert_eq!(Axis::steps([0.0].into_iter()).range, 0.0..1.0);
    }

    #[test]
    fn quantiles_match_numpy() {
        // numpy.quantile([1, 2, 4, 8], q)
        let values = [1.0, 2.0, 4.0, 8.0];
        for (p, expected) in [(0.0, 1.0), (0.1, 1.3), (0.5, 3.0), (0.9, 6.8), (1.0, 8.0)] {
            approx::assert_relative_eq!(quantile(&values, p), expected, max_relative = 1e-12);
        }
        assert_eq!(quantile(&[3.0], 0.9), 3.0);
    }

    #[test]
    fn one_run_is_averaged_over_the_window() {
        // 1001 episodes, returns 0 and 10 in turn: every window averages to about 5.
        let run: Vec<_> = (0..=1000).map(|i| (f64::from(i) * 10.0, f64::from(i % 2) * 10.0)).collect();
        let curve = Curve::from_runs("PPO", &[run], 11);
        assert_eq!(curve.label, "PPO (1 seed, 10–90% of episodes)");
        assert_eq!(curve.xs, (0..11).map(|i| f64::from(i) * 1000.0).collect::<Vec<_>>());
        // The window at 5000 reaches from 4750 to 5250: 51 episodes, 475 to 525, 26 of them odd.
        approx::assert_relative_eq!(curve.mean[5], 260.0 / 51.0, max_relative = 1e-12);
        assert_eq!((curve.low[5], curve.high[5]), (0.0, 10.0));
        // At the start only its later half exists: episodes 0 to 25, 13 of them odd.
        approx::assert_relative_eq!(curve.mean[0], 5.0, max_relative = 1e-12);
    }

    #[test]
    fn distant_episodes_are_joined_by_a_line() {
        let curve = Curve::from_runs("PPO", &[vec![(1000.0, 50.0), (0.0, -50.0)]], 5);
        assert_eq!(curve.mean, [-50.0, -25.0, 0.0, 25.0, 50.0]);
        assert_eq!(curve.low, curve.mean);
        assert_eq!(curve.high, curve.mean);
    }

    #[test]
    fn seeds_are_averaged_where_all_have_data() {
        let run = |first: u32, last: u32, value: f64| -> Vec<(f64, f64)> {
            (first..=last).map(|i| (f64::from(i) * 10.0, value)).collect()
        };
        let runs = [run(0, 100, 1.0), run(10, 120, 2.0), run(5, 110, 6.0)];
        let curve = Curve::from_runs("PPO", &runs, 10);
        assert_eq!(curve.label, "PPO (3 seeds, 95% CI)");
        assert_eq!((curve.xs[0], curve.xs[9]), (100.0, 1000.0));
        for i in 0..10 {
            approx::assert_relative_eq!(curve.mean[i], 3.0, max_relative = 1e-12);
            // Of 27 equally likely resamples one is all 1 and one is all 6, 3.7 % each: the 2.5 %
            // and 97.5 % percentiles of their means are these two.
            assert_eq!((curve.low[i], curve.high[i]), (1.0, 6.0));
        }
        assert_eq!(curve, Curve::from_runs("PPO", &runs, 10), "the same data, another interval");
    }

    #[test]
    fn bootstrap_interval_has_the_width_theory_gives() {
        // 40 seeds with returns 30, 31, …, 69: standard deviation √((40² − 1) / 12) = 11.54, standard
        // error of the mean 11.54 / √40 = 1.825, so the interval is 49.5 ± 1.96 · 1.825.
        let runs: Vec<_> = (30..70).map(|value| vec![(0.0, value.into()), (100.0, value.into())]).collect();
        let curve = Curve::from_runs("PPO", &runs, 2);
        approx::assert_abs_diff_eq!(curve.mean[1], 49.5, epsilon = 1e-9);
        approx::assert_abs_diff_eq!(curve.mean[1] - curve.low[1], 3.577, epsilon = 0.25);
        approx::assert_abs_diff_eq!(curve.high[1] - curve.mean[1], 3.577, epsilon = 0.25);
    }

    #[test]
    fn unusable_episodes_are_left_out() {
        let noisy = vec![(0.0, 1.0), (f64::NAN, 5.0), (50.0, f64::INFINITY), (100.0, 1.0), (60.0, f64::NAN)];
        let curve = Curve::from_runs("PPO", &[noisy, vec![], vec![(1.0, f64::NAN)]], 3);
        assert_eq!(curve.label, "PPO (1 seed, 10–90% of episodes)");
        assert_eq!((curve.xs, curve.mean), (vec![0.0, 50.0, 100.0], vec![1.0; 3]));
        for curve in [
            Curve::from_runs("PPO", &[], 100),
            Curve::from_runs("PPO", &[vec![]], 100),
            Curve::from_runs("PPO", &[vec![(1.0, 1.0)]], 0),
        ] {
            assert_eq!((curve.xs.len(), curve.mean.len(), curve.low.len()), (0, 0, 0));
        }
        // Seeds that share no steps meet in one point.
        let curve = Curve::from_runs("PPO", &[vec![(10.0, 1.0)], vec![(20.0, 3.0)]], 100);
        assert_eq!((curve.xs, curve.mean), (vec![20.0], vec![2.0]));
    }

    #[test]
    fn a_curve_is_where_its_numbers_are() {
        let picture = picture(&[line("PPO", &[0.0, 100.0])], None);
        assert_eq!(picture.dimensions(), (1800, 1120));
        let blue = plotted(&picture, BLUE);
        let (first, last) = (*blue.iter().min().unwrap(), *blue.iter().max().unwrap());
        assert!(first.0 < 200 && last.0 > 1700, "from {first:?} to {last:?}");
        assert!(first.1 > 900 && last.1 < 250, "from {first:?} to {last:?}");
        // Half-way up at half-way along, and nothing off the diagonal.
        for (x, y) in blue {
            let along = f64::from(x - first.0) / f64::from(last.0 - first.0);
            let up = f64::from(first.1 - y.min(first.1)) / f64::from(first.1 - last.1);
            assert!((along - up).abs() < 0.01, "({x}, {y})");
        }
    }

    #[test]
    fn the_reference_line_is_dashed_level_and_in_view() {
        let grey = [REFERENCE_COLOR.0, REFERENCE_COLOR.1, REFERENCE_COLOR.2];
        // Far above the curve: the axis has to reach up to it.
        let picture = picture(&[line("PPO", &[0.0, 100.0])], Some((475.0, "solved: 475")));
        let pixels = plotted(&picture, grey);
        let (top, bottom) = (pixels.iter().map(|p| p.1).min(), pixels.iter().map(|p| p.1).max());
        assert!(bottom.unwrap() - top.unwrap() <= 3, "from {top:?} to {bottom:?}");
        let columns: std::collections::HashSet<_> = pixels.iter().map(|p| p.0).collect();
        assert!((700..1300).contains(&columns.len()), "{} of 1600 columns", columns.len());
    }

    #[test]
    fn a_tall_legend_makes_the_picture_taller() {
        let curves: Vec<_> = (0..60).map(|i| line(&format!("algorithm {i}"), &[0.0, i.into()])).collect();
        let picture = picture(&curves, Some((1e3, "a long label, ".repeat(20).as_str())));
        assert_eq!(picture.width(), 1800);
        assert!(picture.height() > 1120);
        assert!(!plotted(&picture, BLUE).is_empty());
    }

    #[test]
    fn degenerate_curves_are_drawn_without_a_panic() {
        let inf = f64::INFINITY;
        let ragged = Curve {
            label: String::new(),
            xs: vec![1.0, 2.0, 3.0],
            mean: vec![1.0],
            low: vec![],
            high: vec![],
        };
        let edges = Curve { low: vec![f64::NAN, -inf], high: vec![inf, 2.0], ..line("é…", &[1.0, 1.5]) };
        for curves in [
            vec![],
            vec![line("empty", &[])],
            vec![line("", &[f64::NAN, inf, -inf])],
            vec![line("zero", &[0.0; 5])],
            vec![line("huge", &[1e299, -1e299]), line("tiny", &[1e-300, 2e-300])],
            vec![line("negative", &[-1500.0, -200.0])],
            vec![Curve { xs: vec![-5.0, -5.0], ..line("negative steps", &[1.0, 2.0]) }],
            vec![ragged, edges],
        ] {
            for reference in [None, Some((f64::NAN, "nothing")), Some((-3.0, ""))] {
                assert_eq!(picture(&curves, reference).dimensions(), (1800, 1120));
            }
        }
        // One point is a dot.
        let dot = plotted(&picture(&[line("PPO", &[1.0, f64::NAN])], None), BLUE);
        assert!(dot.len() > 100, "{} pixels", dot.len());
        let all_nan = picture(&[line("PPO", &[f64::NAN; 3])], None);
        assert!(plotted(&all_nan, BLUE).is_empty());
    }

    #[test]
    fn files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("learning_curve.png");
        fs::write(&path, "an older file").unwrap();
        learning_curves(&path, "CartPole-v1", "episodic return", &[line("PPO", &[1.0, 2.0])], None).unwrap();
        assert_eq!(image::image_dimensions(&path).unwrap(), (1800, 1120));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left behind");

        let nowhere = dir.path().join("missing").join("learning_curve.png");
        let error = learning_curves(&nowhere, "", "", &[], None).unwrap_err().to_string();
        assert!(error.contains("learning_curve.png: cannot be written"), "{error}");
    }
}
