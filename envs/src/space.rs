//! Observation and action spaces, as in Gymnasium.

use std::fmt;

/// The values that an observation or an action can take.
#[derive(Debug, Clone, PartialEq)]
pub enum Space {
    /// The integers `0..n`.
    Discrete {
        /// How many there are.
        n: usize,
    },
    /// Arrays of `shape`, each element between its bounds (which may be infinite).
    Box {
        /// Dimensions, row-major.
        shape: Vec<usize>,
        /// Lower bounds, `[shape.product()]`.
        low: Vec<f32>,
        /// Upper bounds, `[shape.product()]`.
        high: Vec<f32>,
    },
    /// Several spaces side by side, such as Blackjack's three integers.
    Tuple(Vec<Space>),
}

impl Space {
    /// A vector space with the same bounds in each of `len` dimensions.
    pub fn uniform(len: usize, low: f32, high: f32) -> Self {
        Space::Box { shape: vec![len], low: vec![low; len], high: vec![high; len] }
    }

    /// A vector space with the bounds given.
    pub fn bounded(low: &[f32], high: &[f32]) -> Self {
        Space::Box { shape: vec![low.len()], low: low.to_vec(), high: high.to_vec() }
    }

    /// How many numbers one element takes: 1 for `Discrete`, the product of the shape for `Box`.
    pub fn size(&self) -> usize {
        match self {
            Space::Discrete { .. } => 1,
            Space::Box { shape, .. } => shape.iter().product(),
            Space::Tuple(spaces) => spaces.iter().map(Space::size).sum(),
        }
    }

    /// Moves each number of `values`, `[n, size]` flattened, to the nearest one within the bounds; NaN stays.
    /// Spaces without bounds leave them as they are.
    pub fn clip(&self, values: &mut [f32]) {
        if let Space::Box { low, high, .. } = self {
            for row in values.chunks_mut(low.len().max(1)) {
                for ((value, low), high) in row.iter_mut().zip(low).zip(high) {
                    // Not max and min, which turn NaN into a bound: `VecEnv` refuses it.
                    *value = if *value < *low {
                        *low
                    } else if *value > *high {
                        *high
                    } else {
                        *value
                    };
                }
            }
        }
    }

    /// Dimensions of one element: those of a `Box`, `[size]` elsewhere.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Space::Box { shape, .. } => shape.clone(),
            _ => vec![self.size()],
        }
    }

    /// Whether `values` (flattened, [`Space::size`] of them) lie in this space.
    pub fn contains(&self, values: &[f32]) -> bool {
        if values.len() != self.size() {
            return false;
        }
        match self {
            Space::Discrete { n } => values[0] >= 0.0 && values[0] < *n as f32 && values[0].fract() == 0.0,
            Space::Box { low, high, .. } => {
                values.iter().zip(low).zip(high).all(|((v, l), h)| v >= l && v <= h)
            }
            Space::Tuple(spaces) => {
                let mut rest = values;
                spaces.iter().all(|space| {
                    let (head, tail) = rest.split_at(space.size());
                    rest = tail;
                    space.contains(head)
                })
            }
        }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Space::Discrete { n } => write!(f, "Discrete({n})"),
            Space::Box { shape, .. } => write!(f, "Box({shape:?})"),
            Space::Tuple(spaces) => {
                write!(f, "Tuple(")?;
                for (i, space) in spaces.iter().enumerate() {
                    write!(f, "{}{space}", if i > 0 { ", " } else { "" })?;
                }
                write!(f, ")")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_moves_each_number_to_its_nearest_bound() {
        let space = Space::bounded(&[-1.0, 0.0, f32::NEG_INFINITY], &[1.0, 5.0, f32::INFINITY]);
        let mut values = [-2.0, 7.0, 1e30, 0.5, -7.0, -1e30];
        space.clip(&mut values);
        assert_eq!(values, [-1.0, 5.0, 1e30, 0.5, 0.0, -1e30]);
        assert!(values.chunks(3).all(|row| space.contains(row)));
        Space::Discrete { n: 2 }.clip(&mut values);
        assert_eq!(values[1], 5.0);
        values[0] = f32::NAN;
        space.clip(&mut values);
        assert!(values[0].is_nan());
    }
}
