//! TensorBoard event files, written by hand: `tensorboard --logdir runs` shows them.
//!
//! An event file is a sequence of TFRecords, each holding one protocol-buffer message `Event`.
//! Two kinds of event suffice here, scalars and text, so encoding them takes a few dozen lines and
//! no code generator. The layouts are those of TensorFlow's `tensorflow/core/lib/io/record_writer.h`
//! (framing), `event.proto`, `summary.proto` and `tensor.proto` (field numbers).

use anyhow::{Context, Result};
use std::{
    fs::{self, File, OpenOptions},
    io::{BufWriter, ErrorKind, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Field numbers of the messages, each named `message_field`.
mod field {
    pub const EVENT_WALL_TIME: u8 = 1; // double, seconds since 1970
    pub const EVENT_STEP: u8 = 2; // int64
    pub const EVENT_FILE_VERSION: u8 = 3; // string
    pub const EVENT_SUMMARY: u8 = 5; // Summary
    pub const SUMMARY_VALUE: u8 = 1; // repeated Value
    pub const VALUE_TAG: u8 = 1; // string
    pub const VALUE_SIMPLE_VALUE: u8 = 2; // float
    pub const VALUE_TENSOR: u8 = 8; // TensorProto
    pub const VALUE_METADATA: u8 = 9; // SummaryMetadata
    pub const METADATA_PLUGIN_DATA: u8 = 1; // PluginData
    pub const PLUGIN_DATA_NAME: u8 = 1; // string
    pub const TENSOR_DTYPE: u8 = 1; // enum DataType
    pub const TENSOR_STRING_VAL: u8 = 8; // repeated bytes
}

/// `DataType::DT_STRING` in TensorFlow's `types.proto`.
const DT_STRING: u64 = 7;

/// An event file that is being written.
///
/// Writes are buffered: what was not flushed is lost when the process is killed.
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
    /// Bytes handed to `file` so far, counted from the start of the file.
    len: u64,
}

impl EventWriter {
    /// Starts a new event file in `dir`, which is created if it is missing. The file is called
    /// `events.out.tfevents.{unix seconds}.{host name}.{process id}`, as TensorBoard expects; a
    /// number is appended if that name is taken.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("{}: cannot create the directory", dir.display()))?;
        let name =
            format!("events.out.tfevents.{}.{}.{}", unix_seconds() as u64, host_name(), std::process::id());
        let mut path = dir.join(&name);
        let mut suffix = 0;
        let file = loop {
            match File::create_new(&path) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    suffix += 1;
                    path = dir.join(format!("{name}.{suffix}"));
                }
                created => {
                    break created
                        .with_context(|| format!("{}: cannot create the event file", path.display()))?;
                }
            }
        };
        let mut writer = Self { path, file: BufWriter::new(file), len: 0 };
        // Readers take a file without this first record for one of a format before 2014.
        let mut version = Vec::new();
        put_bytes(&mut version, field::EVENT_FILE_VERSION, b"brain.Event:2");
        writer.event(0, &version)?;
        Ok(writer)
    }

    /// Goes on with the event file at `path` from its first `len` bytes, as [`len`](Self::len)
    /// gave them; whatever was written after them goes with [`cut`](Self::cut), so that a run resumed
    /// from a checkpoint logs each step once. A TensorBoard that has the file open must be restarted.
    pub fn resume(path: &Path, len: u64) -> Result<Self> {
        let open = || -> std::io::Result<(File, u64)> {
            let file = OpenOptions::new().write(true).open(path)?;
            let present = file.metadata()?.len();
            Ok((file, present))
        };
        let (mut file, present) =
            open().with_context(|| format!("{}: cannot open the event file", path.display()))?;
        if present < len {
            return envs::invalid(format!(
                "{}: the event file has {present} bytes, resuming needs its first {len}",
                path.display()
            ));
        }
        file.seek(SeekFrom::Start(len))
            .with_context(|| format!("{}: cannot go on in the event file", path.display()))?;
        Ok(Self { path: path.to_path_buf(), file: BufWriter::new(file), len })
    }

    /// Cuts off what the file holds beyond what was written here.
    pub fn cut(&mut self) -> Result<()> {
        self.flush()?;
        let (len, shown) = (self.len, self.path.display());
        let cut = self.file.get_ref().set_len(len);
        cut.with_context(|| format!("{shown}: cannot cut the event file to {len} bytes"))
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file in bytes, once [`flush`](Self::flush) has been called.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Adds the point (`step`, `value`) to the curve `tag`.
    pub fn scalar(&mut self, tag: &str, value: f32, step: u64) -> Result<()> {
        let mut point = Vec::with_capacity(tag.len() + 16);
        put_bytes(&mut point, field::VALUE_TAG, tag.as_bytes());
        put_key(&mut point, field::VALUE_SIMPLE_VALUE, WireType::Fixed32);
        point.extend(value.to_le_bytes());
        self.summary(step, &point)
    }

    /// Adds a text, formatted as Markdown, that TensorBoard shows in its "Text" tab.
    pub fn text(&mut self, tag: &str, markdown: &str) -> Result<()> {
        let mut tensor = Vec::with_capacity(markdown.len() + 16);
        put_key(&mut tensor, field::TENSOR_DTYPE, WireType::Varint);
        put_varint(&mut tensor, DT_STRING);
        put_bytes(&mut tensor, field::TENSOR_STRING_VAL, markdown.as_bytes());

        let mut plugin_data = Vec::new();
        put_bytes(&mut plugin_data, field::PLUGIN_DATA_NAME, b"text");
        let mut metadata = Vec::new();
        put_bytes(&mut metadata, field::METADATA_PLUGIN_DATA, &plugin_data);

        let mut value = Vec::with_capacity(tensor.len() + tag.len() + 32);
        put_bytes(&mut value, field::VALUE_TAG, tag.as_bytes());
        put_bytes(&mut value, field::VALUE_TENSOR, &tensor);
        put_bytes(&mut value, field::VALUE_METADATA, &metadata);
        self.summary(0, &value)
    }

    /// Hands everything written so far to the operating system.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().with_context(|| format!("{}: cannot write to the event file", self.path.display()))
    }

    /// Brings everything written so far to the disk.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        let synced = self.file.get_ref().sync_data();
        synced.with_context(|| format!("{}: cannot write to the event file", self.path.display()))
    }

    /// Writes an event that holds a summary of one `value`.
    fn summary(&mut self, step: u64, value: &[u8]) -> Result<()> {
        let mut summary = Vec::with_capacity(value.len() + 8);
        put_bytes(&mut summary, field::SUMMARY_VALUE, value);
        let mut content = Vec::with_capacity(summary.len() + 8);
        put_bytes(&mut content, field::EVENT_SUMMARY, &summary);
        self.event(step, &content)
    }

    /// Writes an event of now, with the field `content`, as one record:
    /// length (u64), its masked CRC, the message, its masked CRC, all little-endian.
    fn event(&mut self, step: u64, content: &[u8]) -> Result<()> {
        let mut event = Vec::with_capacity(content.len() + 24);
        put_key(&mut event, field::EVENT_WALL_TIME, WireType::Fixed64);
        event.extend(unix_seconds().to_le_bytes());
        put_key(&mut event, field::EVENT_STEP, WireType::Varint);
        put_varint(&mut event, step);
        event.extend(content);

        let length = (event.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_crc(&event).to_le_bytes());
        self.file
            .write_all(&record)
            .with_context(|| format!("{}: cannot write to the event file", self.path.display()))?;
        self.len += record.len() as u64;
        Ok(())
    }
}

/// Checksum of a TFRecord: CRC-32C, rotated and shifted so that the checksum of data that holds
/// checksums stays meaningful (`tensorflow/core/lib/hash/crc32c.h`).
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// How a field's value is laid out ("Encoding" in the documentation of protocol buffers).
#[derive(Clone, Copy)]
enum WireType {
    Varint = 0,
    Fixed64 = 1,
    LengthDelimited = 2,
    Fixed32 = 5,
}

/// Appends what precedes a field's value. Field numbers below 16 fit in one byte.
fn put_key(message: &mut Vec<u8>, field: u8, wire_type: WireType) {
    message.push(field << 3 | wire_type as u8);
}

/// Appends an integer, seven bits a byte, the lowest first; the top bit says that more follow.
fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// Appends a field that is a string, bytes or a message.
fn put_bytes(message: &mut Vec<u8>, field: u8, value: &[u8]) {
    put_key(message, field, WireType::LengthDelimited);
    put_varint(message, value.len() as u64);
    message.extend(value);
}

/// Seconds since 1970; 0 on a machine whose clock is set before that.
fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// This machine's name where it can be read without a system call, else "localhost".
fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::env::var("HOSTNAME"))
        .map(|name| name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).collect())
        .ok()
        .filter(|name: &String| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32C bit by bit, from its polynomial alone (0x1EDC6F41, reflected).
    fn crc32c_bitwise(data: &[u8]) -> u32 {
        let mut crc = !0u32;
        for &byte in data {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
            }
        }
        !crc
    }

    fn unmask(masked: u32) -> u32 {
        masked.wrapping_sub(0xA282_EAD8).rotate_left(15)
    }

    /// A field of a protocol-buffer message: number and value.
    #[derive(Debug, Clone, PartialEq)]
    enum Value {
        Varint(u64),
        Fixed64([u8; 8]),
        Bytes(Vec<u8>),
        Fixed32([u8; 4]),
    }

    struct Reader<'a>(&'a [u8]);

    impl Reader<'_> {
        fn take<const N: usize>(&mut self) -> [u8; N] {
            self.bytes(N).try_into().unwrap()
        }
        fn bytes(&mut self, n: usize) -> Vec<u8> {
            let (head, tail) = self.0.split_at(n);
            self.0 = tail;
            head.to_vec()
        }
        fn varint(&mut self) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let [byte] = self.take();
                value |= u64::from(byte & 0x7F) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        }
    }

    fn message(bytes: &[u8]) -> Vec<(u64, Value)> {
        let mut reader = Reader(bytes);
        let mut fields = Vec::new();
        while !reader.0.is_empty() {
            let key = reader.varint();
            let value = match key & 7 {
                0 => Value::Varint(reader.varint()),
                1 => Value::Fixed64(reader.take()),
                2 => {
                    let len = reader.varint() as usize;
                    Value::Bytes(reader.bytes(len))
                }
                5 => Value::Fixed32(reader.take()),
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, value));
        }
        fields
    }

    fn get(fields: &[(u64, Value)], number: u64) -> Value {
        fields.iter().find(|(n, _)| *n == number).unwrap().1.clone()
    }

    fn inner(fields: &[(u64, Value)], number: u64) -> Vec<u8> {
        match get(fields, number) {
            Value::Bytes(bytes) => bytes,
            other => panic!("field {number} is {other:?}"),
        }
    }

    /// The events of a file; panics on a wrong checksum or a cut record.
    fn events(path: &Path) -> Vec<Vec<(u64, Value)>> {
        let bytes = fs::read(path).unwrap();
        let mut reader = Reader(&bytes);
        let mut events = Vec::new();
        while !reader.0.is_empty() {
            let length: [u8; 8] = reader.take();
            assert_eq!(unmask(u32::from_le_bytes(reader.take())), crc32c_bitwise(&length));
            let event = reader.bytes(u64::from_le_bytes(length) as usize);
            assert_eq!(unmask(u32::from_le_bytes(reader.take())), crc32c_bitwise(&event));
            events.push(message(&event));
        }
        events
    }

    /// Tag, value and step of an event that holds a scalar.
    fn scalar(event: &[(u64, Value)]) -> (String, f32, u64) {
        let value = message(&inner(&message(&inner(event, 5)), 1));
        let Value::Fixed32(number) = get(&value, 2) else { panic!("{value:?}") };
        let Value::Varint(step) = get(event, 2) else { panic!("{event:?}") };
        (String::from_utf8(inner(&value, 1)).unwrap(), f32::from_le_bytes(number), step)
    }

    #[test]
    fn checksums_match_published_vectors() {
        // RFC 3720, appendix B.4, and the check value of CRC-32C in the catalogue of CRCs.
        assert_eq!(crc32c_bitwise(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c_bitwise(b"123456789"), 0xE306_9283);
        assert_eq!(unmask(masked_crc(&[0; 32])), 0x8A91_36AA);
        assert_eq!(unmask(masked_crc(b"123456789")), 0xE306_9283);
    }

    #[test]
    fn scalars_and_text_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(&dir.path().join("run")).unwrap();
        writer.text("hyperparameters", "|seed|\n|-|\n|1|").unwrap();
        writer.scalar("charts/episodic_return", -1.5, 300).unwrap();
        writer.scalar("losses/value_loss", f32::NAN, u64::from(u32::MAX) * 1000).unwrap();
        writer.flush().unwrap();

        assert_eq!(writer.len(), fs::metadata(writer.path()).unwrap().len());
        let events = events(writer.path());
        assert_eq!(events.len(), 4);
        assert_eq!(inner(&events[0], 3), b"brain.Event:2");
        for event in &events {
            let Value::Fixed64(wall_time) = get(event, 1) else { panic!("{event:?}") };
            // After the year 2020, in seconds: not milliseconds, not zero.
            assert!((1.5e9..1e11).contains(&f64::from_le_bytes(wall_time)));
        }

        let text = message(&inner(&message(&inner(&events[1], 5)), 1));
        assert_eq!(inner(&text, 1), b"hyperparameters");
        let tensor = message(&inner(&text, 8));
        assert_eq!(get(&tensor, 1), Value::Varint(7));
        assert_eq!(inner(&tensor, 8), b"|seed|\n|-|\n|1|");
        assert_eq!(inner(&message(&inner(&message(&inner(&text, 9)), 1)), 1), b"text");

        assert_eq!(scalar(&events[2]), ("charts/episodic_return".into(), -1.5, 300));
        let (tag, value, step) = scalar(&events[3]);
        assert_eq!((tag.as_str(), step), ("losses/value_loss", u64::from(u32::MAX) * 1000));
        assert!(value.is_nan());
    }

    #[test]
    fn names_follow_tensorboard_and_never_collide() {
        let dir = tempfile::tempdir().unwrap();
        let writers: Vec<_> = (0..3).map(|_| EventWriter::create(dir.path()).unwrap()).collect();
        for writer in &writers {
            let name = writer.path().file_name().unwrap().to_str().unwrap();
            let rest = name.strip_prefix("events.out.tfevents.").unwrap();
            assert!(rest.split('.').next().unwrap().parse::<u64>().is_ok(), "{name}");
            assert!(rest.contains(&std::process::id().to_string()), "{name}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn resuming_forgets_what_came_after_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path()).unwrap();
        writer.scalar("a", 1.0, 1).unwrap();
        writer.flush().unwrap();
        let (path, len) = (writer.path().to_path_buf(), writer.len());
        writer.scalar("a", 2.0, 2).unwrap();
        drop(writer);
        // As a killed process leaves it: with a record cut in the middle.
        let torn = fs::metadata(&path).unwrap().len() - 5;
        File::options().write(true).open(&path).unwrap().set_len(torn).unwrap();

        let mut writer = EventWriter::resume(&path, len).unwrap();
        writer.cut().unwrap();
        assert_eq!(writer.len(), len);
        writer.scalar("a", 3.0, 2).unwrap();
        writer.flush().unwrap();
        assert_eq!(writer.len(), fs::metadata(&path).unwrap().len());

        let events = events(&path);
        let scalars: Vec<_> = events[1..].iter().map(|event| scalar(event)).collect();
        assert_eq!(scalars, [("a".into(), 1.0, 1), ("a".into(), 3.0, 2)]);
    }

    #[test]
    fn resuming_a_file_that_is_too_short_or_missing_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path()).unwrap();
        writer.flush().unwrap();
        let (path, len) = (writer.path().to_path_buf(), writer.len());
        drop(writer);
        let error = EventWriter::resume(&path, len + 1).err().unwrap().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains(&format!("has {len} bytes")), "{error}");
        assert_eq!(fs::metadata(&path).unwrap().len(), len, "a refused file stays as it was");

        let missing = dir.path().join("missing");
        let error = EventWriter::resume(&missing, 0).err().unwrap().to_string();
        assert!(error.contains("missing: cannot open the event file"), "{error}");
        assert!(!missing.exists());
    }
}
