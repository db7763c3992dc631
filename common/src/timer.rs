//! Things that happen every few seconds in a loop whose iterations may take nanoseconds.

use std::time::{Duration, Instant};

/// Most calls between two looks at the clock.
const SKIPPED: u32 = 64;

/// Says when its time has come. It may be asked in every step: while the steps are short, it looks at
/// the clock, which takes as long as some steps do, only at every 64th.
pub(crate) struct Timer {
    due: Instant,
    looked: Instant,
    calls: u32, // until the next look
}

impl Timer {
    pub fn new(wait: Duration) -> Self {
        let now = Instant::now();
        Self { due: now + wait, looked: now, calls: 0 }
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
        if now - self.looked < Duration::from_millis(1) {
            self.calls = SKIPPED - 1;
        }
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
        assert!(looks(Duration::from_nanos(100)) <= 1000 / SKIPPED + 1);
        // Neither is it late by more than 64 calls.
        let mut timer = Timer::new(Duration::from_secs(60));
        let start = timer.looked;
        let late = (1..).find(|&i| timer.is_due_at(|| start + i * Duration::from_secs(10))).unwrap();
        assert_eq!(late, 6);
    }
}
