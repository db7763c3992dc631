//! A game's state as plain numbers. Each game lists its fields once; the same list writes the
//! numbers and reads them back, checking each.

use super::{Cells, SIDE};
use crate::{Result, invalid};
use std::ops::RangeInclusive;

/// What visits the fields of a game, one after the other.
pub struct Fields<'a>(Direction<'a>);

enum Direction<'a> {
    /// Fields are appended to the numbers.
    Write(&'a mut Vec<f64>),
    /// Fields are taken from the front of the numbers; errors name the environment.
    Read { id: &'a str, numbers: &'a [f64] },
}

impl<'a> Fields<'a> {
    /// Appends each field to `numbers`.
    pub fn write(numbers: &'a mut Vec<f64>) -> Self {
        Self(Direction::Write(numbers))
    }

    /// Sets each field from `numbers`; errors name the environment `id`.
    pub fn read(id: &'a str, numbers: &'a [f64]) -> Self {
        Self(Direction::Read { id, numbers })
    }

    /// An integer within `range`.
    pub fn integer(&mut self, name: &str, field: &mut i32, range: RangeInclusive<i32>) -> Result<()> {
        match &mut self.0 {
            Direction::Write(out) => out.push(f64::from(*field)),
            Direction::Read { id, numbers } => {
                let Some((&number, rest)) = numbers.split_first() else {
                    return invalid(format!("{id}: the state ends before its {name}"));
                };
                let (low, high) = (*range.start(), *range.end());
                if number.fract() != 0.0 || !(f64::from(low)..=f64::from(high)).contains(&number) {
                    return invalid(format!(
                        "{id}: {name} {number} in a state, an integer from {low} to {high} is needed"
                    ));
                }
                *numbers = rest;
                *field = number as i32;
            }
        }
        Ok(())
    }

    /// No or yes, as 0 or 1.
    pub fn flag(&mut self, name: &str, field: &mut bool) -> Result<()> {
        let mut number = i32::from(*field);
        self.integer(name, &mut number, 0..=1)?;
        *field = number == 1;
        Ok(())
    }

    /// A direction, −1 or +1, as 0 or 1.
    pub fn direction(&mut self, name: &str, field: &mut i32) -> Result<()> {
        let mut positive = *field > 0;
        self.flag(name, &mut positive)?;
        *field = if positive { 1 } else { -1 };
        Ok(())
    }

    /// The cells of `rows`, one number for each row with bit x for column x.
    pub fn cells(&mut self, name: &str, field: &mut Cells, rows: RangeInclusive<i32>) -> Result<()> {
        for y in rows {
            let mut bits = i32::from(field.row_bits(y));
            self.integer(name, &mut bits, 0..=(1 << SIDE) - 1)?;
            field.set_row_bits(y, bits as u16);
        }
        Ok(())
    }

    /// A list: its length, then the fields of each item.
    pub fn list<T: Clone + Default>(
        &mut self,
        name: &str,
        items: &mut Vec<T>,
        mut visit: impl FnMut(&mut T, &mut Self) -> Result<()>,
    ) -> Result<()> {
        // Far more than a game can hold, and few enough to allocate on a stranger's word.
        const MAX_LEN: i32 = 1000;
        let mut len = items.len() as i32;
        self.integer(name, &mut len, 0..=MAX_LEN)?;
        items.resize(len as usize, T::default());
        items.iter_mut().try_for_each(|item| visit(item, self))
    }

    /// Refuses a state for what its fields are together.
    pub fn ensure(&self, possible: bool, what: &str) -> Result<()> {
        match &self.0 {
            Direction::Read { id, .. } if !possible => invalid(format!("{id}: {what} in a state")),
            _ => Ok(()),
        }
    }

    /// Ends reading.
    ///
    /// # Errors
    /// Numbers left over.
    pub fn finish(self) -> Result<()> {
        match self.0 {
            Direction::Read { id, numbers } if !numbers.is_empty() => {
                invalid(format!("{id}: a state has {} numbers too many", numbers.len()))
            }
            _ => Ok(()),
        }
    }
}
