//! Ranks that are threads of this process: the same results on any number of them.

use crate::common::{Fixture, result_of_run};
use lora_drop::Cancel;
use lora_drop::Error;
use lora_drop::events::Event;
use lora_drop::ranks::Ranks;
use lora_drop::settings::RunSettings;
use lora_drop::train;

/// Runs `work` on each of `size` ranks, which compute on `threads` threads each.
fn on_ranks<T: Send>(size: usize, threads: usize, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let start = |ranks| scope.spawn(move || work(ranks));
        let running: Vec<_> = Ranks::of_threads(size, threads).into_iter().map(start).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Settings under which a step of the tiny models has several parts.
fn settings(fixture: &Fixture, model: &str, data: &str, text: &str) -> RunSettings {
    let mut settings =
        RunSettings::new(fixture.path(model).to_str().unwrap(), fixture.path(data), fixture.path("out"));
    let common = "rank = 4\nbatch-size = 9\nlearning-rate = 1e-2\nlora-dropout = 0.1\nepochs = 2\n\
                  micro-tokens = 24\ntoken-cache = 0\noverwrite = true\n";
    settings.apply(&format!("{common}{text}").parse().unwrap()).unwrap();
    settings
}

/// Checks that runs on several ranks write the files of a run alone.
#[track_caller]
fn check(fixture: &Fixture, settings: &RunSettings) {
    let run = |size: usize, threads: usize| {
        let summaries = on_ranks(size, threads, |ranks| {
            train::run_on(&ranks, settings, None, &Cancel::new(), &mut |_| {}).unwrap().is_some()
        });
        assert_eq!(summaries, (0..size).map(|rank| rank == 0).collect::<Vec<_>>());
        result_of_run(&fixture.path("out"))
    };
    train::run(settings, None, &Cancel::new(), &mut |_| {}).unwrap();
    let expected = result_of_run(&fixture.path("out"));
    for (size, threads) in [(1, 2), (2, 1), (3, 2), (4, 1)] {
        assert!(run(size, threads) == expected, "{size} ranks, {threads} threads");
    }
}

#[test]
fn encoders_learn_the_same_on_ranks() {
    let fixture = Fixture::new();
    for text in [
        // With a sample stage, whose moments are exchanged too.
        "hidden-dropout = 0.1\nsample-ratio = 0.5\nsample-epochs = 3\ntop-k = 1",
        "budget = \"auto\"\nsample-ratio = 0.5\nsample-epochs = 2",
        "criterion = \"page\"\nsample-ratio = 0.5\ntop-k = 2",
        "criterion = \"cka\"\nsample-ratio = 0.5\ntop-k = 2",
        "method = \"dora\"",
        "method = \"adalora\"",
        "method = \"sparse-adapter\"\nsample-ratio = 0.5",
    ] {
        check(&fixture, &settings(&fixture, "model", "data", text));
    }
    // Few values, so that even all of them have a gradient for each part.
    check(&fixture, &settings_of_all(&fixture));
}

fn settings_of_all(fixture: &Fixture) -> RunSettings {
    let mut settings = settings(fixture, "model", "data", "method = \"full\"");
    settings.train.adapter =
        lora_drop::settings::AdapterSettings { method: settings.train.adapter.method, ..Default::default() };
    settings
}

#[test]
fn decoders_learn_the_same_on_ranks() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    fixture.write_reversed_words(40, 10);
    for text in ["sample-ratio = 0.5\nsample-epochs = 3\ntop-k = 1", "method = \"lora\"\nrecompute = true"] {
        check(&fixture, &settings(&fixture, "decoder", "texts", text));
    }
}

#[test]
fn tags_and_several_classes_are_learned_the_same_on_ranks() {
    let fixture = crate::tasks::fixture();
    for data in ["words", "sets"] {
        let text = "hidden-dropout = 0.1\nsample-ratio = 0.5\nsample-epochs = 3\ntop-k = 1\nclass-weights = \"balanced\"";
        check(&fixture, &settings(&fixture, "model", data, text));
    }
}

/// Errors of all ranks of a run that rank `number` ends after its first step.
fn errors(fixture: &Fixture, number: usize, end: impl Fn(&Cancel) + Sync) -> Vec<Option<Error>> {
    let settings = settings(fixture, "model", "data", "method = \"lora\"");
    on_ranks(3, 1, |ranks| {
        let (cancel, rank) = (Cancel::new(), ranks.rank());
        let mut steps = 0;
        let mut listen = |event: &Event| {
            steps += usize::from(matches!(event, Event::Step(_)));
            if rank == number && steps == 1 {
                end(&cancel);
            }
        };
        train::run_on(&ranks, &settings, None, &cancel, &mut listen).err()
    })
}

#[test]
fn one_that_is_stopped_stops_all() {
    let fixture = Fixture::new();
    for number in [0, 2] {
        let errors = errors(&fixture, number, Cancel::raise);
        assert!(errors.iter().all(|error| matches!(error, Some(Error::Interrupted))), "{errors:?}");
        assert_eq!(fixture.read_json("out/summary.json")["status"], "interrupted");
    }
}

#[test]
fn ranks_that_differ_are_refused() {
    let fixture = Fixture::new();
    fixture.write("other/train.jsonl", fixture.read("data/train.jsonl").replacen("positive", "negative", 1));
    fixture.write("other/dev.jsonl", fixture.read("data/dev.jsonl"));
    fixture.write("longer/dev.jsonl", fixture.read("data/train.jsonl"));
    fixture.write("longer/train.jsonl", fixture.read("data/train.jsonl"));
    for (data, text, problem) in [
        ("data", "seed = 5", "its `seed` is 5, that of the first one 0"),
        ("data", "keep-layers = [0]", "its `keep_layers` is [0], that of the first one not set"),
        ("other", "", "its rows of train, their tokens or labels are not those of the first one"),
        ("longer", "", "its rows of dev, their tokens or labels are not those of the first one"),
    ] {
        let errors = on_ranks(3, 1, |ranks| {
            let mut mine = settings(&fixture, "model", "data", "");
            if ranks.rank() == 2 {
                mine = settings(&fixture, "model", data, text);
            }
            train::run_on(&ranks, &mine, None, &Cancel::new(), &mut |_| {}).unwrap_err().to_string()
        });
        let expected = format!("rank 2 does not fit the others: {problem}");
        assert!(errors.iter().all(|error| *error == expected), "{errors:?}");
        assert!(!fixture.path("out").exists());
    }
}
