//! Every recording in the golden folder is replayed, and the environments must agree with it.

use regression::parity::{Outcome, golden_dir, replay};

#[test]
fn every_recording_is_replayed() {
    let folder = golden_dir();
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} holds no recordings", folder.display());

    let (mut replayed, mut skipped, mut failures) = (0, 0, Vec::new());
    for path in &files {
        let name = path.file_name().unwrap().to_string_lossy();
        match replay(path) {
            Ok(Outcome::Replayed { steps, error }) => {
                assert!(steps > 0, "{name}: no steps");
                println!("{name:45} {steps:6} steps, largest difference {error:.1e}");
                replayed += 1;
            }
            Ok(Outcome::Skipped(why)) => {
                println!("{name:45} SKIPPED: {why}");
                skipped += 1;
            }
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    println!("{replayed} recordings replayed, {skipped} skipped, {} failed", failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(replayed + skipped, files.len());
}
