//! A small picture that environments draw themselves on, for `--capture-video`.
//!
//! A thin layer over tiny-skia: world coordinates (y up) set by [`Canvas::view`], filled shapes
//! and lines with anti-aliased edges, and a colour-blind-safe palette.

use tiny_skia::{Color as SkColor, FillRule, LineCap, Paint, PathBuilder, Pixmap, Stroke, Transform};

/// Red, green, blue.
pub type Color = [u8; 3];

/// Okabe & Ito's colour-blind-safe palette (Color Universal Design, 2008) and three greys.
pub mod palette {
    use super::Color;
    /// Background.
    pub const WHITE: Color = [255, 255, 255];
    /// Outlines.
    pub const BLACK: Color = [0, 0, 0];
    /// Neutral.
    pub const GREY: Color = [150, 150, 150];
    /// Grid lines.
    pub const LIGHT_GREY: Color = [225, 225, 225];
    /// Blue.
    pub const BLUE: Color = [0, 114, 178];
    /// Vermillion.
    pub const VERMILLION: Color = [213, 94, 0];
    /// Bluish green.
    pub const GREEN: Color = [0, 158, 115];
    /// Reddish purple.
    pub const PURPLE: Color = [204, 121, 167];
    /// Orange.
    pub const ORANGE: Color = [230, 159, 0];
    /// Sky blue.
    pub const SKY: Color = [86, 180, 233];
    /// Yellow.
    pub const YELLOW: Color = [240, 228, 66];
    /// In a fixed order, for categories.
    pub const CATEGORIES: [Color; 7] = [BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW];
}

/// A picture under construction.
pub struct Canvas {
    pixmap: Pixmap,
    transform: Transform,
}

impl Canvas {
    /// A white canvas of `width` × `height` pixels whose coordinates run from (0, 0) at the
    /// bottom left to (1, 1) at the top right. Sizes of zero become one pixel.
    pub fn new(width: u32, height: u32) -> Self {
        let pixmap = Pixmap::new(width.max(1), height.max(1))
            .unwrap_or_else(|| panic!("a picture of {width} x {height} pixels is too large"));
        let mut canvas = Self { pixmap, transform: Transform::identity() };
        canvas.clear(palette::WHITE);
        canvas.view(0.0, 0.0, 1.0, 1.0);
        canvas
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        (self.pixmap.width(), self.pixmap.height())
    }

    /// Red, green and blue of each pixel, row by row from the top: `[height, width, 3]`.
    pub fn rgb(&self) -> Vec<u8> {
        self.pixmap.data().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect()
    }

    /// Fills everything with one colour.
    pub fn clear(&mut self, [r, g, b]: Color) {
        self.pixmap.fill(SkColor::from_rgba8(r, g, b, 255));
    }

    /// Sets the coordinates of the bottom left and top right corners.
    pub fn view(&mut self, left: f64, bottom: f64, right: f64, top: f64) {
        let (w, h) = (f64::from(self.pixmap.width()), f64::from(self.pixmap.height()));
        let (sx, sy) = (w / (right - left), h / (top - bottom));
        self.transform =
            Transform::from_row(sx as f32, 0.0, 0.0, -sy as f32, (-left * sx) as f32, (top * sy) as f32);
    }

    /// Shows the rectangle between these corners as large as it fits, centred, one unit being as
    /// long upwards as sideways.
    pub fn fit(&mut self, left: f64, bottom: f64, right: f64, top: f64) {
        let (w, h) = (f64::from(self.pixmap.width()), f64::from(self.pixmap.height()));
        let unit = (w / (right - left)).min(h / (top - bottom)); // pixels
        let (x, y) = ((left + right) / 2.0, (bottom + top) / 2.0);
        let (half_width, half_height) = (w / unit / 2.0, h / unit / 2.0);
        self.view(x - half_width, y - half_height, x + half_width, y + half_height);
    }

    /// A filled, axis-aligned rectangle from its lower left corner.
    pub fn rectangle(&mut self, x: f64, y: f64, width: f64, height: f64, color: Color) {
        self.polygon(&[(x, y), (x + width, y), (x + width, y + height), (x, y + height)], color);
    }

    /// A filled circle; its radius is in world units along x.
    pub fn circle(&mut self, x: f64, y: f64, radius: f64, color: Color) {
        if let Some(path) = PathBuilder::from_circle(x as f32, y as f32, radius as f32) {
            self.pixmap.fill_path(&path, &paint(color), FillRule::Winding, self.transform, None);
        }
    }

    /// A filled polygon.
    pub fn polygon(&mut self, points: &[(f64, f64)], color: Color) {
        if let Some(path) = path(points, true) {
            self.pixmap.fill_path(&path, &paint(color), FillRule::Winding, self.transform, None);
        }
    }

    /// A line through `points`, `width` world units thick, with round ends.
    pub fn line(&mut self, points: &[(f64, f64)], width: f64, color: Color) {
        if let Some(path) = path(points, false) {
            let stroke = Stroke { width: width as f32, line_cap: LineCap::Round, ..Stroke::default() };
            self.pixmap.stroke_path(&path, &paint(color), &stroke, self.transform, None);
        }
    }
}

fn paint([r, g, b]: Color) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(r, g, b, 255);
    paint
}

fn path(points: &[(f64, f64)], close: bool) -> Option<tiny_skia::Path> {
    let mut builder = PathBuilder::new();
    let (first, rest) = points.split_first()?;
    builder.move_to(first.0 as f32, first.1 as f32);
    for &(x, y) in rest {
        builder.line_to(x as f32, y as f32);
    }
    if close {
        builder.close();
    }
    builder.finish()
}
