//! `cargo verify`: formatting, lints, host tests, and every scenario on real Xen.

use anyhow::{Context as _, Result, bail};
use bulkhead_tests::artifacts::{self, Artifacts};
use bulkhead_tests::figure::Store;
use bulkhead_tests::measure::size;
use bulkhead_tests::runner::{self, Report};
use bulkhead_tests::scenario::{self, Scenario, Setting};
use bulkhead_tests::schedule::{self, Batch, TimeLimit};
use bulkhead_tests::verdict::Verdict;
use clap::Parser;
use images::installed;
use images::observer::{Quiet, Terminal};
use images::products::{self, Product};
use images::qemu::Xenstored;
use images::{Emulator, Host, Rig, Suite, sizes};
use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Check everything: format, lints, host tests, image size, and the scenarios on real Xen in QEMU.
#[derive(Parser)]
#[command(name = "cargo verify")]
struct Arguments {
    /// Run only the scenarios of this suite (bookworm, trixie, sid)
    #[arg(long)]
    suite: Option<Suite>,
    /// Run this scenario and nothing else; may be repeated
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Run every scenario in full on every suite, also those that take long (hours)
    #[arg(long)]
    all: bool,
    /// Set a variable that the script reads as `NAME=${NAME:-DEFAULT}`; may be repeated
    #[arg(long, value_name = "NAME=VALUE", requires = "scenario")]
    set: Vec<Setting>,
    /// Run this xenstored in dom0 (xenstored, oxenstored)
    #[arg(long, requires = "scenario")]
    xenstored: Option<Xenstored>,
    /// Replace the scenario's time limit, from power-on
    #[arg(long, value_name = "SECONDS", requires = "scenario")]
    timeout: Option<u64>,
    /// Start no scenario after so many minutes, but for those with the line `#: first`: they come first, however long they
    /// take. What there was no time for is printed, and counts as skipped
    #[arg(long, value_name = "N", conflicts_with = "scenario")]
    minutes: Option<u64>,
    /// Run only the checks that need no rig
    #[arg(long, conflicts_with = "scenario")]
    host: bool,
}

/// The images that ship, each with the largest size that it may have, in bytes.
const IMAGES: [(&str, &Product, u64); 2] = [
    ("image", &products::STUB, 116 * 1024),
    ("image with a network", &products::STUB_NET, 192 * 1024),
];

/// Text that only an image with the feature `inject` contains (`drivers::inject`).
const INJECTION: &[u8] = b"control/bulkhead-inject";

/// Text that only a dom0 command with the feature `inject` contains (crate `inject`).
const COMMAND_INJECTION: &[u8] = b"/run/bulkhead/inject";

/// A check that needs no rig.
struct HostCheck {
    /// What it shows.
    name: &'static str,
    program: &'static str,
    /// The program's arguments.
    words: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

const fn cargo(name: &'static str, words: &'static [&'static str]) -> HostCheck {
    HostCheck {
        name,
        program: "cargo",
        words,
        environment: &[],
    }
}

/// Warnings are errors.
const STRICT: &[(&str, &str)] = &[("RUSTDOCFLAGS", "-D warnings")];

const HOST_CHECKS: &[HostCheck] = &[
    cargo("formatting", &["fmt", "--all", "--check"]),
    cargo(
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
    cargo(
        "lints of the images",
        &[
            "clippy",
            "--quiet",
            "--package=bulkhead-unikernel",
            "--bin=bulkhead-stub",
            "--package=bulkhead-test-guest",
            "--bin=test-guest",
            "--bin=hostile-stub",
            "--features=bulkhead-unikernel/boot,bulkhead-test-guest/boot",
            "--profile=stub",
            "--",
            "-D",
            "warnings",
        ],
    ),
    // On its own: the feature `net` would hold for the other image too.
    cargo(
        "lints of the image with a network",
        &[
            "clippy",
            "--quiet",
            "--package=bulkhead-unikernel",
            "--bin=bulkhead-stub-net",
            "--features=boot,net",
            "--profile=stub",
            "--",
            "-D",
            "warnings",
        ],
    ),
    HostCheck {
        environment: STRICT,
        ..cargo(
            "documentation",
            &[
                "doc",
                "--quiet",
                "--no-deps",
                "--document-private-items",
                "--workspace",
                // These have a panic handler of their own, so they cannot be linked with the standard library.
                "--exclude=bulkhead-unikernel",
                "--exclude=bulkhead-test-guest",
                "--all-features",
            ],
        )
    },
    HostCheck {
        environment: STRICT,
        ..cargo(
            "documentation of the images",
            &[
                "doc",
                "--quiet",
                "--no-deps",
                "--document-private-items",
                "--package=bulkhead-unikernel",
                "--package=bulkhead-test-guest",
                "--all-features",
            ],
        )
    },
    cargo("host tests", &["test", "--quiet", "--workspace"]),
];

/// Shell scripts by directory and ending of their names: scenarios, and scripts in the rig's images.
const SCRIPTS: &[(&str, &str)] = &[
    ("tests/scenarios", ".sh"),
    ("images/examples", ".sh"),
    ("images/rootfs/dom0", "init"),
    ("images/rootfs/dom0", ".sh"),
    ("images/rootfs/debian", "configure"),
    ("images/rootfs/debian", "init"),
    ("images/rootfs/debian", "run-scenario"),
    ("images/rootfs/dom0/bin", ""),
    ("images/rootfs/guest", ""),
    (".ci", ""),
    ("packaging/debian", ""),
];

/// Tests that `--all` adds: the stub dies at every moment of each test, not at a sample of moments.
const EVERY_MOMENT: HostCheck = HostCheck {
    environment: &[("BULKHEAD_EVERY_MOMENT", "1")],
    ..cargo(
        "host tests, a death at every moment",
        &["test", "--quiet", "--release", "--package=bulkhead-drivers"],
    )
};

/// Passed, failed, skipped, and how long each took.
#[derive(Default)]
struct Score {
    passed: u32,
    failed: Vec<String>,
    skipped: u32,
    times: Vec<(Duration, String)>,
}

/// How many of the longest times are printed at the end.
const LONGEST: usize = 24;

impl Score {
    /// Prints the times of all and of the longest, of which CI may keep nothing else.
    fn tell_longest(&mut self, whole: Duration) {
        self.times.sort_unstable_by_key(|(time, _)| Reverse(*time));
        let longest = self.times.iter().take(LONGEST);
        let longest: Vec<String> = longest
            .map(|(time, name)| format!("{name} {}", time.as_secs()))
            .collect();
        println!(
            "{} s in all; the longest, in s: {}",
            whole.as_secs(),
            longest.join(", ")
        );
    }

    fn note(&mut self, name: &str, verdict: &Verdict, time: Duration) {
        self.times.push((time, name.to_owned()));
        match verdict {
            Verdict::Success => self.passed += 1,
            Verdict::Skip(_) => self.skipped += 1,
            Verdict::Error(_) | Verdict::Failure(_) => self.failed.push(name.to_owned()),
        }
    }
}

/// One line of the report.
fn tell(name: &str, verdict: &Verdict, duration: Duration) {
    println!("{:>6.1} s  {name}: {verdict}", duration.as_secs_f64());
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let since = Instant::now();
    let mut score = Score::default();
    if arguments.scenario.is_empty() {
        for check in HOST_CHECKS {
            check.run(&[], &mut score)?;
        }
        check_scripts(&mut score)?;
        if arguments.all {
            EVERY_MOMENT.run(&[], &mut score)?;
        }
    }
    if !arguments.host {
        scenarios(&arguments, TimeLimit::after(since, arguments.minutes), &mut score)?;
    }
    score.tell_longest(since.elapsed());
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

impl HostCheck {
    /// Runs the check in the workspace, with `more` arguments.
    fn run(&self, more: &[PathBuf], score: &mut Score) -> Result<()> {
        let Self {
            name, program, words, ..
        } = self;
        let since = Instant::now();
        println!("-- {name}: {program} {}", words.join(" "));
        let program = match *program {
            // The cargo that runs this program.
            "cargo" => std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
            other => other.into(),
        };
        let status = Command::new(program)
            .args(*words)
            .args(more)
            .envs(self.environment.iter().copied())
            .current_dir(workspace()?)
            .status()
            .with_context(|| format!("start {}", self.program))?;
        let verdict = if status.success() {
            Verdict::Success
        } else {
            Verdict::Failure(status.to_string())
        };
        tell(name, &verdict, since.elapsed());
        score.note(name, &verdict, since.elapsed());
        Ok(())
    }
}

fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("tests/ lies in the workspace")
}

/// Runs shellcheck on all shell scripts.
fn check_scripts(score: &mut Score) -> Result<()> {
    let mut observer = Terminal::new(Arc::new(AtomicBool::new(false)));
    installed::ensure("shellcheck", "shellcheck", &mut observer)?;
    let mut scripts = Vec::new();
    for (directory, ending) in SCRIPTS {
        let path = workspace()?.join(directory);
        for entry in path
            .read_dir()
            .with_context(|| format!("list {}", path.display()))?
        {
            let entry = entry?;
            if entry.file_type()?.is_file() && entry.file_name().to_string_lossy().ends_with(ending) {
                scripts.push(entry.path());
            }
        }
    }
    scripts.sort();
    let check = HostCheck {
        name: "shell scripts",
        program: "shellcheck",
        words: &["--severity=warning"],
        environment: &[],
    };
    check.run(&scripts, score)
}

fn scenarios(arguments: &Arguments, limit: TimeLimit, score: &mut Score) -> Result<()> {
    let mut chosen = choose(scenario::all()?, &arguments.scenario)?;
    chosen.retain(|scenario| arguments.all || !arguments.scenario.is_empty() || !scenario.costly);
    let chosen = chosen.iter().flat_map(|scenario| {
        let xenstoreds = match arguments.xenstored {
            Some(xenstored) => vec![xenstored],
            None if arguments.all && !scenario.xenstoreds.is_empty() => scenario.xenstoreds.clone(),
            None => vec![scenario.xenstored()],
        };
        xenstoreds.into_iter().map(|xenstored| scenario.with(xenstored))
    });
    let mut chosen: Vec<Scenario> = chosen.collect();
    for scenario in &mut chosen {
        if arguments.all {
            scenario.whole();
        }
        scenario.set(&arguments.set);
        if let Some(seconds) = arguments.timeout {
            scenario.limit(seconds);
        }
    }
    let mut observer = Terminal::new(Arc::new(AtomicBool::new(false)));
    let hosts: Vec<Host> = chosen.iter().map(|scenario| scenario.host).collect();
    let files = artifacts::build(&hosts, &mut observer)?;
    for (image, product, limit) in IMAGES {
        image_check(image, product, limit, score, &mut observer)?;
    }
    size_check(score, &mut observer)?;
    command_check(score, &mut observer)?;
    let versions: BTreeSet<_> = chosen.iter().map(|scenario| scenario.qemu).collect();
    for version in versions {
        Emulator::prepare(version, &mut observer)?;
    }
    let anywhere = arguments.all || arguments.suite.is_some() && !arguments.scenario.is_empty();
    let runs_on =
        |scenario: &Scenario, suite, host| scenario.host == host && (anywhere || scenario.is_for(suite));
    let mut rigs = Vec::new();
    for suite in Suite::ALL
        .into_iter()
        .filter(|suite| arguments.suite.is_none_or(|only| only == *suite))
    {
        for host in [Host::Busybox, Host::Debian] {
            if !chosen.iter().any(|scenario| runs_on(scenario, suite, host)) {
                continue;
            }
            match Rig::prepare(suite, host, &mut observer) {
                Ok(rig) => rigs.push(rig),
                // Debian's unstable may lack packages at times. The other suites run all the same.
                Err(error) => {
                    let name = format!("the rig of {suite} with {host}");
                    let verdict = Verdict::Error(format!("{error:#}"));
                    tell(&name, &verdict, Duration::ZERO);
                    score.note(&name, &verdict, Duration::ZERO);
                }
            }
        }
    }
    // Its progress line would mix with the reports.
    drop(observer);
    let jobs = rigs.iter().flat_map(|rig| {
        let suited = chosen
            .iter()
            .filter(move |scenario| runs_on(scenario, rig.suite(), rig.host()));
        suited.map(move |scenario| (rig, scenario))
    });
    let mut jobs: Vec<Job> = jobs.collect();
    let commit = commit();
    jobs.sort_by_key(|(rig, scenario)| schedule::place(scenario, rig.suite(), limit, &commit));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let figures = Mutex::new(Store::open(&Store::default_path())?);
    for batch in Batch::ALL {
        let jobs = jobs.iter().filter(|(_, scenario)| Batch::of(scenario) == batch);
        let jobs = jobs.copied().collect();
        for finished in run_all(jobs, batch.width(processors), &files, &figures, limit)? {
            // If the host keeps an emulated machine from running for seconds, the scenario can fail without a fault of ours.
            // So each failed scenario gets a second run, alone. Both verdicts are printed, and a scenario that fails twice
            // has failed.
            let second = match finished.report.verdict {
                Verdict::Success | Verdict::Skip(_) => None,
                _ => {
                    let jobs = VecDeque::from([finished.job]);
                    run_all(jobs, 1, &files, &figures, limit.for_second_runs())?.pop()
                }
            };
            let Report {
                name,
                verdict,
                duration,
                ..
            } = finished.report;
            match second.filter(|second| !matches!(second.report.verdict, Verdict::Skip(_))) {
                None => score.note(&name, &verdict, duration),
                Some(Finished { report, .. }) => {
                    let name = format!("{name} (second run; the first: {verdict})");
                    score.note(&name, &report.verdict, report.duration);
                }
            }
        }
    }
    Ok(())
}

/// The commit that is checked; empty outside of a repository.
fn commit() -> String {
    let git = Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    git.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}

/// A scenario and the suite to run it on.
type Job<'a> = (&'a Rig, &'a Scenario);

/// A job that has run.
struct Finished<'a> {
    job: Job<'a>,
    report: Report,
}

/// Runs scenarios, `width` at a time. Prints each when it ends, and keeps its figures. Once the time is over, starts only
/// those with `#: first`.
fn run_all<'a>(
    jobs: VecDeque<Job<'a>>,
    width: usize,
    files: &Artifacts,
    figures: &Mutex<Store>,
    limit: TimeLimit,
) -> Result<Vec<Finished<'a>>> {
    let out = images::store::target_dir().join("rig-out");
    let jobs = Mutex::new(jobs);
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || -> Result<Vec<Finished<'a>>> {
        let mut finished = Vec::new();
        while let Some(job) = next() {
            let (rig, scenario) = job;
            if !scenario.first && limit.is_over(Instant::now()) {
                let verdict = Verdict::Skip("there was no time for it (--minutes)".into());
                let report = Report::without_a_run(rig, scenario, verdict);
                tell(&report.name, &report.verdict, report.duration);
                finished.push(Finished { job, report });
                continue;
            }
            println!("-- {}/{}: {}", rig.suite(), scenario.name, scenario.title);
            let report = runner::run(rig, scenario, &files.of(rig.host()), &out, &mut Quiet)?;
            tell(&report.name, &report.verdict, report.duration);
            print!("{}", report.details());
            let mut figures = figures.lock().unwrap_or_else(PoisonError::into_inner);
            figures.replace(rig.suite(), &scenario.name, report.figures.clone())?;
            drop(figures);
            finished.push(Finished { job, report });
        }
        Ok(finished)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..width).map(|_| scope.spawn(work)).collect();
        let mut finished = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(done) => finished.extend(done?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(finished)
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

fn image_check(
    image: &str,
    product: &Product,
    limit: u64,
    score: &mut Score,
    observer: &mut Terminal,
) -> Result<()> {
    let since = Instant::now();
    let built = std::fs::read(product.build(observer)?)?;
    let size = built.len() as u64;
    let name = format!("{image} of {size} bytes, at most {limit}, without failures on demand");
    let verdict = if size > limit {
        Verdict::Failure("too large".into())
    } else if contains(&built, INJECTION) {
        Verdict::Failure("it was built with the feature `inject`".into())
    } else {
        Verdict::Success
    };
    tell(&name, &verdict, since.elapsed());
    score.note(&name, &verdict, since.elapsed());
    Ok(())
}

/// The modules of the image have the sizes that docs/size.md shows.
fn size_check(score: &mut Score, observer: &mut Terminal) -> Result<()> {
    let since = Instant::now();
    let image = std::fs::read(products::STUB.build_with_symbols(observer)?)?;
    let name = "image by module, as docs/size.md shows it";
    let differences = size::differences(&size::parse(size::DOCUMENT), &sizes::of_image(&image)?);
    let verdict = match differences.as_slice() {
        [] => Verdict::Success,
        _ => Verdict::Failure(format!(
            "{}; see why, then: cargo measure size --take",
            differences.join("; ")
        )),
    };
    tell(name, &verdict, since.elapsed());
    score.note(name, &verdict, since.elapsed());
    Ok(())
}

fn command_check(score: &mut Score, observer: &mut Terminal) -> Result<()> {
    let since = Instant::now();
    let command = std::fs::read(products::TOOLSTACK.build(observer)?)?;
    let name = "command without failures on demand";
    let verdict = if contains(&command, COMMAND_INJECTION) {
        Verdict::Failure("it was built with the feature `inject`".into())
    } else {
        Verdict::Success
    };
    tell(name, &verdict, since.elapsed());
    score.note(name, &verdict, since.elapsed());
    Ok(())
}

fn contains(file: &[u8], words: &[u8]) -> bool {
    file.windows(words.len()).any(|bytes| bytes == words)
}
