use super::rows::{Goal, Unit};
use super::*;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: SpeedArgs,
}

/// What `speed` refuses, before it measures anything.
fn refusal(flags: &[&str]) -> String {
    let args = Cli::try_parse_from([&["speed"], flags].concat()).map(|cli| cli.args);
    let error = speed(args.unwrap()).unwrap_err();
    assert!(error.is::<envs::InvalidInput>(), "{error}");
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn bad_flags_are_refused_in_one_line() {
    let text = refusal(&["--rows", "ppo,tuba"]);
    assert!(text.starts_with("--rows tuba: unknown; known are update-64, "), "{text}");
    let text = refusal(&["--output", "/nowhere/speed.md", "--rows", "update"]);
    assert!(text.starts_with("--output /nowhere/speed.md: cannot be written"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().to_str().unwrap();
    let text = refusal(&["--output", shown, "--rows", "update"]);
    assert!(text.contains("this is a folder"), "{text}");
    assert!(Cli::try_parse_from(["speed", "--runs", "0"]).is_err());
}

#[test]
fn a_folder_without_the_programs_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = programs::in_folder(folder.path(), ALGORITHMS).err().unwrap();
    assert!(error.is::<envs::InvalidInput>());
    let text = error.to_string();
    assert!(text.starts_with("--bin-dir ") && text.ends_with("holds no program cem"), "{text}");
}

#[test]
fn rows_are_chosen_by_the_beginning_of_their_names() {
    let names = |wanted: &[&str]| -> Vec<String> {
        let wanted: Vec<String> = wanted.iter().map(|name| name.to_string()).collect();
        select(rows(), &wanted).unwrap().into_iter().map(|row| row.name).collect()
    };
    assert_eq!(names(&["sac-", "update-64"]), ["update-64", "sac-1-thread", "sac-2-threads"]);
    assert_eq!(names(&[]).len(), rows().len());
}

#[test]
fn goals_are_of_subjects_that_there_are() {
    for row in rows() {
        assert_eq!(row.subjects[0].name(), "PlainRL", "{}", row.name);
        for goal in &row.goals {
            match goal {
                Goal::Ratio { subject, .. } => assert!((1..row.subjects.len()).contains(subject)),
                Goal::Below(_) => assert_eq!(row.subjects.len(), 1),
            }
        }
    }
}

#[test]
fn a_subject_that_fails_does_not_stop_the_others() {
    let row = select(rows(), &["ppo-4x128".into()]).unwrap().remove(0);
    let tools = Tools { python: None, programs: None, stock_candle: None };
    let samples = measure(row, &tools, 1).samples;
    assert_eq!(samples[0].as_ref().unwrap_err(), "no program ppo");
    assert_eq!(samples[1].as_ref().unwrap_err(), "measured with --peers only");
}

fn measured(name: &str, samples: Vec<Sample>) -> Measured {
    Measured { row: select(rows(), &[name.to_string()]).unwrap().remove(0), samples }
}

#[test]
fn ratios_count_speed_in_every_unit() {
    assert_eq!(Unit::StepsPerSecond.times_as_fast(300.0, 100.0), 3.0);
    assert_eq!(Unit::MicrosecondsPerUpdate.times_as_fast(100.0, 300.0), 3.0);
    assert_eq!(Unit::Seconds.times_as_fast(4.0, 2.0), 0.5);
}

#[test]
fn the_table_has_medians_ratios_and_goals() {
    let results = [
        measured(
            "ppo-4x128",
            vec![
                Ok(vec![190_000.0, 1_000.0, 200_000.0]),
                Ok(vec![10_000.0, 9.0, 12_345.6]),
                Err("gone".into()),
            ],
        ),
        measured(
            "update-64",
            vec![Ok(vec![60.0, 50.0]), Ok(vec![550.0]), Ok(vec![275.0]), Ok(vec![400.0]), Ok(vec![44.0])],
        ),
        measured("ppo-score", vec![Ok(vec![3.0, 0.5, 2.999])]),
    ];
    let text = report::markdown(&["Machine: abacus".into()], 3, &results);
    for wanted in [
        "- Machine: abacus\n",
        "and then 3 times by PlainRL",
        "| 190,000 (1,000–200,000) | Stable-Baselines3 | 10,000 (9.00–12,346) | 19.0 | ≥ 19.0 | yes |",
        "| | | | SBX | n/a | n/a | ≥ 24.0 | n/a |",
        "| 55.0 (50.0–60.0) | candle | 550 (550–550) | 10.0 | ≥ 6.00 | yes |",
        "| | | | candle, no other network | 275 (275–275) | 5.00 | ≥ 6.00 | no |",
        "| | | | bare matrix products | 44.0 (44.0–44.0) | 0.80 | — | — |",
        "| 3.00 (0.50–3.00) | — | — | — | < 3.00 s | yes |",
        "- ppo-4x128, SBX: gone\n",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is missing from\n{text}");
    }
    let columns = |line: &str| line.matches('|').count();
    assert!(text.lines().filter(|line| line.starts_with('|')).all(|line| columns(line) == 9), "{text}");
}

#[test]
fn a_goal_that_is_missed_is_said_to_be() {
    let results = [measured("dqn-120", vec![Ok(vec![799.0]), Ok(vec![100.0])])];
    assert!(report::markdown(&[], 1, &results).contains("| 7.99 | ≥ 8.00 | no |"));
    assert!(report::text(&results[0]).contains("times as fast: 7.99, goal ≥ 8.00: no"));
}
