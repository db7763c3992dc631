//! Animated GIFs of episodes, for `--capture-video`.
//!
//! Frames are `[height, width, 3]` bytes as [`envs::Canvas::rgb`] gives them. A GIF holds at most
//! 256 colours a frame; flat drawings with smooth edges rarely have more, and then nothing is
//! lost.

use crate::write_atomically::write_atomically;
use anyhow::{Context, Result};
use gif::{Encoder, Frame, Repeat};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Most colours that a frame of a GIF can hold.
const MAX_COLORS: usize = 256;

/// Values a colour channel may take, from exact to coarse. The last always fits: 6³ = 216.
const CHANNEL_LEVELS: [u16; 6] = [256, 64, 32, 16, 8, 6];

/// An animation that grows frame by frame and appears at its path when it is finished.
///
/// Frames are compressed as they come; only the compressed bytes stay in memory.
pub struct GifWriter {
    path: PathBuf,
    width: u16,
    height: u16,
    /// Hundredths of a second that each frame is shown.
    delay: u16,
    encoder: Encoder<Vec<u8>>,
    frames: usize,
    /// Index into [`CHANNEL_LEVELS`]. It only grows, so that colours do not flicker between a
    /// frame with few colours and one with many.
    levels: usize,
}

impl GifWriter {
    /// An animation of `width` × `height` pixels that shows each frame for `frame_ms`
    /// milliseconds, over and over. Times are rounded to the format's hundredths of a second and
    /// are at least 20 ms, since browsers slow shorter ones down to 100 ms.
    pub fn new(path: &Path, width: u32, height: u32, frame_ms: u32) -> Result<Self> {
        let (Ok(width @ 1..), Ok(height @ 1..)) = (u16::try_from(width), u16::try_from(height)) else {
            return envs::invalid(format!(
                "{}: a GIF of {width} x {height} pixels is not possible, each side takes 1 to 65535",
                path.display()
            ));
        };
        let mut encoder = Encoder::new(Vec::new(), width, height, &[])?;
        encoder.set_repeat(Repeat::Infinite)?;
        let delay = u16::try_from(frame_ms.saturating_add(5) / 10).unwrap_or(u16::MAX).max(2);
        Ok(Self { path: path.to_path_buf(), width, height, delay, encoder, frames: 0, levels: 0 })
    }

    /// How many frames it has.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Appends a frame; `rgb` is `[height, width, 3]`.
    pub fn push(&mut self, rgb: &[u8]) -> Result<()> {
        let expected = usize::from(self.width) * usize::from(self.height) * 3;
        if rgb.len() != expected {
            return envs::invalid(format!(
                "{}: a frame has {} bytes, {} x {} pixels take {expected}",
                self.path.display(),
                rgb.len(),
                self.width,
                self.height
            ));
        }
        let (palette, pixels) = loop {
            match indexed(rgb, CHANNEL_LEVELS[self.levels]) {
                Some(found) => break found,
                None => self.levels += 1,
            }
        };
        let frame = Frame {
            width: self.width,
            height: self.height,
            delay: self.delay,
            palette: Some(palette),
            buffer: pixels.into(),
            ..Frame::default()
        };
        self.frames += 1;
        let written = self.encoder.write_frame(&frame);
        written.with_context(|| format!("{}: cannot encode a frame", self.path.display()))
    }

    /// Writes the animation to its path, whole or not at all.
    pub fn finish(self) -> Result<()> {
        if self.frames == 0 {
            return envs::invalid(format!("{}: an animation needs at least one frame", self.path.display()));
        }
        write_atomically(&self.path, &self.encoder.into_inner()?)
    }
}

/// The frame's colours, each channel rounded to one of `levels`, three bytes each, and for each pixel
/// the index of its colour; `None` where there are too many.
fn indexed(rgb: &[u8], levels: u16) -> Option<(Vec<u8>, Vec<u8>)> {
    let (mut palette, mut pixels) = (Vec::new(), Vec::with_capacity(rgb.len() / 3));
    let mut indices = HashMap::with_capacity(MAX_COLORS);
    let mut last: Option<(&[u8], u8)> = None;
    for pixel in rgb.chunks_exact(3) {
        // Most pixels equal their neighbour.
        let index = match last {
            Some((same, index)) if same == pixel => index,
            _ => {
                let color = quantise(pixel, levels);
                let next = indices.len();
                let index = *indices.entry(color).or_insert_with(|| {
                    palette.extend(color);
                    next
                });
                u8::try_from(index).ok()?
            }
        };
        last = Some((pixel, index));
        pixels.push(index);
    }
    Some((palette, pixels))
}

/// The nearest colour whose channels are among `levels` evenly spaced values from 0 to 255.
fn quantise(pixel: &[u8], levels: u16) -> [u8; 3] {
    let top = levels - 1;
    std::array::from_fn(|i| {
        let level = (u16::from(pixel[i]) * top + 127) / 255;
        ((level * 255 + top / 2) / top) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use envs::{Canvas, canvas::palette};
    use gif::{ColorOutput, DecodeOptions};
    use std::{collections::HashSet, fs};

    const WIDTH: u32 = 120;
    const HEIGHT: u32 = 80;

    /// A pole that swings on a cart.
    fn frame(t: usize) -> Vec<u8> {
        let mut canvas = Canvas::new(WIDTH, HEIGHT);
        canvas.view(-1.5, -0.5, 1.5, 1.5);
        let angle = 0.5 * (t as f64 * 0.3).sin();
        canvas.rectangle(-0.3, -0.1, 0.6, 0.2, palette::BLACK);
        canvas.line(&[(0.0, 0.0), (angle.sin(), angle.cos())], 0.1, palette::ORANGE);
        canvas.circle(0.0, 0.0, 0.06, palette::BLUE);
        canvas.rgb()
    }

    fn write_gif(path: &Path, frames: &[Vec<u8>], width: u32, height: u32, frame_ms: u32) -> Result<()> {
        let mut gif = GifWriter::new(path, width, height, frame_ms)?;
        for frame in frames {
            gif.push(frame)?;
        }
        gif.finish()
    }

    /// The frames of a file, `[height, width, 3]`, and the hundredths of a second each is shown.
    fn decode(path: &Path) -> Vec<(Vec<u8>, u16)> {
        let mut options = DecodeOptions::new();
        options.set_color_output(ColorOutput::RGBA);
        let mut decoder = options.read_info(fs::File::open(path).unwrap()).unwrap();
        let mut frames = Vec::new();
        while let Some(frame) = decoder.read_next_frame().unwrap() {
            let rgb = frame.buffer.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]);
            frames.push((rgb.collect(), frame.delay));
        }
        frames
    }

    #[test]
    fn frames_come_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.gif");
        let frames: Vec<_> = (0..20).map(frame).collect();
        write_gif(&path, &frames, WIDTH, HEIGHT, 33).unwrap();

        let decoded = decode(&path);
        assert_eq!(decoded.len(), frames.len());
        for ((rgb, delay), frame) in decoded.iter().zip(&frames) {
            assert_eq!(*delay, 3);
            assert!(rgb == frame, "a frame changed");
        }
        // NETSCAPE2.0 with a loop count of zero: for ever.
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.windows(16).any(|w| w == b"NETSCAPE2.0\x03\x01\x00\x00\x00"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left behind");
    }

    #[test]
    fn many_colours_are_rounded_without_touching_black_and_white() {
        // 64 × 64 distinct colours, black and white among them.
        let rgb: Vec<u8> = (0..64u8)
            .flat_map(|y| (0..64u8).flat_map(move |x| [x * 4 + x / 21, y * 4 + y / 21, (x * 4 + x / 21)]))
            .collect();
        assert!(indexed(&rgb, 256).is_none());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("many.gif");
        write_gif(&path, &[rgb.clone(), rgb.clone()], 64, 64, 50).unwrap();
        let decoded = decode(&path);
        assert_eq!(decoded.len(), 2);
        for (decoded, original) in decoded[1].0.chunks_exact(3).zip(rgb.chunks_exact(3)) {
            for channel in 0..3 {
                assert!(decoded[channel].abs_diff(original[channel]) <= 255 / (2 * 15) + 1);
                if [0, 255].contains(&original[channel]) {
                    assert_eq!(decoded[channel], original[channel]);
                }
            }
        }
    }

    #[test]
    fn every_rounding_keeps_its_own_levels() {
        for levels in CHANNEL_LEVELS {
            let values: HashSet<_> = (0..=255u8).map(|v| quantise(&[v, v, v], levels)[0]).collect();
            assert_eq!(values.len(), usize::from(levels));
            for v in values {
                assert_eq!(quantise(&[v, v, v], levels), [v; 3]);
            }
        }
    }

    #[test]
    fn bad_input_is_refused_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.gif");
        let error = write_gif(&path, &[], WIDTH, HEIGHT, 20).unwrap_err().to_string();
        assert!(error.contains("at least one frame"), "{error}");
        let error = write_gif(&path, &[frame(0), vec![0; 5]], WIDTH, HEIGHT, 20).unwrap_err().to_string();
        assert!(error.contains("a frame has 5 bytes, 120 x 80 pixels take 28800"), "{error}");
        let error = write_gif(&path, &[vec![]], 0, 80, 20).unwrap_err().to_string();
        assert!(error.contains("0 x 80 pixels"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let error = write_gif(&dir.path().join("no/where.gif"), &[frame(0)], WIDTH, HEIGHT, 20);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("where.gif: cannot be written"), "{error}");
    }

    #[test]
    fn durations_suit_browsers() {
        for (asked, shown) in [(0, 2), (16, 2), (33, 3), (35, 4), (50, 5)] {
            let gif = GifWriter::new(Path::new("agent.gif"), 1, 1, asked).unwrap();
            assert_eq!(gif.delay, shown);
        }
    }
}
