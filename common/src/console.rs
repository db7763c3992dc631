//! What a run shows while it trains: a progress bar on a terminal; elsewhere a plain line every few
//! seconds.

use crate::timer::Timer;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Writes a line to standard error. One that is gone (a terminal that was closed, a reader that has
/// ended) is no reason to panic, as `eprintln` does.
pub(crate) fn tell(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

pub(crate) struct Console {
    bar: Option<ProgressBar>,
    total: usize,
    started: Instant,
    timer: Timer,
}

impl Console {
    /// Without a bar where it is `quiet`.
    pub fn new(total: usize, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let style =
                ProgressStyle::with_template("{bar:32} {human_pos}/{human_len}  {msg}  {elapsed} < {eta}");
            let bar = ProgressBar::new(total as u64);
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("━╸ "));
            }
            bar
        });
        let timer = Timer::new(Self::pause(&bar));
        Self { bar, total, started: Instant::now(), timer }
    }

    fn pause(bar: &Option<ProgressBar>) -> Duration {
        Duration::from_millis(if bar.is_some() { 100 } else { 5000 })
    }

    /// Prints `text` on lines of its own.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tell(text)),
            None => tell(text),
        }
    }

    /// Whether it is time for [`Console::update`].
    pub fn is_due(&mut self) -> bool {
        let due = self.timer.is_due();
        if due {
            self.timer = Timer::new(Self::pause(&self.bar));
        }
        due
    }

    /// Shows how far the run is.
    pub fn update(&self, step: usize, mean_return: Option<f64>, sps: f64) {
        let mean = mean_return.map_or("return –".to_string(), |mean| format!("return {mean:.1}"));
        match &self.bar {
            Some(bar) => {
                bar.set_position(step as u64);
                bar.set_message(format!("{mean}  {sps:.0} steps/s"));
            }
            None => {
                let left = self.total.saturating_sub(step) as f64 / sps.max(1e-9);
                let elapsed = self.started.elapsed().as_secs_f64();
                tell(format_args!(
                    "step {step}/{}  {mean}  {sps:.0} steps/s  {elapsed:.0} s elapsed, {left:.0} s left",
                    self.total
                ));
            }
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
