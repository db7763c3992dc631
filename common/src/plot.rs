//! Learning curves as PNG pictures: mean and shaded interval, one colour an algorithm.
//!
//! [`Curve::of_run`] turns the episodic returns of a run into a curve, [`learning_curves`] draws
//! curves side by side, [`Chart`] curves over anything, with published numbers beside them, and
//! [`Heatmap`] tables. The font is part of the program, so that pictures come out the same on every
//! machine and nothing needs to be installed.

mod heatmap;

pub use heatmap::{Heatmap, Panel};

use crate::write_atomically::write_atomically;
use anyhow::{Context, Result, bail};
use envs::canvas::palette;
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
use std::{ops::Range, path::Path, sync::LazyLock, vec::IntoIter};

/// Returns over training of one algorithm on one environment, or one number over another. The four
/// series have equal lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Entry in the legend.
    pub label: String,
    /// Environment steps, ascending; or what else the axis shows.
    pub xs: Vec<f64>,
    /// The line.
    pub mean: Vec<f64>,
    /// Lower edge of the shaded band.
    pub low: Vec<f64>,
    /// Upper edge of the shaded band.
    pub high: Vec<f64>,
}

/// Parts of a run whose episodes are averaged.
const PARTS: usize = 100;

impl Curve {
    /// The curve of one run, a list of `(environment step at which an episode ended, its return)`: the
    /// mean return of the episodes in each hundredth of the run in which any ended, and the band from
    /// their 10 % to their 90 % quantile. The label becomes `label (1 seed, 10–90% of episodes)`.
    pub fn of_run(label: &str, episodes: &[(u64, f64)]) -> Self {
        let label = format!("{label} (1 seed, 10–90% of episodes)");
        let mut curve = Self { label, xs: vec![], mean: vec![], low: vec![], high: vec![] };
        let end = episodes.iter().map(|episode| episode.0).max().unwrap_or(0);
        let mut parts = vec![Vec::new(); PARTS];
        for &(step, value) in episodes {
            // Part i reaches from i / 100 of the run, exclusive, to (i + 1) / 100.
            let part = (step as f64 / end.max(1) as f64 * PARTS as f64).ceil() as usize;
            parts[part.saturating_sub(1)].push((step as f64, value));
        }
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
            let (steps, mut returns): (Vec<f64>, Vec<f64>) = part.iter().copied().unzip();
            returns.sort_unstable_by(f64::total_cmp);
            let quantile = |p: f64| returns[(p * (returns.len() - 1) as f64).round() as usize];
            let mean_return = mean(&returns);
            curve.xs.push(mean(&steps));
            curve.mean.push(mean_return);
            // A few outliers can pull the mean out of the band.
            curve.low.push(quantile(0.1).min(mean_return));
            curve.high.push(quantile(0.9).max(mean_return));
        }
        curve
    }

    /// The points that can be drawn: a band edge that is not a number falls back to the mean, a
    /// point whose step or mean is not one is dropped. On a logarithmic axis a number is its logarithm.
    fn drawable(&self, (log_x, log_y): (bool, bool)) -> Series {
        let edge = |edges: &[f64], i: usize, mean: f64| {
            edges.get(i).map(|&v| along(v, log_y)).filter(|v| is_drawable(*v)).unwrap_or(mean)
        };
        let points = self.xs.iter().zip(&self.mean).enumerate();
        points
            .map(|(i, (&x, &mean))| (i, (along(x, log_x), along(mean, log_y))))
            .filter(|(_, (x, mean))| is_drawable(*x) && is_drawable(*mean))
            .map(|(i, (x, mean))| Point {
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

/// Where `x` is on its axis: at log₁₀ x on a logarithmic one, which has no place for x ≤ 0.
fn along(x: f64, log: bool) -> f64 {
    if log { x.log10() } else { x }
}

/// Numbers from elsewhere, drawn in grey.
#[derive(Debug, Clone, PartialEq)]
pub enum Reference {
    /// A dashed line across the picture at this height.
    Level {
        /// Entry in the legend.
        label: String,
        /// Its height.
        value: f64,
    },
    /// Marks at these points, which differ from those of other references.
    Points {
        /// Entry in the legend.
        label: String,
        /// (x, y), by x.
        points: Vec<(f64, f64)>,
    },
}

impl Reference {
    fn label(&self) -> &str {
        match self {
            Self::Level { label, .. } | Self::Points { label, .. } => label,
        }
    }

    /// The points that can be drawn; of a level its height.
    fn drawable(&self, (log_x, log_y): (bool, bool)) -> Vec<(f64, f64)> {
        let points = match self {
            Self::Level { value, .. } => vec![(f64::NAN, along(*value, log_y))],
            Self::Points { points, .. } => {
                points.iter().map(|(x, y)| (along(*x, log_x), along(*y, log_y))).collect()
            }
        };
        let is_level = matches!(self, Self::Level { .. });
        points.into_iter().filter(|(x, y)| (is_level || is_drawable(*x)) && is_drawable(*y)).collect()
    }
}

/// A picture of curves and what they are compared with.
#[derive(Debug, Clone, Default)]
pub struct Chart<'a> {
    /// Above the picture.
    pub title: &'a str,
    /// Below the title, smaller; may be empty.
    pub note: &'a str,
    /// Name of the horizontal axis.
    pub x_label: &'a str,
    /// Name of the vertical axis.
    pub y_label: &'a str,
    /// Whether equal distances along the horizontal axis are equal ratios. Points at or below 0 are
    /// left out then.
    pub log_x: bool,
    /// The same of the vertical axis.
    pub log_y: bool,
    /// The part of the vertical axis that is shown; all of it by default.
    pub y_range: Option<(f64, f64)>,
    /// Lines and bands.
    pub curves: &'a [Curve],
    /// Whether each point of a curve is marked.
    pub dots: bool,
    /// What is drawn beside them.
    pub references: &'a [Reference],
}

impl Chart<'_> {
    /// Draws it to a PNG file 1800 pixels wide, with the legend above the curves. The file appears
    /// whole or not at all. Points that are not finite are left out; without any the picture says
    /// "no data".
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn draw(&self, path: &Path) -> Result<()> {
        let draw = || render(self)?.png();
        let png = draw().with_context(|| format!("{}: cannot draw the plot", path.display()))?;
        write_atomically(path, &png)
    }

    /// Which axes are logarithmic.
    fn logs(&self) -> (bool, bool) {
        (self.log_x, self.log_y)
    }
}

/// Finite, and small enough that sums and differences of a few thousand such numbers are too.
fn is_drawable(value: f64) -> bool {
    value.abs() < 1e300
}

/// Size of a picture in points, with a legend of one row; all lengths below are in points too.
const WIDTH: i32 = 900;
const HEIGHT: i32 = 560;
/// Pixels a point in the file: sharp on high-density screens and in print.
const PIXELS_PER_POINT: usize = 2;
/// Pixels drawn for each pixel of the file, in either direction, to smooth edges.
const OVERSAMPLING: usize = 2;

const MARGIN: i32 = 20;
const TITLE_HEIGHT: i32 = 34;
const TITLE_SIZE: i32 = 24;
const TEXT_SIZE: i32 = 16;
const NOTE_HEIGHT: i32 = 26;
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

/// Draws `curves` over environment steps as [`Chart::draw`] does, with a dashed horizontal line at
/// `reference` (value, label) if there is one. Where the environment variable PLAINRL_NO_PLOT is set,
/// nothing is drawn: to a run of milliseconds that nobody looks at, of which there may be thousands, the
/// picture is most of the work.
///
/// # Errors
/// A file that cannot be written.
pub fn learning_curves(
    path: &Path,
    title: &str,
    y_label: &str,
    curves: &[Curve],
    reference: Option<(f64, &str)>,
) -> Result<()> {
    if std::env::var_os("PLAINRL_NO_PLOT").is_some() {
        return Ok(());
    }
    let level = |(value, label): (f64, &str)| Reference::Level { label: label.into(), value };
    let references: Vec<Reference> = reference.map(level).into_iter().collect();
    let x_label = "environment steps";
    Chart { title, x_label, y_label, curves, references: &references, ..Default::default() }.draw(path)
}

/// A picture, `[height, width, 3]` bytes.
struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    /// The picture at `1 / factor` of its size: each pixel is the mean of a square of them.
    fn shrunk(&self, factor: usize) -> Self {
        let (width, height) = (self.width / factor, self.height / factor);
        let mut rgb = Vec::with_capacity(width * height * 3);
        let mut sums = vec![0_usize; width * 3];
        for rows in self.rgb.chunks_exact(self.width * 3 * factor).take(height) {
            sums.fill(0);
            for row in rows.chunks_exact(self.width * 3) {
                for (square, sum) in row.chunks_exact(3 * factor).zip(sums.chunks_exact_mut(3)) {
                    for pixel in square.chunks_exact(3) {
                        sum.iter_mut().zip(pixel).for_each(|(sum, channel)| *sum += usize::from(*channel));
                    }
                }
            }
            let count = factor * factor;
            rgb.extend(sums.iter().map(|sum| ((sum + count / 2) / count) as u8));
        }
        Self { width, height, rgb }
    }

    /// The bytes of a PNG file.
    fn png(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        // Flat colours compress best unfiltered.
        encoder.set_filter(png::Filter::NoFilter);
        encoder.set_compression(png::Compression::High);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.rgb)?;
        writer.finish()?;
        Ok(bytes)
    }
}

/// The picture that [`Chart::draw`] writes.
fn render(chart: &Chart<'_>) -> Result<Picture> {
    if !*FONT_REGISTERED {
        bail!("the embedded font cannot be read");
    }
    let series: Vec<Series> = chart.curves.iter().map(|curve| curve.drawable(chart.logs())).collect();
    let layout = Layout::new(chart, &series)?;

    let (width, height) = (px(WIDTH) as usize, px(layout.height()) as usize);
    let mut rgb = vec![u8::MAX; width * height * 3];
    let area = BitMapBackend::with_buffer(&mut rgb, (width as u32, height as u32)).into_drawing_area();
    draw(&area, chart, &layout, &series)?;
    drop(area);

    Ok(Picture { width, height, rgb }.shrunk(OVERSAMPLING))
}

/// One entry of the legend.
struct LegendEntry<'a> {
    label: &'a str,
    color: RGBColor,
    dashed: bool,
    /// With a shaded band around the line.
    banded: bool,
    /// Which mark lies on the line.
    mark: Option<usize>,
}

/// The legend and where its entries go: left to right in one row if they fit, else in columns.
struct Legend<'a> {
    entries: Vec<LegendEntry<'a>>,
    /// Left edge of each entry in pixels from the legend's own, and its row.
    places: Vec<(i32, i32)>,
    rows: i32,
}

impl<'a> Legend<'a> {
    /// A legend for the curves and references of `chart`, at most `width` pixels wide.
    fn new(chart: &Chart<'a>, width: i32) -> Result<Self> {
        let curves = chart.curves.iter().enumerate().map(|(i, curve)| LegendEntry {
            label: &curve.label,
            color: curve_color(i),
            dashed: is_dashed(i),
            banded: curve.low != curve.high,
            mark: None,
        });
        let references = chart.references.iter().enumerate().map(|(i, reference)| LegendEntry {
            label: reference.label(),
            color: REFERENCE_COLOR,
            dashed: true,
            banded: false,
            mark: matches!(reference, Reference::Points { .. }).then_some(i),
        });
        let entries: Vec<LegendEntry<'a>> = curves.chain(references).collect();
        let mut widths = Vec::with_capacity(entries.len());
        for entry in &entries {
            widths.push(px(SWATCH_WIDTH + 8) + text_width(entry.label)? + px(LEGEND_GAP));
        }
        // An entry takes whole columns, as wide as the widest curve's; the label of a reference
        // line may need more than one. In a single row, columns of one pixel waste no room.
        let end = width + px(LEGEND_GAP);
        let one_row = widths.iter().sum::<i32>() <= end;
        let widest = widths[..chart.curves.len()].iter().copied().max().unwrap_or(1);
        let column = if one_row { 1 } else { widest };
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
            if let Some(i) = entry.mark {
                area.draw(&mark(i, (x + px(SWATCH_WIDTH / 2), y)))?;
            } else if entry.dashed {
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
    /// Room for the note, in points.
    note_height: i32,
}

impl<'a> Layout<'a> {
    fn new(chart: &Chart<'a>, series: &[Series]) -> Result<Self> {
        let points = || series.iter().flatten();
        let beside = || chart.references.iter().flat_map(|reference| reference.drawable(chart.logs()));
        let xs = points().map(|point| point.x).chain(beside().map(|(x, _)| x).filter(|x| !x.is_nan()));
        let x_axis = if chart.log_x { Axis::powers(xs) } else { Axis::steps(xs) };
        let values = points().flat_map(|point| [point.low, point.mean, point.high]);
        let y_axis = match chart.y_range {
            Some((low, high)) if chart.log_y => Axis::powers([low.log10(), high.log10()].into_iter()),
            Some((low, high)) => Axis::over(low..high),
            None if chart.log_y => Axis::powers(values.chain(beside().map(|(_, y)| y))),
            None => Axis::padded(values.chain(beside().map(|(_, y)| y))),
        };

        let mut y_label_area = 0;
        for &tick in &y_axis.ticks {
            y_label_area = y_label_area.max(text_width(&y_axis.label(tick))?);
        }
        // Beside the labels stands the axis' name, turned by 90 degrees.
        y_label_area += px(20 + TEXT_SIZE);
        let legend = Legend::new(chart, px(WIDTH - 2 * MARGIN) - y_label_area)?;
        let note_height = if chart.note.is_empty() { 0 } else { NOTE_HEIGHT };
        Ok(Self { x_axis, y_axis, legend, y_label_area, note_height })
    }

    /// Height of the picture in points: the plot keeps its size however tall the legend is.
    fn height(&self) -> i32 {
        HEIGHT + self.note_height + (self.legend.rows - 1).max(0) * LEGEND_ROW_HEIGHT
    }
}

fn draw(area: &Area<'_>, chart: &Chart<'_>, layout: &Layout<'_>, series: &[Series]) -> Result<()> {
    let Layout { x_axis, y_axis, legend, y_label_area, note_height } = layout;

    // Title, note and legend stand above the plot, flush with its left edge: there they hide no data.
    let left = px(MARGIN) + y_label_area;
    area.draw(&Text::new(chart.title, (left, px(MARGIN + 5)), text_style(TITLE_SIZE)))?;
    if !chart.note.is_empty() {
        area.draw(&Text::new(chart.note, (left, px(MARGIN + TITLE_HEIGHT)), text_style(TEXT_SIZE)))?;
    }
    let legend_top = px(MARGIN + TITLE_HEIGHT + note_height);
    legend.draw(area, (left, legend_top))?;

    let (_, plot) = area.split_vertically(legend_top + px(legend.rows * LEGEND_ROW_HEIGHT + 8));
    let mut on = ChartBuilder::on(&plot)
        .margin_left(px(MARGIN))
        .margin_right(px(MARGIN + 8))
        .margin_bottom(px(MARGIN - 6))
        .x_label_area_size(px(52))
        .y_label_area_size(*y_label_area)
        .build_cartesian_2d(x_axis.clone(), y_axis.clone())?;
    on.configure_mesh()
        .x_desc(chart.x_label)
        .y_desc(chart.y_label)
        .label_style(text_style(TEXT_SIZE))
        .axis_desc_style(text_style(TEXT_SIZE))
        .y_label_offset(TEXT_SHIFT)
        .axis_style(AXIS_COLOR.stroke_width(px(1) as u32))
        .bold_line_style(GRID_COLOR.stroke_width(px(1) as u32))
        .light_line_style(TRANSPARENT)
        .set_all_tick_mark_size(px(5))
        .draw()?;

    // What is beyond the range shown is cut off: plotters would draw it over the margins.
    let shown = &y_axis.range;
    let within = |y: &f64| *y >= shown.start && *y <= shown.end;
    for (i, points) in series.iter().enumerate() {
        let inside = |y: f64| y.clamp(shown.start, shown.end);
        let upper = points.iter().map(|point| (point.x, inside(point.high)));
        let lower = points.iter().rev().map(|point| (point.x, inside(point.low)));
        if points.len() > 1 {
            let outline: Vec<_> = upper.chain(lower).collect();
            on.draw_series([Polygon::new(outline, curve_color(i).mix(BAND_OPACITY).filled())])?;
        }
    }
    for (i, reference) in chart.references.iter().enumerate() {
        let points = reference.drawable(chart.logs());
        match reference {
            Reference::Level { .. } => {
                for (_, value) in points.into_iter().filter(|(_, value)| within(value)) {
                    let ends = vec![(x_axis.range.start, value), (x_axis.range.end, value)];
                    on.draw_series(dashed(ends, stroke(REFERENCE_COLOR, 1.5)))?;
                }
            }
            Reference::Points { .. } => {
                for point in points.iter().filter(|(_, y)| within(y)) {
                    area.draw(&mark(i, on.plotting_area().map_coordinate(point)))?;
                }
            }
        }
    }
    // Lines after all bands, so that no band dulls a line.
    for (i, points) in series.iter().enumerate() {
        let line: Vec<_> = points.iter().map(|point| (point.x, point.mean)).collect();
        let style = stroke(curve_color(i), LINE_WIDTH);
        for part in clipped(&line, shown).into_iter().filter(|part| part.len() > 1) {
            if is_dashed(i) {
                on.draw_series(dashed(part, style))?;
            } else {
                on.draw_series(LineSeries::new(part, style))?;
            }
        }
        let size = if chart.dots { px(4) } else { px(5) };
        let dots = line.iter().filter(|(_, y)| (chart.dots || line.len() == 1) && within(y));
        on.draw_series(dots.map(|point| Circle::new(*point, size, curve_color(i).filled())))?;
    }
    if series.iter().all(Vec::is_empty) {
        let (x, y) = (&x_axis.range, &y_axis.range);
        let centre = ((x.start + x.end) / 2.0, (y.start + y.end) / 2.0);
        let style = text_style(TEXT_SIZE).pos(Pos::new(HPos::Center, VPos::Center));
        on.draw_series([Text::new("no data", centre, style)])?;
    }
    area.present()?;
    Ok(())
}

/// The parts of a line through `points` whose y is in `range`.
fn clipped(points: &[(f64, f64)], range: &Range<f64>) -> Vec<Vec<(f64, f64)>> {
    let mut parts: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut end = None; // of the last part
    for pair in points.windows(2) {
        let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
        // Where along the way from one point to the next y is in the range.
        let at = |y: f64| if y1 == y0 { 0.0 } else { ((y - y0) / (y1 - y0)).clamp(0.0, 1.0) };
        let (mut from, mut to) = (at(range.start), at(range.end));
        if y1 < y0 {
            (from, to) = (to, from);
        } else if y1 == y0 {
            to = if y0 >= range.start && y0 <= range.end { 1.0 } else { 0.0 };
        }
        if from >= to {
            end = None;
            continue;
        }
        let point = |part: f64| (x0 + part * (x1 - x0), y0 + part * (y1 - y0));
        let (first, last) = (point(from), if to == 1.0 { (x1, y1) } else { point(to) });
        match parts.last_mut() {
            Some(part) if end == Some(first) => part.push(last),
            _ => parts.push(vec![first, last]),
        }
        end = Some(last);
    }
    parts
}

/// The mark of the i-th reference around a pixel: a diamond, a triangle, a square, a triangle on its tip.
fn mark(i: usize, (x, y): (i32, i32)) -> Polygon<(i32, i32)> {
    let (corners, turn) = [(4, 0.25), (3, 0.25), (4, 0.125), (3, 0.75)][i % 4];
    let corner = |corner: i32| {
        let angle = std::f64::consts::TAU * (turn + f64::from(corner) / f64::from(corners));
        let radius = f64::from(px(6));
        (x + (radius * angle.cos()).round() as i32, y - (radius * angle.sin()).round() as i32)
    };
    Polygon::new((0..corners).map(corner).collect::<Vec<_>>(), REFERENCE_COLOR.filled())
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
    /// Distance between ticks; none on an axis of logarithms.
    step: Option<f64>,
}

impl Axis {
    /// An axis for steps: from 0, unless some are negative, to the last one.
    fn steps(values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.chain([0.0]).collect();
        let (low, high) = bounds(values.iter().copied()).unwrap_or((0.0, 1.0));
        if high == low {
            return Self::over(0.0..1.0);
        }
        let axis = Self::over(low..high);
        // A run of 100k steps ends with an episode a little earlier; the axis ends at 100k.
        let next_tick = axis.step.map_or(high, |step| (high / step).ceil() * step);
        let mut axis = if next_tick - high < 0.03 * (high - low) { Self::over(low..next_tick) } else { axis };
        if axis.step.is_some_and(|step| step < 1.0) && values.iter().all(|value| value.fract() == 0.0) {
            // Between the first state and the second there is none.
            axis.step = Some(1.0);
            axis.ticks.retain(|tick| tick.fract() == 0.0);
        }
        axis
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
        Self { range, ticks, step: Some(step) }
    }

    /// An axis for logarithms to base ten, with 3 % of room at either end: ticks at powers of ten and,
    /// where these are few, at twice and five times them.
    fn powers(logarithms: impl Iterator<Item = f64>) -> Self {
        let (low, high) = bounds(logarithms).unwrap_or((0.0, 1.0));
        let pad = if high > low { 0.03 * (high - low) } else { 0.5 };
        let range = low - pad..high + pad;
        let span = range.end - range.start;
        let factors: &[f64] = if span > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let every = (span / 9.0).ceil() as usize;
        let powers = (range.start.floor() as i64..=range.end.ceil() as i64).step_by(every.max(1));
        let all = powers.flat_map(|power| factors.iter().map(move |factor| power as f64 + factor.log10()));
        let ticks: Vec<f64> = all.filter(|tick| range.contains(tick)).collect();
        // Less than a factor of two wide, it may have none.
        let ticks = if ticks.len() < 2 { vec![low, high] } else { ticks };
        Self { range, ticks, step: None }
    }

    /// A tick's label. All labels of an axis share unit and decimals: 0, 0.5M, 1.0M.
    fn label(&self, tick: f64) -> String {
        let Some(step) = self.step else { return power_label(10f64.powf(tick)) };
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
        let decimals = (-(step / unit * (1.0 + 1e-9)).log10().floor()).max(0.0) as usize;
        format!("{sign}{:.decimals$}{suffix}", tick.abs() / unit)
    }
}

/// A number on a logarithmic axis, to three digits: each label has its own unit.
fn power_label(value: f64) -> String {
    let rounded = |value: f64| format!("{value:.2e}").parse::<f64>().unwrap_or(value);
    match rounded(value) {
        value @ 1e4..1e6 => format!("{}k", rounded(value / 1e3)),
        value @ 1e6..1e9 => format!("{}M", rounded(value / 1e6)),
        value @ 1e-4..1e4 => format!("{value}"),
        value => format!("{value:e}").replace("e-", "e−"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const BLUE: [u8; 3] = palette::BLUE;

    fn line(label: &str, ys: &[f64]) -> Curve {
        let xs = (0..ys.len()).map(|i| i as f64 * 1000.0).collect();
        Curve { label: label.into(), xs, mean: ys.to_vec(), low: ys.to_vec(), high: ys.to_vec() }
    }

    fn picture(curves: &[Curve], reference: Option<(f64, &str)>) -> Picture {
        let level = |(value, label): (f64, &str)| Reference::Level { label: label.into(), value };
        let references: Vec<Reference> = reference.map(level).into_iter().collect();
        chart(&Chart { curves, references: &references, ..Default::default() })
    }

    fn chart(chart: &Chart<'_>) -> Picture {
        let (x_label, y_label) = ("environment steps", "episodic return");
        render(&Chart { title: "CartPole-v1", x_label, y_label, ..chart.clone() }).unwrap()
    }

    fn dimensions(picture: &Picture) -> (usize, usize) {
        assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
        (picture.width, picture.height)
    }

    /// Pixels of exactly this colour inside the plot, legend and margins left out.
    fn plotted(picture: &Picture, color: [u8; 3]) -> Vec<(usize, usize)> {
        let inside = |x: usize, y: usize| x > 160 && y > 160 && y < picture.height - 130;
        let pixels = picture.rgb.chunks_exact(3).enumerate();
        pixels
            .map(|(i, pixel)| (i % picture.width, i / picture.width, pixel))
            .filter(|(x, y, pixel)| inside(*x, *y) && *pixel == color)
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
        assert_eq!(labels(&Axis::steps([0.0, 1.0, 4.0].into_iter())), ["0", "1", "2", "3", "4"]);
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
    fn a_run_is_averaged_in_hundredths() {
        // An episode every 10 steps, returns 0 to 9 in turn, and one late outlier.
        let mut episodes: Vec<_> = (1..=1000).map(|i| (i * 10, (i % 10) as f64)).collect();
        episodes[999].1 = 1e4;
        let curve = Curve::of_run("PPO", &episodes);
        assert_eq!(curve.label, "PPO (1 seed, 10–90% of episodes)");
        assert_eq!((curve.xs.len(), curve.xs[0], curve.xs[99]), (100, 55.0, 9955.0));
        assert_eq!((curve.low[3], curve.mean[3], curve.high[3]), (1.0, 4.5, 8.0));
        assert_eq!((curve.low[99], curve.mean[99], curve.high[99]), (2.0, 1004.5, 1004.5));
    }

    #[test]
    fn parts_without_an_episode_are_left_out() {
        let curve = Curve::of_run("PPO", &[(500, 2.0), (1000, 4.0), (999, 2.0)]);
        assert_eq!((curve.xs, curve.mean), (vec![500.0, 999.5], vec![2.0, 3.0]));
        assert_eq!(Curve::of_run("PPO", &[]).xs, [0.0; 0]);
        assert_eq!(Curve::of_run("PPO", &[(0, 7.0)]).mean, [7.0]);
    }

    #[test]
    fn pictures_are_shrunk_by_averaging_squares() {
        let rgb = vec![0, 10, 255, 2, 10, 255, 9, 9, 9, 0, 10, 255, 2, 11, 255, 9, 9, 9];
        let half = Picture { width: 3, height: 2, rgb }.shrunk(2);
        assert_eq!((half.width, half.height, half.rgb), (1, 1, vec![1, 10, 255]));
    }

    #[test]
    fn a_curve_is_where_its_numbers_are() {
        let picture = picture(&[line("PPO", &[0.0, 100.0])], None);
        assert_eq!(dimensions(&picture), (1800, 1120));
        let blue = plotted(&picture, BLUE);
        let (first, last) = (*blue.iter().min().unwrap(), *blue.iter().max().unwrap());
        assert!(first.0 < 200 && last.0 > 1700, "from {first:?} to {last:?}");
        assert!(first.1 > 900 && last.1 < 250, "from {first:?} to {last:?}");
        // Half-way up at half-way along, and nothing off the diagonal.
        for (x, y) in blue {
            let along = (x - first.0) as f64 / (last.0 - first.0) as f64;
            let up = (first.1 - y.min(first.1)) as f64 / (first.1 - last.1) as f64;
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
        assert_eq!(picture.width, 1800);
        assert!(picture.height > 1120);
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
                assert_eq!(dimensions(&picture(&curves, reference)), (1800, 1120));
            }
        }
        // One point is a dot.
        let dot = plotted(&picture(&[line("PPO", &[1.0, f64::NAN])], None), BLUE);
        assert!(dot.len() > 100, "{} pixels", dot.len());
        let all_nan = picture(&[line("PPO", &[f64::NAN; 3])], None);
        assert!(plotted(&all_nan, BLUE).is_empty());
    }

    #[test]
    fn a_logarithmic_axis_has_equal_distances_for_equal_ratios() {
        let over = |low: f64, high: f64| labels(&Axis::powers([low.log10(), high.log10()].into_iter()));
        assert_eq!(over(0.01, 1.0), ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]);
        assert_eq!(over(1e-5, 1.0), ["1e−5", "0.0001", "0.001", "0.01", "0.1", "1"]);
        assert_eq!(over(1.0, 512.0), ["1", "2", "5", "10", "20", "50", "100", "200", "500"]);
        assert_eq!(over(1e3, 2e7), ["1000", "10k", "100k", "1M", "10M"]);
        assert_eq!(over(3.0, 4.0), ["3", "4"]);
        assert_eq!(over(1e-30, 1e30).len(), 7);
        assert!(!Axis::powers([].into_iter()).ticks.is_empty());

        let curve = Curve { xs: vec![0.0, 1.0, 10.0, 100.0], ..line("n", &[5.0, 0.0, 50.0, 100.0]) };
        let picture = chart(&Chart { curves: &[curve], log_x: true, ..Default::default() });
        let blue = plotted(&picture, BLUE);
        let (first, last) = (*blue.iter().min().unwrap(), *blue.iter().max().unwrap());
        for (x, y) in blue {
            let along = (x - first.0) as f64 / (last.0 - first.0) as f64;
            let up = (first.1 - y.min(first.1)) as f64 / (first.1 - last.1) as f64;
            assert!((along - up).abs() < 0.01, "({x}, {y})");
        }
    }

    #[test]
    fn the_vertical_axis_may_be_logarithmic_too() {
        let curves = [line("n", &[0.0, 1.0, 10.0, 100.0])];
        let picture = chart(&Chart { curves: &curves, log_y: true, ..Default::default() });
        let blue = plotted(&picture, BLUE);
        let (first, last) = (*blue.iter().min().unwrap(), *blue.iter().max().unwrap());
        for (x, y) in blue {
            let along = (x - first.0) as f64 / (last.0 - first.0) as f64;
            let up = (first.1 - y.min(first.1)) as f64 / (first.1 - last.1) as f64;
            assert!((along - up).abs() < 0.01, "({x}, {y})");
        }
    }

    #[test]
    fn lines_are_cut_off_at_the_edge_of_what_is_shown() {
        let points = [(0.0, 5.0), (1.0, 15.0), (2.0, 5.0), (3.0, 5.0), (4.0, -5.0), (5.0, -6.0)];
        let parts = clipped(&points, &(0.0..10.0));
        assert_eq!(
            parts,
            [vec![(0.0, 5.0), (0.5, 10.0)], vec![(1.5, 10.0), (2.0, 5.0), (3.0, 5.0), (3.5, 0.0)]]
        );
        assert!(clipped(&[(0.0, 20.0), (1.0, 30.0), (2.0, 30.0)], &(0.0..10.0)).is_empty());
        assert_eq!(clipped(&[(0.0, -5.0), (1.0, 15.0)], &(0.0..10.0)), [vec![(0.25, 0.0), (0.75, 10.0)]]);

        let curves = [line("diverges", &[1.0, 2.0, 1e9, -1e9, 3.0])];
        let picture = chart(&Chart { curves: &curves, y_range: Some((0.0, 4.0)), ..Default::default() });
        let everywhere = picture.rgb.chunks_exact(3).enumerate().filter(|(_, pixel)| *pixel == BLUE);
        let rows: Vec<usize> = everywhere.map(|(i, _)| i / picture.width).collect();
        // The legend is above the plot and the labels of its axis below.
        assert!(rows.iter().all(|row| (100..1010).contains(row)), "{:?}", rows.iter().max());
    }

    #[test]
    fn references_beside_the_curves_are_marked_each_in_its_way() {
        let grey = [REFERENCE_COLOR.0, REFERENCE_COLOR.1, REFERENCE_COLOR.2];
        let published = |label: &str, y: f64| Reference::Points {
            label: label.into(),
            points: vec![(500.0, y), (1e6, f64::NAN)],
        };
        let mark_of = |references: &[Reference]| {
            let picture =
                chart(&Chart { curves: &[line("PPO", &[0.0, 100.0])], references, ..Default::default() });
            let pixels = plotted(&picture, grey);
            let (left, top) =
                (pixels.iter().map(|p| p.0).min().unwrap(), pixels.iter().map(|p| p.1).min().unwrap());
            pixels.iter().map(|(x, y)| (x - left, y - top)).collect::<Vec<_>>()
        };
        let none = Reference::Points { label: "nothing".into(), points: vec![] };
        let first = mark_of(&[published("a", 20.0)]);
        assert!((100..400).contains(&first.len()), "{} pixels", first.len());
        assert_ne!(first, mark_of(&[none, published("a", 20.0)]));
    }

    #[test]
    fn a_note_makes_room_for_itself_and_dots_mark_the_points() {
        let curves = [line("PPO", &[0.0, 100.0, 50.0])];
        let plain = chart(&Chart { curves: &curves, ..Default::default() });
        let noted = chart(&Chart { curves: &curves, note: "mean of three seeds", ..Default::default() });
        assert_eq!(noted.height, plain.height + 2 * NOTE_HEIGHT as usize);
        let dotted = chart(&Chart { curves: &curves, dots: true, ..Default::default() });
        let more = plotted(&dotted, BLUE).len() - plotted(&plain, BLUE).len();
        assert!(more > 100, "{more} pixels");
    }

    #[test]
    fn files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("learning_curve.png");
        fs::write(&path, "an older file").unwrap();
        learning_curves(&path, "CartPole-v1", "episodic return", &[line("PPO", &[1.0, 2.0])], None).unwrap();
        let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(&path).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut rgb).unwrap();
        assert_eq!((info.width, info.height, info.color_type), (1800, 1120, png::ColorType::Rgb));
        assert!(rgb == picture(&[line("PPO", &[1.0, 2.0])], None).rgb);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left behind");

        let nowhere = dir.path().join("missing").join("learning_curve.png");
        let error = learning_curves(&nowhere, "", "", &[], None).unwrap_err().to_string();
        assert!(error.contains("learning_curve.png: cannot be written"), "{error}");
    }
}
