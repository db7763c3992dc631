//! Things that happen every few seconds in a loop whose iterations may take nanoseconds.

use std::time::{Duration, Instant};

/// Most calls between two looks at the clock.
const SKIPPED: u32 = 64;

/// Says when its time has come. It may be asked in every step: while the steps are short, it looks at
/// the clock, which takes as long as some steps do, ever less often, at every 64th in the end.
pub(crate) struct Timer {
    due: Instant,
    looked: Instant,
    calls: u32,   // until the next look
    skipped: u32, // between the last two
}

impl Timer {
    pub fn new(wait: Duration) -> Self {
        let now = Instant::now();
        Self { due: now + wait, looked: now, calls: 0, skipped: 0 }
    }

    /// Whether the time that it was set to has passed.
    pub fn is_due(&mut self) -> bool {
        self.is_due_at(Instant::now)
    }

    fn is_due_at(&mut self, clock: impl FnOnce() -> Instant) -> bool {
        if self.calls > 0 {
            self.calls -= 1;
            return false;
        }
        let now = clock();
        // Two quick calls may be followed by a slow one, so that it does not look away for long at once.
        let fast = now - self.looked < Duration::from_millis(1);
        self.skipped = if fast { (2 * self.skipped + 1).min(SKIPPED - 1) } else { 0 };
        self.calls = self.skipped;
        self.looked = now;
        now >= self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_at_the_clock_at_every_slow_call_and_at_few_fast_ones() {
        let looks = |step: Duration| {
            let mut timer = Timer::new(Duration::from_secs(3600));
            let (start, mut looks) = (timer.looked, 0);
            for i in 1..=1000 {
                let due = timer.is_due_at(|| {
                    looks += 1;
                    start + i * step
                });
                assert!(!due);
            }
            looks
        };
        assert_eq!(looks(Duration::from_secs(1)), 1000);
        assert!(looks(Duration::from_nanos(100)) <= 1000 / SKIPPED + 6);
        // Neither is it late by more than 64 calls.
        let mut timer = Timer::new(Duration::from_secs(60));
        let start = timer.looked;
        let late = (1..).find(|&i| timer.is_due_at(|| start + i * Duration::from_secs(10))).unwrap();
        assert_eq!(late, 6);
        // Nor by much where quick calls and slow ones take turns.
        let mut timer = Timer::new(Duration::from_secs(60));
        let start = timer.looked;
        let clock = |i: u32| start + i / 2 * Duration::from_secs(30) + i % 2 * Duration::from_micros(1);
        let late = (0..).find(|&i| timer.is_due_at(|| clock(i))).unwrap();
        assert!(late <= 5, "{late}");
    }
}
