//! Tables as PNG pictures: panels of coloured cells with their numbers, or with arrows.

use super::{
    AXIS_COLOR, Area, FONT, FONT_REGISTERED, GRID_COLOR, MARGIN, NOTE_HEIGHT, OVERSAMPLING, Picture,
    TEXT_COLOR, TEXT_SHIFT, TEXT_SIZE, TITLE_HEIGHT, TITLE_SIZE, WIDTH, bounds, is_drawable, px, text_style,
};
use crate::write_atomically::write_atomically;
use anyhow::{Context, Result, bail};
use envs::canvas::palette;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use std::path::Path;

/// One table.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Above the table.
    pub label: String,
    /// Row by row from the top left.
    pub values: Vec<f64>,
    /// Whether they are directions, 0 up, 1 right, 2 down, 3 left, and not numbers.
    pub arrows: bool,
}

/// Tables of one shape beside and below each other, coloured by one scale: white is the lowest number of
/// all and blue the highest; where there are numbers below and above zero, zero is white, what is above it
/// blue and what is below it vermillion.
#[derive(Debug, Clone, Default)]
pub struct Heatmap<'a> {
    /// Above the picture.
    pub title: &'a str,
    /// Below the title, smaller; may be empty.
    pub note: &'a str,
    /// Below each table.
    pub x_label: &'a str,
    /// Beside each table.
    pub y_label: &'a str,
    /// Rows and columns.
    pub shape: (usize, usize),
    /// What the first row, from the top, is called, and by how much the next one differs.
    pub rows: (f64, f64),
    /// The same of columns, from the left.
    pub columns: (f64, f64),
    /// Decimals of the numbers.
    pub decimals: usize,
    /// Tables beside each other.
    pub across: usize,
    /// Whether each table has a scale of its own, whose ends stand beside its label.
    pub own_scales: bool,
    /// The tables.
    pub panels: &'a [Panel],
}

/// Room above a table for its label, and below and beside it for its axis, in points.
const LABEL_HEIGHT: i32 = 30;
const AXIS_ROOM: i32 = 50;
const GAP: i32 = 16;
/// Smallest and largest cell and number, in points; numbers that would be smaller are left out.
const CELLS: (f64, f64) = (4.0, 56.0);
const NUMBERS: (f64, f64) = (5.5, 15.0);

impl Heatmap<'_> {
    /// Draws it to a PNG file 1800 pixels wide. The file appears whole or not at all. Cells whose number is
    /// missing or not finite stay empty.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn draw(&self, path: &Path) -> Result<()> {
        let draw = || self.render()?.png();
        let png = draw().with_context(|| format!("{}: cannot draw the plot", path.display()))?;
        write_atomically(path, &png)
    }

    fn render(&self) -> Result<Picture> {
        if !*FONT_REGISTERED {
            bail!("the embedded font cannot be read");
        }
        let (rows, columns) = (self.shape.0.max(1), self.shape.1.max(1));
        let across = self.across.max(1);
        let panel_width = (WIDTH - 2 * MARGIN) / across as i32;
        let cell = f64::from(panel_width - AXIS_ROOM - GAP) / columns as f64;
        let cell = cell.clamp(CELLS.0, CELLS.1);
        let panel_height = LABEL_HEIGHT + (cell * rows as f64).ceil() as i32 + AXIS_ROOM;
        let top = MARGIN + TITLE_HEIGHT + if self.note.is_empty() { 0 } else { NOTE_HEIGHT };
        let down = self.panels.len().div_ceil(across) as i32;

        let (width, height) = (px(WIDTH) as usize, px(top + panel_height * down.max(1) + MARGIN) as usize);
        let mut rgb = vec![u8::MAX; width * height * 3];
        let area = BitMapBackend::with_buffer(&mut rgb, (width as u32, height as u32)).into_drawing_area();
        area.draw(&Text::new(self.title, (px(MARGIN), px(MARGIN + 5)), text_style(TITLE_SIZE)))?;
        area.draw(&Text::new(self.note, (px(MARGIN), px(MARGIN + TITLE_HEIGHT)), text_style(TEXT_SIZE)))?;
        for (i, panel) in self.panels.iter().enumerate() {
            let left = MARGIN + panel_width * (i % across) as i32 + AXIS_ROOM;
            let top = top + panel_height * (i / across) as i32;
            self.draw_panel(&area, panel, (px(left), px(top)), cell * f64::from(px(1)))?;
        }
        area.present()?;
        drop(area);
        Ok(Picture { width, height, rgb }.shrunk(OVERSAMPLING))
    }

    /// Draws a table, its label's top left corner at `(left, top)`; `cell` is in pixels.
    fn draw_panel(&self, area: &Area<'_>, panel: &Panel, (left, top): (i32, i32), cell: f64) -> Result<()> {
        let (rows, columns) = self.shape;
        let middle = |size: i32| text_style(size).pos(Pos::new(HPos::Center, VPos::Center));
        let right = text_style(TEXT_SIZE - 3).pos(Pos::new(HPos::Right, VPos::Center));
        area.draw(&Text::new(self.label(panel), (left, top + px(4)), text_style(TEXT_SIZE)))?;
        let top = top + px(LABEL_HEIGHT);
        let x = |column: f64| left + (column * cell).round() as i32;
        let y = |row: f64| top + (row * cell).round() as i32;

        let number_size = self.number_size(cell);
        for (i, &value) in panel.values.iter().enumerate().take(rows * columns) {
            let (row, column) = ((i / columns) as f64, (i % columns) as f64);
            let corners = [(x(column), y(row)), (x(column + 1.0), y(row + 1.0))];
            let centre = (x(column + 0.5), y(row + 0.5));
            if !panel.arrows && is_drawable(value) {
                let color = self.color(panel, value);
                area.draw(&Rectangle::new(corners, color.filled()))?;
                if let Some(size) = number_size {
                    let dark = 2 * u32::from(color.0) + 5 * u32::from(color.1) + u32::from(color.2) < 8 * 130;
                    let style = (FONT, size).into_font().color(if dark { &WHITE } else { &TEXT_COLOR });
                    let style = style.pos(Pos::new(HPos::Center, VPos::Center));
                    let centre = (centre.0, centre.1 + TEXT_SHIFT / 2);
                    area.draw(&Text::new(self.number(value), centre, style))?;
                }
            }
            // Around cells too small for a number lines would be most of what there is to be seen.
            if number_size.is_some() || panel.arrows {
                area.draw(&Rectangle::new(corners, GRID_COLOR.stroke_width(px(1) as u32)))?;
            }
            if panel.arrows && is_drawable(value) {
                area.draw(&arrow(value, centre, cell))?;
            }
        }
        let ends = [(x(0.0), y(0.0)), (x(columns as f64), y(rows as f64))];
        area.draw(&Rectangle::new(ends, AXIS_COLOR.stroke_width(px(1) as u32)))?;

        for (row, name) in names(self.rows, rows, cell) {
            let place = (left - px(6), y(row as f64 + 0.5) + TEXT_SHIFT);
            area.draw(&Text::new(name, place, right.clone()))?;
        }
        for (column, name) in names(self.columns, columns, cell) {
            let place = (x(column as f64 + 0.5), y(rows as f64) + px(10));
            area.draw(&Text::new(name, place, middle(TEXT_SIZE - 3)))?;
        }
        let below = (x(columns as f64 / 2.0), y(rows as f64) + px(28));
        area.draw(&Text::new(self.x_label, below, middle(TEXT_SIZE - 2)))?;
        let beside = (left - px(36), y(rows as f64 / 2.0));
        let turned = middle(TEXT_SIZE - 2).transform(plotters::style::FontTransform::Rotate270);
        area.draw(&Text::new(self.y_label, beside, turned))?;
        Ok(())
    }

    fn number(&self, value: f64) -> String {
        let number = format!("{:.*}", self.decimals, value);
        // A zero that was a little less has no sign.
        let is_zero = number.chars().all(|c| matches!(c, '-' | '0' | '.'));
        if is_zero { number.replace('-', "") } else { number.replace('-', "−") }
    }

    /// What stands above a table.
    fn label(&self, panel: &Panel) -> String {
        match bounds(panel.values.iter().copied().filter(|value| is_drawable(*value))) {
            Some((low, high)) if self.own_scales => {
                format!("{}: {} to {}", panel.label, self.number(low), self.number(high))
            }
            _ => panel.label.clone(),
        }
    }

    /// The numbers of all tables.
    fn numbers(&self) -> impl Iterator<Item = f64> {
        let tables = self.panels.iter().filter(|panel| !panel.arrows);
        tables.flat_map(|panel| panel.values.iter().copied()).filter(|value| is_drawable(*value))
    }

    /// Pixels of the numbers' font, if all fit into cells of so many pixels.
    fn number_size(&self, cell: f64) -> Option<f64> {
        let longest = self.numbers().map(|value| self.number(value).chars().count()).max().unwrap_or(1);
        let points = f64::from(px(1));
        let size = (cell * 0.62).min(1.7 * cell / longest as f64).min(NUMBERS.1 * points);
        (size >= NUMBERS.0 * points).then_some(size)
    }

    /// The colour of a number of a table.
    fn color(&self, panel: &Panel, value: f64) -> RGBColor {
        let own = panel.values.iter().copied().filter(|value| is_drawable(*value));
        let range = if self.own_scales { bounds(own) } else { bounds(self.numbers()) };
        let (low, high) = range.unwrap_or((0.0, 1.0));
        let (part, full) = if low < 0.0 && high > 0.0 {
            let largest = high.max(-low);
            (value.abs() / largest, if value < 0.0 { palette::VERMILLION } else { palette::BLUE })
        } else if high > low {
            ((value - low) / (high - low), palette::BLUE)
        } else {
            (0.0, palette::BLUE)
        };
        let [r, g, b] = full.map(|channel| (255.0 - part * (255.0 - f64::from(channel))).round() as u8);
        RGBColor(r, g, b)
    }
}

/// Which of so many rows or columns are named, and how: as many as there is room for where cells are so many
/// pixels wide; of whole numbers multiples of five, if not all.
fn names((first, step): (f64, f64), count: usize, cell: f64) -> Vec<(usize, String)> {
    let all = (0..count).map(|i| (i, first + step * i as f64));
    let is_whole = first.fract() == 0.0 && step.fract() == 0.0;
    let room = f64::from(px(if is_whole { 20 } else { 50 }));
    let every = (room / cell).ceil().max(1.0);
    let every = if every > 1.0 { 5.0 * (every / 5.0).ceil() } else { 1.0 };
    let is_named =
        |&(i, name): &(usize, f64)| if is_whole { name % every == 0.0 } else { i as f64 % every == 0.0 };
    let rounded = |(i, name): (usize, f64)| {
        let name = (name * 1000.0).round() / 1000.0 + 0.0; // a negative zero becomes one without a sign
        (i, name.to_string().replace('-', "−"))
    };
    all.filter(is_named).map(rounded).collect()
}

/// An arrow around a pixel in a cell so many pixels wide.
fn arrow(direction: f64, (x, y): (i32, i32), cell: f64) -> Polygon<(i32, i32)> {
    let angle = direction * std::f64::consts::FRAC_PI_2; // clockwise from up
    let corners = [
        (-0.04, 0.3),
        (-0.04, -0.05),
        (-0.16, -0.05),
        (0.0, -0.32),
        (0.16, -0.05),
        (0.04, -0.05),
        (0.04, 0.3),
    ];
    let turned = corners.map(|(right, down)| {
        let (right, down) = (right * cell, down * cell);
        let (sin, cos) = angle.sin_cos();
        (x + (right * cos - down * sin).round() as i32, y + (right * sin + down * cos).round() as i32)
    });
    Polygon::new(turned.to_vec(), TEXT_COLOR.filled())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(values: &[f64]) -> Panel {
        Panel { label: "k = 1".into(), values: values.to_vec(), arrows: false }
    }

    fn heatmap(panels: &[Panel]) -> Heatmap<'_> {
        Heatmap {
            shape: (1, 2),
            across: 1,
            columns: (0.0, 1.0),
            rows: (0.0, 1.0),
            panels,
            ..Default::default()
        }
    }

    fn count(picture: &Picture, color: [u8; 3]) -> usize {
        picture.rgb.chunks_exact(3).filter(|pixel| *pixel == color).count()
    }

    #[test]
    fn the_highest_number_is_blue_and_the_lowest_white() {
        let panels = [panel(&[-22.0, -1.0])];
        let map = heatmap(&panels);
        assert_eq!(map.color(&panels[0], -22.0), RGBColor(255, 255, 255));
        let [r, g, b] = palette::BLUE;
        assert_eq!(map.color(&panels[0], -1.0), RGBColor(r, g, b));
        assert_eq!(map.label(&panels[0]), "k = 1");
        assert!(count(&map.render().unwrap(), palette::BLUE) > 1000);
    }

    #[test]
    fn below_zero_is_another_colour_than_above() {
        let panels = [panel(&[-4.0, 5.0])];
        let map = heatmap(&panels);
        assert_eq!(map.color(&panels[0], 0.0), RGBColor(255, 255, 255));
        let (below, above) = (map.color(&panels[0], -4.0), map.color(&panels[0], 4.0));
        assert!(below.0 > below.2 && above.2 > above.0, "{below:?} {above:?}");
    }

    #[test]
    fn tables_have_one_scale_or_each_its_own() {
        let panels = [panel(&[0.0, 10.0]), panel(&[f64::NAN, 2.0, 100.0])];
        let (one, own) = (heatmap(&panels), Heatmap { own_scales: true, ..heatmap(&panels) });
        let white = RGBColor(255, 255, 255);
        let blue = one.color(&panels[1], 100.0);
        assert_eq!((own.color(&panels[0], 10.0), own.color(&panels[1], 100.0)), (blue, blue));
        assert_eq!((own.color(&panels[0], 0.0), own.color(&panels[1], 2.0)), (white, white));
        assert!(one.color(&panels[0], 10.0).0 > 200 && one.color(&panels[1], 2.0) != white);
        assert_eq!([0, 1].map(|i| own.label(&panels[i])), ["k = 1: 0 to 10", "k = 1: 2 to 100"]);
    }

    #[test]
    fn rows_and_columns_are_named_where_there_is_room() {
        let named = |ends: (f64, f64), count: usize, points: i32| -> Vec<String> {
            names(ends, count, f64::from(px(points))).into_iter().map(|(_, name)| name).collect()
        };
        assert_eq!(named((21.0, -1.0), 3, 40), ["21", "20", "19"]);
        assert_eq!(named((12.0, -1.0), 9, 10), ["10", "5"]);
        assert_eq!(named((0.07, -0.0035), 41, 8), ["0.07", "0.035", "0", "−0.035", "−0.07"]);
        assert_eq!(named((-1.2, 0.0425), 41, 8), ["−1.2", "−0.775", "−0.35", "0.075", "0.5"]);
    }

    #[test]
    fn arrows_point_where_they_say() {
        for (direction, (right, down)) in [(0.0, (0, -1)), (1.0, (1, 0)), (2.0, (0, 1)), (3.0, (-1, 0))] {
            let panels = [Panel { arrows: true, ..panel(&[f64::NAN, direction]) }];
            let picture = heatmap(&panels).render().unwrap();
            let dark: Vec<(i64, i64)> = picture
                .rgb
                .chunks_exact(3)
                .enumerate()
                .filter(|(_, pixel)| *pixel == [TEXT_COLOR.0, TEXT_COLOR.1, TEXT_COLOR.2])
                .map(|(i, _)| ((i % picture.width) as i64, (i / picture.width) as i64))
                // Of the second cell: the labels are above, below and to the left.
                .filter(|(x, y)| (200..400).contains(x) && (120..260).contains(y))
                .collect();
            assert!(dark.len() > 200, "{direction}: {} pixels", dark.len());
            let mean =
                |of: fn(&(i64, i64)) -> i64| dark.iter().map(of).sum::<i64>() as f64 / dark.len() as f64;
            let middle = |of: fn(&(i64, i64)) -> i64| {
                (dark.iter().map(of).min().unwrap() + dark.iter().map(of).max().unwrap()) as f64 / 2.0
            };
            // The head is the heavier end.
            let (x, y) = (mean(|p| p.0) - middle(|p| p.0), mean(|p| p.1) - middle(|p| p.1));
            assert!(x * f64::from(right) + y * f64::from(down) > 2.0, "{direction}: {x} {y}");
        }
    }

    #[test]
    fn zeros_have_no_sign_and_minus_is_one() {
        let map = Heatmap { decimals: 1, ..Default::default() };
        assert_eq!([-0.04, 0.0, -1.74, 20.0].map(|value| map.number(value)), ["0.0", "0.0", "−1.7", "20.0"]);
    }

    #[test]
    fn numbers_too_small_to_read_are_left_out() {
        let panels = [panel(&[421.4, 637.0])];
        let map = heatmap(&panels);
        assert_eq!(map.number_size(f64::from(px(5))), None);
        assert!(map.number_size(f64::from(px(40))).is_some());
    }

    #[test]
    fn tables_without_numbers_are_drawn_without_a_panic() {
        let ragged = [panel(&[]), panel(&[1.0]), panel(&[f64::NAN, f64::INFINITY, 1.0, 2.0])];
        assert!(!heatmap(&ragged).render().unwrap().rgb.is_empty());
        assert!(!Heatmap::default().render().unwrap().rgb.is_empty());
    }
}
