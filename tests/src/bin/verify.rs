//! `cargo verify`: formatting, lints, host tests, and every scenario on real Xen.

use anyhow::{Context as _, Result, bail};
use bulkhead_tests::scenario::{self, Scenario};
use bulkhead_tests::verdict::Verdict;
use bulkhead_tests::{artifacts, runner};
use clap::Parser;
use images::observer::{Quiet, Terminal};
use images::{FileIn, Rig, Suite};
use std::collections::VecDeque;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Checks everything: format, lints, host tests, image size, and the scenarios on real Xen in QEMU.
#[derive(Parser)]
#[command(name = "cargo verify")]
struct Arguments {
    /// Only the scenarios of this suite (bookworm, trixie)
    #[arg(long)]
    suite: Option<Suite>,
    /// Only this scenario, and nothing else; may be repeated
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Only what needs no rig
    #[arg(long, conflicts_with = "scenario")]
    host: bool,
}

/// The largest image that ships, in bytes.
const IMAGE_LIMIT: u64 = 128 * 1024;

/// Checks that need no rig: what they show, and cargo's arguments.
const HOST_CHECKS: &[(&str, &[&str])] = &[
    ("formatting", &["fmt", "--all", "--check"]),
    (
        "lints",
        &[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
    ),
    (
        "lints of the image",
        &[
            "clippy",
            "--quiet",
            "--package=bulkhead-unikernel",
            "--bin=bulkhead-stub",
            "--features=boot",
            "--profile=stub",
            "--",
            "-D",
            "warnings",
        ],
    ),
    ("host tests", &["test", "--quiet", "--workspace"]),
];

/// Passed, failed, skipped.
#[derive(Default)]
struct Score {
    passed: u32,
    failed: Vec<String>,
    skipped: u32,
}

impl Score {
    fn line(&mut self, name: &str, verdict: &Verdict, since: Instant) {
        println!("{:>6.1} s  {name}: {verdict}", since.elapsed().as_secs_f64());
        match verdict {
            Verdict::Success => self.passed += 1,
            Verdict::Skip(_) => self.skipped += 1,
            Verdict::Error(_) | Verdict::Failure(_) => self.failed.push(name.to_owned()),
        }
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut score = Score::default();
    if arguments.scenario.is_empty() {
        host_checks(&mut score)?;
    }
    if !arguments.host {
        scenarios(&arguments, &mut score)?;
    }
    for name in &score.failed {
        println!("failed: {name}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        score.passed,
        score.failed.len(),
        score.skipped
    );
    Ok(if score.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn host_checks(score: &mut Score) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    for (name, words) in HOST_CHECKS {
        let since = Instant::now();
        println!("-- {name}: cargo {}", words.join(" "));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("tests/ lies in the workspace")?;
        let status = Command::new(&cargo)
            .args(*words)
            .current_dir(root)
            .status()
            .context("start cargo")?;
        let verdict = if status.success() {
            Verdict::Success
        } else {
            Verdict::Failure(status.to_string())
        };
        score.line(name, &verdict, since);
    }
    Ok(())
}

fn scenarios(arguments: &Arguments, score: &mut Score) -> Result<()> {
    let chosen = choose(scenario::all()?, &arguments.scenario)?;
    let mut observer = Terminal::new(Arc::new(AtomicBool::new(false)));
    let files = artifacts::build(&mut observer)?;
    image_size(score, &mut observer)?;
    let mut rigs = Vec::new();
    for suite in Suite::ALL {
        if arguments.suite.is_none_or(|only| only == suite) {
            rigs.push(Rig::prepare(suite, &mut observer)?);
        }
    }
    drop(observer);
    let jobs = rigs.iter().flat_map(|rig| {
        let suited = chosen.iter().filter(|scenario| scenario.is_for(rig.suite()));
        suited.map(move |scenario| (rig, scenario))
    });
    // What takes several processors runs alone, so that it has them.
    let (wide, narrow): (VecDeque<_>, VecDeque<_>) = jobs.partition(|(_, scenario)| scenario.cpus > 1);
    let score = Mutex::new(score);
    run_all(wide, 1, &files, &score)?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    run_all(narrow, processors, &files, &score)
}

/// Runs scenarios, `width` at a time; each is told of when it ends.
fn run_all(
    jobs: VecDeque<(&Rig, &Scenario)>,
    width: usize,
    files: &[FileIn],
    score: &Mutex<&mut Score>,
) -> Result<()> {
    let out = images::store::target_dir().join("rig-out");
    let jobs = Mutex::new(jobs);
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || -> Result<()> {
        while let Some((rig, scenario)) = next() {
            println!("-- {}/{}: {}", rig.suite(), scenario.name, scenario.title);
            let since = Instant::now();
            let report = runner::run(rig, scenario, files, &out, &mut Quiet)?;
            let mut score = score.lock().unwrap_or_else(PoisonError::into_inner);
            score.line(&report.name, &report.verdict, since);
            print!("{}", report.details());
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..width).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

fn choose(all: Vec<Scenario>, names: &[String]) -> Result<Vec<Scenario>> {
    for name in names {
        if !all.iter().any(|scenario| scenario.name == *name) {
            let known: Vec<&str> = all.iter().map(|scenario| scenario.name.as_str()).collect();
            bail!("no scenario is called {name}; there are {}", known.join(", "));
        }
    }
    Ok(all
        .into_iter()
        .filter(|scenario| names.is_empty() || names.contains(&scenario.name))
        .collect())
}

fn image_size(score: &mut Score, observer: &mut Terminal) -> Result<()> {
    let since = Instant::now();
    let size = std::fs::metadata(images::products::build_stub(observer)?)?.len();
    let name = format!("image of {size} bytes, at most {IMAGE_LIMIT}");
    let verdict = if size <= IMAGE_LIMIT {
        Verdict::Success
    } else {
        Verdict::Failure("too large".into())
    };
    score.line(&name, &verdict, since);
    Ok(())
}
