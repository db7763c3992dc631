"""Reads a run's event file with TensorBoard's own reader and prints what it found.

The tests of `common::tensorboard` read files back with a small reader of their own; this script
is the cross-check against the program that the files are for. See run.sh for how it is run.

Verified with Python 3.11.7, tensorboard 2.21.0, protobuf 7.36.2, numpy 2.4.6, setuptools 65.5.0
(TensorBoard 2.21 still imports `pkg_resources`, which setuptools 81 and later lack).

Exit code 1 when there is no event file or a record is damaged: TensorBoard itself passes over a
damaged tail in silence, so the records are counted here and compared with the file's length.
"""

import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader


def main(directory):
    files = sorted(Path(directory).glob("events.out.tfevents.*"))
    if not files:
        sys.exit(f"{directory}: no file events.out.tfevents.*")

    for file in files:
        data = file.read_bytes()
        records, offset = 0, 0
        while offset + 8 <= len(data):
            # Length, its checksum, the event, its checksum.
            (length,) = struct.unpack_from("<Q", data, offset)
            offset += 8 + 4 + length + 4
            records += 1
        # The loader checks every checksum and stops at the first record that is wrong or cut.
        events = list(EventFileLoader(str(file)).Load())
        version = events[0].file_version if events else ""
        print(f"{file.name}: {len(data)} bytes, {records} records, {len(events)} read, version {version!r}")
        if offset != len(data) or len(events) != records:
            sys.exit(f"{file}: damaged after record {len(events)}")

    # 0: keep every point.
    run = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    run.Reload()
    tags = run.Tags()
    for tag in tags["scalars"]:
        points = run.Scalars(tag)
        first, last = points[0], points[-1]
        print(f"scalar {tag}: {len(points)} points, {first.value:g} at {first.step} to {last.value:g} at {last.step}")
    for tag in tags["tensors"]:
        plugin = run.SummaryMetadata(tag).plugin_data.plugin_name
        for event in run.Tensors(tag):
            text = b"".join(event.tensor_proto.string_val).decode()
            print(f"{plugin or 'tensor'} {tag}: {text!r}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: check_tensorboard.py DIRECTORY")
    main(sys.argv[1])
