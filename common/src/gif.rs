//! Animated GIFs of episodes, for `--capture-video`.
//!
//! Frames are `[height, width, 3]` bytes as [`envs::Canvas::rgb`] gives them. A GIF holds at most
//! 256 colours a frame; flat drawings with smooth edges rarely have more, and then nothing is
//! lost.

use anyhow::{Context, Result};
use image::{
    Delay, Frame, RgbaImage,
    codecs::gif::{GifEncoder, Repeat},
};
use std::{
    cell::RefCell,
    collections::HashSet,
    io::{self, Write},
    path::{Path, PathBuf},
    rc::Rc,
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
    width: u32,
    height: u32,
    frame_ms: u32,
    encoder: GifEncoder<SharedBuffer>,
    bytes: SharedBuffer,
    /// Index into [`CHANNEL_LEVELS`]. It only grows, so that colours do not flicker between a
    /// frame with few colours and one with many.
    levels: usize,
}

impl GifWriter {
    /// An animation of `width` × `height` pixels that shows each frame for `frame_ms`
    /// milliseconds, over and over. Times are rounded to the format's hundredths of a second and
    /// are at least 20 ms, since browsers slow shorter ones down to 100 ms.
    pub fn new(path: &Path, width: u32, height: u32, frame_ms: u32) -> Result<Self> {
        let sizes = 1..=u32::from(u16::MAX);
        if !sizes.contains(&width) || !sizes.contains(&height) {
            return envs::invalid(format!(
                "{}: a GIF of {width} x {height} pixels is not possible, each side takes 1 to 65535",
                path.display()
            ));
        }
        let bytes = SharedBuffer::default();
        let mut encoder = GifEncoder::new(bytes.clone());
        encoder.set_repeat(Repeat::Infinite)?;
        let frame_ms = (frame_ms.saturating_add(5) / 10 * 10).max(20);
        Ok(Self { path: path.to_path_buf(), width, height, frame_ms, encoder, bytes, levels: 0 })
    }

    /// Appends a frame; `rgb` is `[height, width, 3]`.
    pub fn push(&mut self, rgb: &[u8]) -> Result<()> {
        let expected = self.width as usize * self.height as usize * 3;
        if rgb.len() != expected {
            return envs::invalid(format!(
                "{}: a frame has {} bytes, {} x {} pixels take {expected}",
                self.path.display(),
                rgb.len(),
                self.width,
                self.height
            ));
        }
        while !fits(rgb, CHANNEL_LEVELS[self.levels]) {
            self.levels += 1;
        }
        let levels = CHANNEL_LEVELS[self.levels];
        let rgba = rgb.chunks_exact(3).flat_map(|pixel| {
            let [r, g, b] = quantise(pixel, levels);
            [r, g, b, u8::MAX]
        });
        let image = RgbaImage::from_vec(self.width, self.height, rgba.collect())
            .context("a frame's size does not match its bytes")?;
        self.encoder
            .encode_frame(Frame::from_parts(image, 0, 0, Delay::from_numer_denom_ms(self.frame_ms, 1)))
            .with_context(|| format!("{}: cannot encode a frame", self.path.display()))
    }

    /// Writes the animation to its path, whole or not at all.
    pub fn finish(self) -> Result<()> {
        // The encoder appends the trailer when it is dropped.
        drop(self.encoder);
        if self.bytes.0.borrow().is_empty() {
            return envs::invalid(format!("{}: an animation needs at least one frame", self.path.display()));
        }
        crate::run::write_atomically(&self.path, &self.bytes.0.borrow())
    }
}

/// Writes `frames`, each `[height, width, 3]`, as one animation: [`GifWriter`] in one call.
pub fn write_gif(path: &Path, frames: &[Vec<u8>], width: u32, height: u32, frame_ms: u32) -> Result<()> {
    let mut gif = GifWriter::new(path, width, height, frame_ms)?;
    for frame in frames {
        gif.push(frame)?;
    }
    gif.finish()
}

/// Whether the frame has few enough colours once each channel is rounded to one of `levels`.
fn fits(rgb: &[u8], levels: u16) -> bool {
    let mut colors = HashSet::with_capacity(MAX_COLORS + 1);
    let mut last = None;
    for pixel in rgb.chunks_exact(3) {
        // Most pixels equal their neighbour.
        if last != Some(pixel) {
            last = Some(pixel);
            colors.insert(quantise(pixel, levels));
            if colors.len() > MAX_COLORS {
                return false;
            }
        }
    }
    true
}

/// The nearest colour whose channels are among `levels` evenly spaced values from 0 to 255.
fn quantise(pixel: &[u8], levels: u16) -> [u8; 3] {
    let top = levels - 1;
    std::array::from_fn(|i| {
        let level = (u16::from(pixel[i]) * top + 127) / 255;
        ((level * 255 + top / 2) / top) as u8
    })
}

/// Bytes that the encoder appends to and [`GifWriter`] takes at the end: the encoder itself gives
/// its writer back to no one.
#[derive(Clone, Default)]
struct SharedBuffer(Rc<RefCell<Vec<u8>>>);

impl Write for SharedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envs::{Canvas, canvas::palette};
    use image::{AnimationDecoder, codecs::gif::GifDecoder};
    use std::{fs, io::Cursor};

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

    fn decode(path: &Path) -> Vec<Frame> {
        let bytes = fs::read(path).unwrap();
        GifDecoder::new(Cursor::new(bytes)).unwrap().into_frames().collect_frames().unwrap()
    }

    #[test]
    fn frames_come_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.gif");
        let frames: Vec<_> = (0..20).map(frame).collect();
        write_gif(&path, &frames, WIDTH, HEIGHT, 33).unwrap();

        let decoded = decode(&path);
        assert_eq!(decoded.len(), frames.len());
        for (decoded, frame) in decoded.iter().zip(&frames) {
            assert_eq!(decoded.delay().numer_denom_ms(), (30, 1));
            let rgb: Vec<u8> = decoded.buffer().pixels().flat_map(|p| [p[0], p[1], p[2]]).collect();
            assert!(rgb == *frame, "a frame changed");
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
        assert!(!fits(&rgb, 256));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("many.gif");
        write_gif(&path, &[rgb.clone(), rgb.clone()], 64, 64, 50).unwrap();
        let decoded = decode(&path);
        assert_eq!(decoded.len(), 2);
        for (decoded, original) in decoded[1].buffer().pixels().zip(rgb.chunks_exact(3)) {
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
        for (asked, shown) in [(0, 20), (16, 20), (33, 30), (35, 40), (50, 50)] {
            let gif = GifWriter::new(Path::new("agent.gif"), 1, 1, asked).unwrap();
            assert_eq!(gif.frame_ms, shown);
        }
    }
}
