//! The 10 × 10 board: sets of its cells, the frame that an observation is, and the picture.

use super::{Canvas, Color, palette};

/// Columns and rows of the board. Columns count from the left, rows from the top.
pub const SIDE: i32 = 10;

/// A set of cells as one integer: bit `10 y + x` is the cell in column x of row y.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cells(u128);

impl Cells {
    /// No cells.
    pub const NONE: Cells = Cells(0);

    const BOARD: u128 = (1 << (SIDE * SIDE)) - 1;
    const ROW: u128 = (1 << SIDE) - 1;
    // 1 + 2¹⁰ + 2²⁰ + … + 2⁹⁰ = (2¹⁰⁰ − 1) / (2¹⁰ − 1)
    const COLUMN: u128 = Self::BOARD / Self::ROW;

    /// The cell in column `x` of row `y`.
    pub const fn cell(x: i32, y: i32) -> Self {
        Cells(1 << (SIDE * y + x))
    }

    /// Row `y`.
    pub const fn row(y: i32) -> Self {
        Cells(Self::ROW << (SIDE * y))
    }

    /// Column `x`.
    pub const fn column(x: i32) -> Self {
        Cells(Self::COLUMN << x)
    }

    /// The cells in `columns` of `rows`, both inclusive.
    pub const fn block(columns: (i32, i32), rows: (i32, i32)) -> Self {
        let width = columns.1 - columns.0 + 1;
        let height = rows.1 - rows.0 + 1;
        let left_column = Self::COLUMN & ((1 << (SIDE * height)) - 1);
        Cells((left_column * ((1 << width) - 1)) << (SIDE * rows.0 + columns.0))
    }

    /// The columns of row `y` as bits, bit 0 for column 0.
    pub fn row_bits(self, y: i32) -> u16 {
        ((self.0 >> (SIDE * y)) & Self::ROW) as u16
    }

    /// Replaces row `y` by the columns in `bits`.
    pub fn set_row_bits(&mut self, y: i32, bits: u16) {
        self.0 = (self.0 & !Self::row(y).0) | ((u128::from(bits) & Self::ROW) << (SIDE * y));
    }

    /// How many cells there are.
    pub fn len(self) -> i32 {
        self.0.count_ones() as i32
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the two sets share a cell.
    pub fn meets(self, other: Cells) -> bool {
        self.0 & other.0 != 0
    }

    /// The cells in both sets.
    pub fn and(self, other: Cells) -> Self {
        Cells(self.0 & other.0)
    }

    /// Adds the cells of `other`.
    pub fn insert(&mut self, other: Cells) {
        self.0 |= other.0;
    }

    /// Removes the cells of `other`.
    pub fn remove(&mut self, other: Cells) {
        self.0 &= !other.0;
    }

    /// Every cell moved one row up; those of row 0 vanish.
    pub fn up(self) -> Self {
        Cells(self.0 >> SIDE)
    }

    /// Every cell moved one row down; those of row 9 vanish.
    pub fn down(self) -> Self {
        Cells((self.0 << SIDE) & Self::BOARD)
    }

    /// Every cell moved one row down, out of row 9 into row 0.
    pub fn down_around(self) -> Self {
        Cells(self.down().0 | (self.0 >> (SIDE * (SIDE - 1))))
    }

    /// Every cell moved one column to the left; those of column 0 vanish.
    pub fn left(self) -> Self {
        Cells((self.0 & !Self::column(0).0) >> 1)
    }

    /// Every cell moved one column to the right; those of column 9 vanish.
    pub fn right(self) -> Self {
        Cells((self.0 & !Self::column(SIDE - 1).0) << 1)
    }

    /// The cells as (column, row), row by row.
    pub fn iter(self) -> impl Iterator<Item = (i32, i32)> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let bit = (rest != 0).then(|| rest.trailing_zeros() as i32)?;
            rest &= rest - 1; // clears the lowest set bit
            Some((bit % SIDE, bit / SIDE))
        })
    }
}

/// An observation under construction, `[10, 10, channels]`.
pub struct Frame<'a> {
    observation: &'a mut [f32],
    channels: usize,
}

impl<'a> Frame<'a> {
    /// An empty frame in `observation`, which holds `100 * channels` numbers.
    pub fn new(observation: &'a mut [f32], channels: usize) -> Self {
        observation.fill(0.0);
        Self { observation, channels }
    }

    /// Sets `channel` in column `x` of row `y`.
    pub fn set(&mut self, channel: usize, x: i32, y: i32) {
        self.observation[(SIDE * y + x) as usize * self.channels + channel] = 1.0;
    }

    /// The same if column `x` is on the board, for the trail behind an object at its edge.
    pub fn set_if_on_board(&mut self, channel: usize, x: i32, y: i32) {
        if (0..SIDE).contains(&x) {
            self.set(channel, x, y);
        }
    }

    /// Sets `channel` in all `cells`.
    pub fn set_all(&mut self, channel: usize, cells: Cells) {
        for (x, y) in cells.iter() {
            self.set(channel, x, y);
        }
    }
}

/// Draws an observation in the largest square that fits: a coloured cell for each channel, later
/// channels on top and a little smaller, so that all channels of a cell are seen.
pub fn draw(observation: &[f32], colors: &[Color], canvas: &mut Canvas) {
    const LINE: f64 = 0.03; // thickness of the grid, in cells
    const INSET: f64 = 0.2; // of each further channel in a cell, in cells
    let (width, height) = canvas.size();
    let (width, height) = (f64::from(width), f64::from(height));
    let (side, pixels) = (f64::from(SIDE), width.min(height));
    let (margin_x, margin_y) = ((width / pixels - 1.0) * side / 2.0, (height / pixels - 1.0) * side / 2.0);
    canvas.clear(palette::WHITE);
    canvas.view(-margin_x, -margin_y, side + margin_x, side + margin_y);
    for (i, channels) in observation.chunks_exact(colors.len()).enumerate() {
        let (x, y) = ((i % SIDE as usize) as f64, (i / SIDE as usize) as f64);
        let bottom = side - 1.0 - y; // the canvas counts from below
        let set = channels.iter().zip(colors).filter(|(channel, _)| **channel > 0.0);
        for (level, (_, &color)) in set.enumerate() {
            let inset = (INSET * level as f64).min(0.4);
            let size = 1.0 - 2.0 * inset;
            canvas.rectangle(x + inset, bottom + inset, size, size, color);
        }
    }
    for i in 0..=SIDE {
        let at = f64::from(i);
        canvas.line(&[(at, 0.0), (at, side)], LINE, palette::LIGHT_GREY);
        canvas.line(&[(0.0, at), (side, at)], LINE, palette::LIGHT_GREY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(cells: Cells) -> Vec<(i32, i32)> {
        cells.iter().collect()
    }

    #[test]
    fn cells_move_within_the_board() {
        let mut corners = Cells::NONE;
        for (x, y) in [(0, 0), (9, 0), (0, 9), (9, 9)] {
            corners.insert(Cells::cell(x, y));
        }
        assert_eq!(corners.len(), 4);
        assert_eq!(list(corners.left()), [(8, 0), (8, 9)]);
        assert_eq!(list(corners.right()), [(1, 0), (1, 9)]);
        assert_eq!(list(corners.up()), [(0, 8), (9, 8)]);
        assert_eq!(list(corners.down()), [(0, 1), (9, 1)]);
        assert_eq!(list(corners.down_around()), [(0, 0), (9, 0), (0, 1), (9, 1)]);
        assert_eq!(list(Cells::block((7, 8), (8, 9))), [(7, 8), (8, 8), (7, 9), (8, 9)]);
        assert_eq!(Cells::block((0, 9), (0, 9)).len(), 100);
        assert_eq!(list(Cells::column(3)), (0..10).map(|y| (3, y)).collect::<Vec<_>>());
        assert!(corners.meets(Cells::row(9)) && !corners.meets(Cells::row(8)));
        assert_eq!(corners.row_bits(9), 0b10_0000_0001);
        corners.set_row_bits(9, 0b10);
        assert_eq!(list(corners), [(0, 0), (9, 0), (1, 9)]);
    }

    #[test]
    fn a_picture_shows_all_channels_of_a_cell_in_the_middle_of_the_canvas() {
        // Two channels in the top left cell, in a canvas twice as wide as the board.
        let mut observation = [0.0; 200];
        observation[..2].fill(1.0);
        let mut canvas = Canvas::new(400, 200);
        draw(&observation, &[palette::BLUE, palette::YELLOW], &mut canvas);
        let rgb = canvas.rgb();
        let pixel = |x: usize, y: usize| rgb[3 * (400 * y + x)..][..3].to_vec();
        assert_eq!(pixel(102, 10), palette::BLUE);
        assert_eq!(pixel(110, 10), palette::YELLOW);
        assert_eq!(pixel(130, 10), palette::WHITE);
        assert_eq!(pixel(50, 10), palette::WHITE);
    }
}
